/* The kernels of _exact.c for processors without int8 instructions: bytes become int16, of which AVX2 multiplies sixteen
 * at a time and sums them in pairs: twice as many as numbers in float32.
 *
 * Half of the products are sums: x0 y0 + x2 y2 = (x0 + y2) (x2 + y0) - x0 x2 - y0 y2, where what is subtracted is summed
 * once for a row and once for a column (S. Winograd: A new algorithm for inner product. IEEE Transactions on Computers
 * C-17, 1968). As many instructions, but the two units that multiply are what a Zen 3 waits for.
 *
 * Two halves of rows, of columns and of what is summed are seven products instead of eight (V. Strassen: Gaussian
 * elimination is not optimal. Numerische Mathematik 13, 1969), made without memory for their factors and themselves: sums
 * of two blocks become int16 as one block does, and a product is added wherever it belongs (J. Huang, T. M. Smith, G. M.
 * Henry, R. A. van de Geijn: Strassen's algorithm reloaded. SC16, 2016). Integers lose nothing by it.
 */

#define HEIGHT 4 /* rows of the total whose sums the registers hold, STRIP columns of each */
#define TALL (64 * HEIGHT) /* rows at a time: of a left factor's they fill half of a second cache */
#define DEEP_AVX2 8 /* tiles to sum at a time: of STRIP columns they fill half of a first cache */
#define DEPTH (DEEP_AVX2 * CHUNK)

typedef struct {
    int16_t rows[TALL][DEPTH];
    int16_t columns[DEPTH / 2][STRIP][2];
    int32_t row_sums[TALL], column_sums[STRIP]; /* x0 x2 + x1 x3, and so on */
    int32_t total[][HEIGHT][STRIP]; /* of a part, column by column: its rows in memory push each other out of the caches */
} widened;

/* Up to two of four blocks, the second added or, for -1, subtracted; 0 where there is none. */
typedef struct {
    int first, second, sign;
} blocks;

typedef struct {
    blocks left, right, total;
} step;

/* Blocks are numbered 0 and 1 in the first row, 2 and 3 in the second. */
static const step whole = {{0, 0, 0}, {0, 0, 0}, {0, 0, 0}};
static const step strassen[] = {
    {{0, 3, 1}, {0, 3, 1}, {0, 3, 1}}, {{2, 3, 1}, {0, 0, 0}, {2, 3, -1}}, {{0, 0, 0}, {1, 3, -1}, {1, 3, 1}},
    {{3, 0, 0}, {2, 0, -1}, {0, 2, 1}}, {{0, 1, 1}, {3, 0, 0}, {1, 0, -1}}, {{2, 0, -1}, {0, 1, 1}, {3, 0, 0}},
    {{1, 3, -1}, {2, 3, 1}, {0, 0, 0}},
};

/* Where blocks lie: a rectangle of the total, or all of it, and how far apart two blocks are; numbers to sum in tiles. */
typedef struct {
    Py_ssize_t row, column, chunk, rows, columns, deep;
} place;

TARGET static inline __m256i sixteen(const uint8_t *from)
{
    return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(const void *)from));
}

TARGET static inline __m256i combined(const uint8_t *one, const uint8_t *other, int sign)
{
    if (sign == 0)
        return sixteen(one);
    return sign > 0 ? _mm256_add_epi16(sixteen(one), sixteen(other)) : _mm256_sub_epi16(sixteen(one), sixteen(other));
}

/* The bytes of the left factor's row and of the right one's column of a block. */
static inline const uint8_t *left_at(const product *the, const place *at, int block, Py_ssize_t row)
{
    row += block / 2 * at->rows;
    return the->left + (row / STRIP * the->chunks + at->chunk + block % 2 * at->deep) * TILE + row % STRIP * CHUNK;
}

static inline const uint8_t *right_at(const product *the, const place *at, int block, Py_ssize_t column)
{
    return the->right + ((column + block % 2 * at->columns) / STRIP * the->chunks + at->chunk + block / 2 * at->deep) * TILE;
}

TARGET static inline int32_t summed(__m256i eight)
{
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
}

TARGET static inline __attribute__((always_inline)) void widen_rows(
    const product *the, const place *at, const blocks *from, int sign, Py_ssize_t first, Py_ssize_t rows, widened *to)
{
    for (Py_ssize_t row = 0; row < rows; row++) {
        const uint8_t *one = left_at(the, at, from->first, first + row), *other = left_at(the, at, from->second, first + row);
        __m256i twice = _mm256_setzero_si256();
        for (Py_ssize_t i = 0; i < at->deep; i++)
            for (int j = 0; j < CHUNK; j += 16) {
                const Py_ssize_t k = i * TILE + j;
                const __m256i values = combined(one + k, other + k, sign);
                _mm256_store_si256((__m256i *)(void *)(to->rows[row] + i * CHUNK + j), values);
                twice = _mm256_add_epi32(twice, _mm256_madd_epi16(values, _mm256_shuffle_epi32(values, 0xb1)));
            }
        to->row_sums[row] = summed(twice) / 2;
    }
}

/* Of four bytes a column the first two and the last two, each beside those of the next columns. */
TARGET static inline __attribute__((always_inline)) void widen_columns(
    const product *the, const place *at, const blocks *from, int sign, Py_ssize_t column, widened *to)
{
    const uint8_t *one = right_at(the, at, from->first, column), *other = right_at(the, at, from->second, column);
    __m256i *next = (__m256i *)(void *)to->columns, sums[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
    for (Py_ssize_t k = 0; k < at->deep * TILE; k += 4 * STRIP, next += 4)
        for (int half = 0; half < 2; half++) {
            const Py_ssize_t here = k + half * 2 * STRIP, beside = here + STRIP;
            const __m256 four = _mm256_castsi256_ps(combined(one + here, other + here, sign));
            const __m256 others = _mm256_castsi256_ps(combined(one + beside, other + beside, sign));
            const __m256i first = _mm256_permute4x64_epi64(_mm256_castps_si256(_mm256_shuffle_ps(four, others, 0x88)), 0xd8);
            const __m256i last = _mm256_permute4x64_epi64(_mm256_castps_si256(_mm256_shuffle_ps(four, others, 0xdd)), 0xd8);
            _mm256_store_si256(next + half, first);
            _mm256_store_si256(next + 2 + half, last);
            sums[half] = _mm256_add_epi32(sums[half], _mm256_madd_epi16(first, last));
        }
    for (int half = 0; half < 2; half++)
        _mm256_store_si256((__m256i *)(void *)to->column_sums + half, sums[half]);
}

/* Call with a sign that the compiler knows. */
#define BY_SIGN(call, the, at, from, ...) \
    if ((from)->sign == 0) \
        call(the, at, from, 0, __VA_ARGS__); \
    else if ((from)->sign > 0) \
        call(the, at, from, 1, __VA_ARGS__); \
    else \
        call(the, at, from, -1, __VA_ARGS__);

/* Four products a column and row, `i` of those in the registers, `next` in memory. Compilers were seen to keep sums in
 * memory instead. */
#define ROW_STEP(i, next) \
    __asm__("vpbroadcastd %[x01], %[a]\n\t" \
            "vpbroadcastd %[x23], %[b]\n\t" \
            "vpaddw %[l0], %[a], %[t]\n\t" \
            "vpaddw %[l1], %[a], %[a]\n\t" \
            "vpaddw %[f0], %[b], %[u]\n\t" \
            "vpaddw %[f1], %[b], %[b]\n\t" \
            "vpmaddwd %[u], %[t], %[t]\n\t" \
            "vpmaddwd %[b], %[a], %[a]\n\t" \
            "vpaddd %[t], %[one], %[one]\n\t" \
            "vpaddd %[a], %[other], %[other]" \
            : [one] "+&x"(one##i), [other] "+&x"(other##i), [a] "=&x"(a), [b] "=&x"(b), [t] "=&x"(t), [u] "=&x"(u) \
            : [x01] "m"(*(const int32_t *)(const void *)(row + i * DEPTH + next)), \
              [x23] "m"(*(const int32_t *)(const void *)(row + i * DEPTH + next + 2)), [f0] "x"(f0), [f1] "x"(f1), \
              [l0] "x"(l0), [l1] "x"(l1));
#define ROW_START(i, _) \
    const __m256i of##i = _mm256_set1_epi32(own[i]); \
    __m256i one##i = _mm256_sub_epi32(left, of##i), other##i = _mm256_sub_epi32(right, of##i);
#define ADD_ROW(i, _) \
    to[2 * i] = _mm256_add_epi32(to[2 * i], one##i); \
    to[2 * i + 1] = _mm256_add_epi32(to[2 * i + 1], other##i);
#define SUBTRACT_ROW(i, _) \
    to[2 * i] = _mm256_sub_epi32(to[2 * i], one##i); \
    to[2 * i + 1] = _mm256_sub_epi32(to[2 * i + 1], other##i);
#define ALL_ROWS(of, ...) of(0, __VA_ARGS__) of(1, __VA_ARGS__) of(2, __VA_ARGS__) of(3, __VA_ARGS__)
#define FOUR(next) \
    { \
        const __m256i f0 = _mm256_load_si256(at + next), f1 = _mm256_load_si256(at + next + 1); \
        const __m256i l0 = _mm256_load_si256(at + next + 2), l1 = _mm256_load_si256(at + next + 3); \
        ALL_ROWS(ROW_STEP, next) \
    }

/* Sum HEIGHT rows by STRIP columns, add them to one place, and add them to another or, for -1, subtract them there. */
TARGET static inline void sum_eights(
    const int16_t *row, const int32_t *own, const widened *from, Py_ssize_t eights, __m256i *to, __m256i *other, int sign)
{
    const __m256i *at = (const __m256i *)(const void *)from->columns;
    const __m256i *theirs = (const __m256i *)(const void *)from->column_sums;
    const __m256i left = _mm256_sub_epi32(_mm256_setzero_si256(), theirs[0]);
    const __m256i right = _mm256_sub_epi32(_mm256_setzero_si256(), theirs[1]);
    __m256i a, b, t, u;
    ALL_ROWS(ROW_START, 0)
    for (; eights; eights--, row += 8, at += 8) {
        FOUR(0)
        FOUR(4)
    }
    ALL_ROWS(ADD_ROW, 0)
    to = other;
    if (sign > 0) {
        ALL_ROWS(ADD_ROW, 0)
    } else if (sign < 0) {
        ALL_ROWS(SUBTRACT_ROW, 0)
    }
}

/* Blocks of HEIGHT rows of a part of the total. */
static inline Py_ssize_t heights(const product *the)
{
    return (the->last_row - the->first_row + HEIGHT - 1) / HEIGHT;
}

/* Where the sums of HEIGHT rows by STRIP columns are, of a place's block of four. */
static inline __m256i *sums_at(
    const product *the, const place *at, int block, Py_ssize_t row, Py_ssize_t column, widened *wide)
{
    row += block / 2 * at->rows - the->first_row;
    column += block % 2 * at->columns - the->first_column;
    return (__m256i *)(void *)wide->total[column / STRIP * heights(the) + row / HEIGHT];
}

/* Where the rows of a strip of columns end: a diagonal part has nothing below its squares of STRIP. */
static inline Py_ssize_t end_of(const product *the, Py_ssize_t bottom, Py_ssize_t column)
{
    return the->is_diagonal && column + STRIP < bottom ? column + STRIP : bottom;
}

/* Make one product and add it. */
TARGET static void take(const product *the, const place *at, const step *step, widened *wide)
{
    const blocks *to = &step->total;
    for (Py_ssize_t top = at->row; top < at->row + at->rows; top += TALL) {
        const Py_ssize_t left = at->row + at->rows - top, bottom = top + (left < TALL ? left : TALL);
        BY_SIGN(widen_rows, the, at, &step->left, top, bottom - top, wide)
        for (Py_ssize_t column = at->column; column < at->column + at->columns; column += STRIP) {
            const Py_ssize_t end = end_of(the, bottom, column);
            if (top >= end)
                continue;
            BY_SIGN(widen_columns, the, at, &step->right, column, wide)
            __m256i *sums = sums_at(the, at, to->first, top, column, wide);
            __m256i *others = sums_at(the, at, to->second, top, column, wide);
            for (Py_ssize_t row = 0; row < end - top; row += HEIGHT, sums += 2 * HEIGHT, others += 2 * HEIGHT)
                sum_eights(wide->rows[row], wide->row_sums + row, wide, at->deep * CHUNK / 8, sums, others, to->sign);
        }
    }
}

/* Add a part's sums to the total. */
TARGET static void add_total(const product *the, const widened *wide)
{
    for (Py_ssize_t i = 0; i < heights(the); i++)
        for (Py_ssize_t column = the->first_column; column < the->last_column; column += STRIP) {
            const int32_t (*from)[STRIP] = wide->total[(column - the->first_column) / STRIP * heights(the) + i];
            const Py_ssize_t first = the->first_row + i * HEIGHT, end = end_of(the, the->last_row, column);
            const Py_ssize_t left = the->last_column - column, columns = left < STRIP ? left : STRIP;
            for (Py_ssize_t row = first; row < first + HEIGHT && row < end; row++)
                add_row(the, from[row - first], row, column, columns);
        }
}

TARGET static void multiply_avx2(const product *the, void *room)
{
    widened *wide = (widened *)(((uintptr_t)room + 63) / 64 * 64);
    const Py_ssize_t rows = the->last_row - the->first_row, columns = the->last_column - the->first_column;
    const int is_above = !the->is_diagonal || the->first_column >= the->last_row - 1;
    place at = {the->first_row, the->first_column, 0, rows, columns, DEEP_AVX2};
    memset(wide->total, 0, (size_t)((columns + STRIP - 1) / STRIP * heights(the)) * sizeof *wide->total);
    if (is_above && rows % (2 * HEIGHT) == 0 && columns % (2 * STRIP) == 0) {
        const Py_ssize_t steps = sizeof strassen / sizeof *strassen;
        at.rows /= 2;
        at.columns /= 2;
        for (; at.chunk + 2 * DEEP_AVX2 <= the->chunks; at.chunk += 2 * DEEP_AVX2)
            for (const step *next = strassen; next < strassen + steps; next++)
                take(the, &at, next, wide);
        at.rows = rows;
        at.columns = columns;
    }
    for (; at.chunk < the->chunks; at.chunk += at.deep) {
        at.deep = the->chunks - at.chunk < DEEP_AVX2 ? the->chunks - at.chunk : DEEP_AVX2;
        take(the, &at, &whole, wide);
    }
    add_total(the, wide);
}
