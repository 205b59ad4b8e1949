/* The kernels of _exact.c for processors without int8 instructions: bytes become int16, of which AVX2 multiplies sixteen
 * at a time and sums them in pairs, twice as many as it multiplies numbers in float32. */

#define AVX2 __attribute__((target("avx2")))
#define HEIGHT 6 /* rows of the total whose sums the registers hold, STRIP columns of each */
#define TALL (42 * HEIGHT) /* rows at a time: of a left factor's they fill half of a second cache */
#define DEEP_AVX2 512 /* numbers to sum at a time: of STRIP columns they fill half of a first cache */

typedef struct {
    int16_t rows[TALL][DEEP_AVX2];
    int16_t columns[DEEP_AVX2 / 2][STRIP][2];
} widened;

AVX2 static inline void widen_rows(const product *the, Py_ssize_t first, Py_ssize_t rows, Py_ssize_t chunk, Py_ssize_t deep, widened *to)
{
    for (Py_ssize_t row = 0; row < rows; row++) {
        const uint8_t *from = the->left + ((first + row) / STRIP * the->chunks + chunk) * TILE + (first + row) % STRIP * CHUNK;
        for (Py_ssize_t i = 0; i < deep; i++)
            for (int j = 0; j < CHUNK; j += 16) {
                const __m128i bytes = _mm_loadu_si128((const __m128i *)(const void *)(from + i * TILE + j));
                _mm256_store_si256((__m256i *)(void *)(to->rows[row] + i * CHUNK + j), _mm256_cvtepi8_epi16(bytes));
            }
    }
}

/* Of four bytes a column the first two and the last two, each beside those of the next columns. */
AVX2 static inline void widen_columns(const product *the, Py_ssize_t column, Py_ssize_t chunk, Py_ssize_t deep, widened *to)
{
    const uint8_t *from = the->right + (column / STRIP * the->chunks + chunk) * TILE;
    __m256i *at = (__m256i *)(void *)to->columns;
    for (Py_ssize_t i = 0; i < deep * CHUNK / 4; i++, from += 4 * STRIP, at += 4)
        for (int half = 0; half < 2; half++) {
            const __m128i *bytes = (const __m128i *)(const void *)(from + half * 2 * STRIP);
            const __m256 one = _mm256_castsi256_ps(_mm256_cvtepi8_epi16(_mm_loadu_si128(bytes)));
            const __m256 other = _mm256_castsi256_ps(_mm256_cvtepi8_epi16(_mm_loadu_si128(bytes + 1)));
            const __m256i first = _mm256_castps_si256(_mm256_shuffle_ps(one, other, 0x88));
            const __m256i last = _mm256_castps_si256(_mm256_shuffle_ps(one, other, 0xdd));
            _mm256_store_si256(at + half, _mm256_permute4x64_epi64(first, 0xd8));
            _mm256_store_si256(at + 2 + half, _mm256_permute4x64_epi64(last, 0xd8));
        }
}

/* Sums of a row, `i` of those in the registers. Compilers were seen to keep them in memory instead. */
#define ROW_STEP(i) \
    __asm__("vpbroadcastd %[row], %[both]\n\t" \
            "vpmaddwd %[left], %[both], %[product]\n\t" \
            "vpaddd %[product], %[one], %[one]\n\t" \
            "vpmaddwd %[right], %[both], %[both]\n\t" \
            "vpaddd %[both], %[other], %[other]" \
            : [one] "+x"(one##i), [other] "+x"(other##i), [both] "=&x"(both), [product] "=&x"(multiplied) \
            : [row] "m"(*(const int32_t *)(const void *)(row + i * DEEP_AVX2)), [left] "x"(left), [right] "x"(right));
#define ROW_START(i) __m256i one##i = _mm256_setzero_si256(), other##i = _mm256_setzero_si256();
#define ROW_END(i) \
    _mm256_store_si256((__m256i *)(void *)sums[i], one##i); \
    _mm256_store_si256((__m256i *)(void *)sums[i] + 1, other##i);
#define ALL_ROWS(of) of(0) of(1) of(2) of(3) of(4) of(5)

/* Sum HEIGHT rows by STRIP columns. */
AVX2 static inline void sum_pairs(const int16_t *row, const widened *from, Py_ssize_t pairs, int32_t sums[HEIGHT][STRIP])
{
    const __m256i *at = (const __m256i *)(const void *)from->columns;
    __m256i both, multiplied;
    ALL_ROWS(ROW_START)
    for (; pairs; pairs--, row += 2, at += 2) {
        const __m256i left = _mm256_load_si256(at), right = _mm256_load_si256(at + 1);
        ALL_ROWS(ROW_STEP)
    }
    ALL_ROWS(ROW_END)
}

/* Add to HEIGHT rows of the total, or what is left of them, and STRIP columns. */
#define ADD_SUMS(type) \
    for (Py_ssize_t i = 0; i < rows; i++) { \
        type *to = (type *)the->total + (row + i) * the->stride + column; \
        if (columns >= STRIP) \
            for (int j = 0; j < STRIP; j++) \
                to[j] += sums[i][j]; \
        else \
            for (Py_ssize_t j = 0; j < columns; j++) \
                to[j] += sums[i][j]; \
    }

AVX2 static void multiply_avx2(const product *the, void *room)
{
    widened *wide = (widened *)(((uintptr_t)room + 63) / 64 * 64);
    _Alignas(64) int32_t sums[HEIGHT][STRIP];
    const Py_ssize_t item = the->wide ? sizeof(int64_t) : sizeof(int32_t);
    for (Py_ssize_t chunk = 0; chunk < the->chunks; chunk += DEEP_AVX2 / CHUNK) {
        const Py_ssize_t left = the->chunks - chunk, deep = left < DEEP_AVX2 / CHUNK ? left : DEEP_AVX2 / CHUNK;
        for (Py_ssize_t top = the->first_row; top < the->last_row; top += TALL) {
            const Py_ssize_t bottom = top + TALL < the->last_row ? top + TALL : the->last_row;
            widen_rows(the, top, bottom - top, chunk, deep, wide);
            for (Py_ssize_t column = the->first_column; column < the->last_column; column += STRIP) {
                const Py_ssize_t diagonal = (column / BAND + 1) * BAND, columns = the->last_column - column;
                const Py_ssize_t end = the->is_diagonal && diagonal < bottom ? diagonal : bottom;
                if (top < end)
                    widen_columns(the, column, chunk, deep, wide);
                for (Py_ssize_t row = top; row < end; row += HEIGHT) {
                    const Py_ssize_t rows = end - row < HEIGHT ? end - row : HEIGHT;
                    for (Py_ssize_t i = 0; i < rows; i++) /* while the sums are made, what they are added to comes */
                        _mm_prefetch((const char *)the->total + item * ((row + i) * the->stride + column), _MM_HINT_T0);
                    sum_pairs(wide->rows[row - top], wide, deep * CHUNK / 2, sums);
                    if (the->wide)
                        ADD_SUMS(int64_t)
                    else
                        ADD_SUMS(int32_t)
                }
            }
        }
    }
}
