/* One kind of the kernels of _sliced.c: TARGET, NAMED and what its registers do are set before. */

/* The two factors whose product makes integers below TOP of numbers up to `largest` (its bits), and in `scale` what
 * undoes it: powers of two, so that integers stay what they are; two, since one for numbers that are hardly there would
 * not be a float. Where a number is not finite, neither is the scale, and the factors are zero. */
TARGET static inline void NAMED(factor)(uint32_t largest, float *factors, double *scale)
{
    if (largest >= 0x7f800000u) {
        *scale = (double)NAN;
        factors[0] = factors[STRIP] = 0.0f;
        return;
    }
    /* One more where it would be above TOP; of numbers that are not normal the least. */
    const int exponent = (int)((largest + (0x7fffffu - TOP_BITS)) >> 23) - 127, power = 22 - exponent;
    const int first = power < 100 ? power : 100;
    const uint64_t undo = (uint64_t)(1023 - power) << 52;
    const uint32_t make = (uint32_t)(127 + first) << 23, more = (uint32_t)(127 + power - first) << 23;
    memcpy(scale, &undo, sizeof undo);
    memcpy(factors, &make, sizeof make);
    memcpy(factors + STRIP, &more, sizeof more);
}

/* Cut four rows of numbers, which lie `stride` apart, into the first rows of three tiles of a right factor. */
TARGET static inline void NAMED(cut)(const float *rows, Py_ssize_t stride, const float *factor, uint8_t *tiles)
{
    uint32_t first[STRIP], second[STRIP], third[STRIP];
    for (int i = 0; i < STRIP; i++)
        first[i] = second[i] = third[i] = 0;
    for (int q = 0; q < 4; q++)
        for (int i = 0; i < STRIP; i++) {
            const float number = factor[i] == 0.0f ? 0.0f : rows[q * stride + i] * factor[i] * factor[STRIP + i];
            const uint32_t digits = (uint32_t)((int32_t)rintf(number) + 0x808080);
            first[i] |= (digits >> 16 & 0xff) << 8 * q;
            second[i] |= (digits >> 8 & 0xff) << 8 * q;
            third[i] |= (digits & 0xff) << 8 * q;
        }
    for (int i = 0; i < STRIP; i++) {
        first[i] ^= 0x80808080u;
        second[i] ^= 0x80808080u;
        third[i] ^= 0x80808080u;
    }
    memcpy(tiles, first, sizeof first);
    memcpy(tiles + TILE, second, sizeof second);
    memcpy(tiles + 2 * TILE, third, sizeof third);
}

/* Copy ACROSS columns and keep the largest of each: rows lie pages apart, so as much of each as there are registers. */
TARGET static inline void NAMED(take)(
    const float *from, Py_ssize_t stride, Py_ssize_t depth, float *to, uint32_t *largest)
{
    strip found[ACROSS / STRIP] = {0};
    for (Py_ssize_t row = 0; row < depth; row++)
        for (int j = 0; j < ACROSS / STRIP; j++) {
            const strip bits = STRIP_AT(from + row * stride + j * STRIP), size = bits & 0x7fffffff, more = size > found[j];
            STRIP_AT(to + row * ACROSS + j * STRIP) = bits;
            found[j] = (size & more) | (found[j] & ~more);
        }
    memcpy(largest, found, sizeof found);
}

/* Cut a block of `depth` rows of up to ACROSS columns, which lie `aside` apart; their strips lie `apart` bytes apart. */
TARGET static void NAMED(cut_block)(
    const float *from, Py_ssize_t stride, Py_ssize_t aside, Py_ssize_t depth, Py_ssize_t columns, float *copy,
    uint8_t *slices, double *scales, Py_ssize_t apart, Py_ssize_t scales_apart)
{
    uint32_t largest[ACROSS];
    float factor[2 * STRIP];
    const Py_ssize_t chunks = (depth + CHUNK - 1) / CHUNK;
    memset(copy + depth * ACROSS, 0, (size_t)((chunks * CHUNK - depth) * ACROSS) * sizeof(float));
    if (aside != 1 || columns < ACROSS) {
        for (Py_ssize_t j = 0; j < ACROSS; j++)
            for (Py_ssize_t row = 0; row < depth; row++)
                copy[row * ACROSS + j] = j < columns ? from[row * stride + j * aside] : 0.0f;
        from = copy;
        stride = ACROSS;
    }
    NAMED(take)(from, stride, depth, copy, largest);
    for (Py_ssize_t j = 0; j < columns; j += STRIP) {
        uint8_t *tiles = slices + j / STRIP * apart;
        for (Py_ssize_t i = 0; i < STRIP; i++)
            NAMED(factor)(largest[j + i], factor + i, scales + j / STRIP * scales_apart + i);
        for (Py_ssize_t row = 0; row < chunks * CHUNK; row += 4)
            NAMED(cut)(copy + row * ACROSS + j, ACROSS, factor, tiles + row / CHUNK * SLICES * TILE + row % CHUNK * STRIP);
    }
}

/* Add to rows of a tile of what is kept what four sums of products of slices come to. */
TARGET static inline void NAMED(add)(const tile *the, Py_ssize_t from, Py_ssize_t to)
{
    to = to < the->rows ? to : the->rows;
    for (Py_ssize_t i = from; i < to; i++) {
        const double scale = the->row_scales[i] * 65536.0; /* what the last of the four is worth, and what is shifted */
        for (int j = 0; j < STRIP; j += 8) {
            const int32_t *at = the->sums + i * STRIP + j;
            const ints high = INTS(at) * 256 + INTS(at + SUM);
            const ints low = INTS(at + 2 * SUM) + ((INTS(at + 3 * SUM) + 128) >> 8);
            const doubles found = OF_INTS(high) * 256.0 + OF_INTS(low);
            *(doubles *)(the->kept + i * STRIP + j) += found * (scale * *(const doubles *)(the->scales + j));
        }
    }
}

/* Add to rows of the total, from `first` on, what was kept for its columns from `column` on. */
TARGET static void NAMED(add_kept)(
    const factors *the, const double *kept, Py_ssize_t first, Py_ssize_t rows, Py_ssize_t column, Py_ssize_t columns)
{
    for (Py_ssize_t row = 0; row < rows; row++)
        for (Py_ssize_t j = 0; j < columns; j += STRIP) {
            const double *found = kept + (row / STRIP * ACROSS + j) * STRIP + row % STRIP * STRIP;
            double *total = the->total + (first + row) * the->stride + column + j;
            const Py_ssize_t end = columns - j < STRIP ? columns - j : STRIP;
            for (Py_ssize_t i = 0; i < end; i++)
                total[i] += found[i];
        }
}

/* Add the product of a block to what is kept for rows and columns of the total. */
TARGET static void NAMED(multiply_block)(
    const factors *the, Py_ssize_t block, Py_ssize_t first, Py_ssize_t rows, Py_ssize_t column, Py_ssize_t columns, room *room)
{
    const Py_ssize_t blocks = blocks_of(the->depth);
    const Py_ssize_t deep = the->depth - block * BLOCK < BLOCK ? the->depth - block * BLOCK : BLOCK;
    const Py_ssize_t chunks = (deep + CHUNK - 1) / CHUNK;
    /* While a strip is multiplied, a part of the next one is fetched with each step: it would come late by itself. */
    const Py_ssize_t part = SLICES * TILE / ((columns + STRIP - 1) / STRIP);
    tile before = {.rows = 0};
    int turn = 0;
    for (Py_ssize_t row = 0; row < rows; row += STRIP)
        for (Py_ssize_t j = 0; j < columns; j += STRIP) {
            const Py_ssize_t at = (first + row) / STRIP * blocks + block, beside = (column + j) / STRIP * blocks + block;
            const uint8_t *left = the->left + at * STRIP_BYTES, *right = the->right + beside * STRIP_BYTES;
            int32_t *sums = room->sums[turn];
            CLEAR(sums)
            /* The units multiply while the vector units add what the tile before came to. */
            for (Py_ssize_t chunk = 0; chunk < chunks; chunk++) {
                STEP(left + chunk * SLICES * TILE, right + chunk * SLICES * TILE, sums)
                NAMED(add)(&before, chunk * ROWS, (chunk + 1) * ROWS);
                for (Py_ssize_t i = 0; i < part; i += 64) {
                    FETCH(left + blocks * STRIP_BYTES + (j / STRIP * chunks + chunk) * part + i)
                }
            }
            NAMED(add)(&before, chunks * ROWS, STRIP);
            STORE(sums)
            before = (tile){sums, the->scales + at * STRIP, the->right_scales + beside * STRIP,
                            room->kept + row * ACROSS + j * STRIP, rows - row < STRIP ? rows - row : STRIP};
            turn = 1 - turn;
        }
    NAMED(add)(&before, 0, STRIP);
}

TARGET static void NAMED(multiply)(const factors *the, Py_ssize_t from, Py_ssize_t to, room *room)
{
    BEGIN
    for (Py_ssize_t column = from; column < to; column += ACROSS) {
        const Py_ssize_t columns = to - column < ACROSS ? to - column : ACROSS;
        for (Py_ssize_t first = 0; first < the->rows; first += TALLEST) {
            const Py_ssize_t rows = the->rows - first < TALLEST ? the->rows - first : TALLEST;
            memset(room->kept, 0, sizeof room->kept);
            for (Py_ssize_t block = 0; block < blocks_of(the->depth); block++)
                NAMED(multiply_block)(the, block, first, rows, column, columns, room);
            NAMED(add_kept)(the, room->kept, first, rows, column, columns);
        }
    }
    END
}
