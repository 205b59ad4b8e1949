/* Coefficients to pixels, with the arithmetic of libjpeg-turbo's "slow" integer transform (jidctint.c, which is C.
 * Loeffler, A. Ligtenberg, G. S. Moschytz: Practical fast 1-D DCT algorithms with 11 multiplications. ICASSP 1989) and of
 * its colour conversion (jdcolor.c): the same bits. Two blocks at a time, one in each half of a 256-bit vector. */
#include <immintrin.h>

#define AVX2 __attribute__((target("avx2")))
#define MOST_INSIDE 8191 /* of what is transformed: four of them are added in 16 bits */
#define MOST_OUTSIDE 511 /* beyond it libjpeg's table of clamped values starts anew */

typedef __m256i vec;

/* Factors of 2**13, for the sums of products of two neighbours. */
#define PAIR(a, b) _mm256_set1_epi32((int)((uint32_t)(uint16_t)(a) | (uint32_t)(uint16_t)(b) << 16))
#define FIX(number) ((int)((number) * 8192 + 0.5))

typedef struct {
    vec low, high; /* of 8 numbers in each half the first four and the last four, in 32 bits */
} wide;

AVX2 static inline wide products(vec one, vec other, vec factors)
{
    return (wide){_mm256_madd_epi16(_mm256_unpacklo_epi16(one, other), factors),
                  _mm256_madd_epi16(_mm256_unpackhi_epi16(one, other), factors)};
}

AVX2 static inline wide plus(wide a, wide b)
{
    return (wide){_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)};
}

AVX2 static inline wide minus(wide a, wide b)
{
    return (wide){_mm256_sub_epi32(a.low, b.low), _mm256_sub_epi32(a.high, b.high)};
}

#define NARROW(a, bits) _mm256_packs_epi32(_mm256_srai_epi32((a).low, bits), _mm256_srai_epi32((a).high, bits))
#define ENDS(first, last, even, odd, bits) \
    x[first] = NARROW(plus(even, odd), bits); \
    x[last] = NARROW(minus(even, odd), bits)

/* The transform of each column of eight rows, rounded at `bits`. */
#define TRANSFORMED(bits) \
    do { \
        const vec half = _mm256_set1_epi32(1 << ((bits) - 1)); \
        const wide rounding = {half, half}; \
        const wide a0 = plus(products(x[0], x[4], PAIR(8192, 8192)), rounding); \
        const wide a1 = plus(products(x[0], x[4], PAIR(8192, -8192)), rounding); \
        const wide a2 = products(x[2], x[6], PAIR(FIX(0.541196100), FIX(0.541196100) - FIX(1.847759065))); \
        const wide a3 = products(x[2], x[6], PAIR(FIX(0.541196100) + FIX(0.765366865), FIX(0.541196100))); \
        const vec s3 = _mm256_add_epi16(x[7], x[3]), s4 = _mm256_add_epi16(x[5], x[1]); \
        const wide z3 = products(s3, s4, PAIR(FIX(1.175875602) - FIX(1.961570560), FIX(1.175875602))); \
        const wide z4 = products(s3, s4, PAIR(FIX(1.175875602), FIX(1.175875602) - FIX(0.390180644))); \
        const wide b0 = plus(products(x[7], x[1], PAIR(FIX(0.298631336) - FIX(0.899976223), -FIX(0.899976223))), z3); \
        const wide b3 = plus(products(x[7], x[1], PAIR(-FIX(0.899976223), FIX(1.501321110) - FIX(0.899976223))), z4); \
        const wide b1 = plus(products(x[5], x[3], PAIR(FIX(2.053119869) - FIX(2.562915447), -FIX(2.562915447))), z4); \
        const wide b2 = plus(products(x[5], x[3], PAIR(-FIX(2.562915447), FIX(3.072711026) - FIX(2.562915447))), z3); \
        const wide e0 = plus(a0, a3), e3 = minus(a0, a3), e1 = plus(a1, a2), e2 = minus(a1, a2); \
        ENDS(0, 7, e0, b3, bits); \
        ENDS(1, 6, e1, b2, bits); \
        ENDS(2, 5, e2, b1, bits); \
        ENDS(3, 4, e3, b0, bits); \
    } while (0)

/* Columns for rows, in each half. */
AVX2 static inline void turn(vec x[8])
{
    vec a[8], b[8];
    for (int i = 0; i < 4; i++) {
        a[2 * i] = _mm256_unpacklo_epi16(x[2 * i], x[2 * i + 1]);
        a[2 * i + 1] = _mm256_unpackhi_epi16(x[2 * i], x[2 * i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; j++) {
            b[i + 2 * j] = _mm256_unpacklo_epi32(a[i + j], a[i + 2 + j]);
            b[i + 2 * j + 1] = _mm256_unpackhi_epi32(a[i + j], a[i + 2 + j]);
        }
    for (int i = 0; i < 4; i++) {
        x[2 * i] = _mm256_unpacklo_epi64(b[i], b[i + 4]);
        x[2 * i + 1] = _mm256_unpackhi_epi64(b[i], b[i + 4]);
    }
}

AVX2 static inline vec larger(vec most, const vec x[8])
{
    for (int i = 0; i < 8; i++)
        most = _mm256_max_epu16(most, _mm256_abs_epi16(x[i]));
    return most;
}

AVX2 static inline int is_above(vec most, int limit)
{
    const vec above = _mm256_subs_epu16(most, _mm256_set1_epi16((short)limit));
    return !_mm256_testz_si256(above, above);
}

/* Blocks of a component, two after another and row by row of both, to its plane, whose rows are `stride` bytes apart;
 * returns 0 where numbers come up that a picture does not have, over which decoders differ. */
AVX2 static int to_plane(const int16_t *coefficients, Py_ssize_t blocks, Py_ssize_t across, uint8_t *plane, Py_ssize_t stride)
{
    vec inside = _mm256_setzero_si256(), outside = inside;
    const vec middle = _mm256_set1_epi8((char)128);
    for (Py_ssize_t block = 0; block < blocks; block += 2, coefficients += 128) {
        vec x[8];
        for (int i = 0; i < 8; i++)
            x[i] = _mm256_loadu_si256((const vec *)(coefficients + 16 * i));
        TRANSFORMED(11);
        inside = larger(inside, x);
        turn(x);
        TRANSFORMED(18);
        outside = larger(outside, x);
        turn(x);
        for (Py_ssize_t half = 0; half < 2 && block + half < blocks; half++) {
            uint8_t *at = plane + (block + half) / across * 8 * stride + (block + half) % across * 8;
            for (int i = 0; i < 8; i += 2) {
                const vec rows = _mm256_add_epi8(_mm256_packs_epi16(x[i], x[i + 1]), middle);
                const __m128i two = half ? _mm256_extracti128_si256(rows, 1) : _mm256_castsi256_si128(rows);
                _mm_storel_epi64((__m128i *)(at + i * stride), two);
                _mm_storeh_pd((double *)(at + (i + 1) * stride), _mm_castsi128_pd(two));
            }
        }
    }
    return !is_above(inside, MOST_INSIDE) && !is_above(outside, MOST_OUTSIDE);
}

/* 16 pixels of Y, Cb and Cr to R, G and B: what 2**-16 times 91881 Cr, -22554 Cb - 46802 Cr and 116130 Cb are, rounded. */
AVX2 static inline void convert(const uint8_t *planes, Py_ssize_t plane, __m128i found[3])
{
    const vec one = _mm256_set1_epi16(1), centre = _mm256_set1_epi16(128), half = _mm256_set1_epi32(1 << 15);
    const vec factors = _mm256_set1_epi32((int)((uint32_t)(uint16_t)-22554 | (uint32_t)18734 << 16));
    vec y = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)planes));
    vec b = _mm256_sub_epi16(_mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(planes + plane))), centre);
    vec r = _mm256_sub_epi16(_mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(planes + 2 * plane))), centre);
    vec low = _mm256_madd_epi16(_mm256_unpacklo_epi16(b, r), factors), high = _mm256_madd_epi16(_mm256_unpackhi_epi16(b, r), factors);
    low = _mm256_srai_epi32(_mm256_add_epi32(low, half), 16);
    high = _mm256_srai_epi32(_mm256_add_epi32(high, half), 16);
    vec green = _mm256_add_epi16(y, _mm256_sub_epi16(_mm256_packs_epi32(low, high), r));
    vec red = _mm256_mulhi_epi16(_mm256_add_epi16(r, r), _mm256_set1_epi16(26345));
    vec blue = _mm256_mulhi_epi16(_mm256_add_epi16(b, b), _mm256_set1_epi16(-14942));
    red = _mm256_add_epi16(_mm256_srai_epi16(_mm256_add_epi16(red, one), 1), _mm256_add_epi16(y, r));
    blue = _mm256_add_epi16(_mm256_srai_epi16(_mm256_add_epi16(blue, one), 1), _mm256_add_epi16(y, _mm256_add_epi16(b, b)));
    const vec colours[3] = {red, green, blue};
    for (int i = 0; i < 3; i++) {
        const vec packed = _mm256_permute4x64_epi64(_mm256_packus_epi16(colours[i], colours[i]), 0x08);
        found[i] = _mm256_castsi256_si128(packed);
    }
}

/* Planes of Y, Cb and Cr, with room for 16 bytes past each row, to rows of R, G and B. */
AVX2 static void to_colours(
    const uint8_t *planes, Py_ssize_t stride, Py_ssize_t plane, uint8_t *row, Py_ssize_t height, Py_ssize_t width)
{
    for (Py_ssize_t y = 0; y < height; y++, planes += stride, row += width)
        for (Py_ssize_t x = 0; x < width; x += 16) {
            __m128i found[3];
            convert(planes + x, plane, found);
            for (int i = 0; i < 3; i++)
                if (width - x >= 16)
                    _mm_storeu_si128((__m128i *)(row + i * height * width + x), found[i]);
                else
                    memcpy(row + i * height * width + x, &found[i], (size_t)(width - x));
        }
}
