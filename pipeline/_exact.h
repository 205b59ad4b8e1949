/* One kind of the kernels of _exact.c: TARGET and NAMED, and what its registers do, are set before. */

/* Make tiles of a right factor of STRIP columns of rows of bytes, flipping their top bits, which subtracts 128. */
TARGET static void NAMED(pack_strip)(
    const uint8_t *from, Py_ssize_t stride, Py_ssize_t rows, Py_ssize_t columns, uint8_t *tiles, int32_t *sums)
{
    uint8_t few[4][STRIP];
    START_SUMS
    for (Py_ssize_t row = 0; row < (rows + CHUNK - 1) / CHUNK * CHUNK; row += 4, tiles += 4 * STRIP) {
        const uint8_t *four = from + row * stride;
        Py_ssize_t apart = stride;
        if (row + 4 > rows || columns < STRIP) { /* what is not there becomes zero */
            for (Py_ssize_t i = 0; i < 4; i++)
                for (Py_ssize_t j = 0; j < STRIP; j++)
                    few[i][j] = row + i < rows && j < columns ? four[i * stride + j] : 128;
            four = few[0];
            apart = STRIP;
        }
        INTERLEAVE(four, apart, tiles)
    }
    END_SUMS(sums)
}

/* Add to rows of the total what was summed for a pair of strips by a pair of strips. */
TARGET static inline void NAMED(add_sums)(const product *the, const int32_t *sums, Py_ssize_t row, Py_ssize_t column)
{
    const Py_ssize_t rows = the->last_row - row < PAIR ? the->last_row - row : PAIR;
    const Py_ssize_t columns = the->last_column - column < PAIR ? the->last_column - column : PAIR;
    for (Py_ssize_t i = 0; i < rows; i++, sums += PAIR) {
        const Py_ssize_t place = (row + i) * the->stride + column;
        if (the->wide)
            for (Py_ssize_t j = 0; j < columns; j++)
                ((int64_t *)the->total)[place + j] += sums[j];
        else
            for (Py_ssize_t j = 0; j < columns; j++)
                ((int32_t *)the->total)[place + j] += sums[j];
    }
}

/* Add to a part of a tile of the total; below the diagonal only what lies in a square of BAND on it. */
TARGET static void NAMED(multiply)(const product *the, int32_t *room)
{
    TILES_BEGIN
    for (Py_ssize_t chunk = 0; chunk < the->chunks; chunk += DEEP) {
        const Py_ssize_t deep = the->chunks - chunk < DEEP ? the->chunks - chunk : DEEP;
        int32_t *sums = room; /* close together, where rows of the total would push each other out of the cache */
        for (Py_ssize_t row = the->first_row; row < the->last_row; row += PAIR) {
            const uint8_t *left = the->left + (row / STRIP * the->chunks + chunk) * TILE;
            const Py_ssize_t diagonal = the->is_diagonal ? row / BAND * BAND : 0;
            Py_ssize_t column = the->first_column > diagonal ? the->first_column : diagonal;
            for (; column < the->last_column; column += PAIR, sums += PAIR * PAIR) {
                const uint8_t *right = the->right + (column / STRIP * the->chunks + chunk) * TILE;
                if (chunk == 0) {
                    CLEAR_TILES
                } else {
                    LOAD_TILES(sums)
                }
                for (Py_ssize_t i = 0; i < deep; i++) {
                    STEP(left + i * TILE, right + i * TILE, the->chunks * TILE)
                }
                STORE_TILES(sums)
                if (chunk + deep == the->chunks)
                    NAMED(add_sums)(the, sums, row, column);
            }
        }
    }
    TILES_END
}
