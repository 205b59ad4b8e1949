/* The filters of PNG (W3C PNG specification, 9.2), undone a line at a time.
 *
 * A line is read from `in` and written to `out`, and what lies above it is in `above`; all three have SLACK bytes past
 * their ends that may be read, and `out` such that may be written. The first pixel has zeros to its left.
 */
#ifndef TILECOV_SCANLINES_H
#define TILECOV_SCANLINES_H

#include <string.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#define SLACK 4

enum { FILTER_NONE, FILTER_SUB, FILTER_UP, FILTER_AVERAGE, FILTER_PAETH, FILTERS };

/* Paeth's predictor (9.4): the neighbour nearest to left + above - corner, in that order. */
static inline unsigned char paeth(int left, int above, int corner)
{
    int to_left = above - corner, to_above = left - corner, to_corner = to_left + to_above;
    to_left = to_left < 0 ? -to_left : to_left;
    to_above = to_above < 0 ? -to_above : to_above;
    to_corner = to_corner < 0 ? -to_corner : to_corner;
    int nearer = to_above < to_left ? above : left;
    int distance = to_above < to_left ? to_above : to_left;
    return (unsigned char)(to_corner < distance ? corner : nearer);
}

static inline void
restore_up(const unsigned char *restrict in, const unsigned char *restrict above, unsigned char *restrict out, Py_ssize_t length)
{
    for (Py_ssize_t i = 0; i < length; i++)
        out[i] = (unsigned char)(in[i] + above[i]);
}

#ifdef __SSE2__

/* Three channels at a time: each pixel waits for the one before it, and so would each of its channels alone. */
static inline __m128i pixel(const unsigned char *at)
{
    int value;
    memcpy(&value, at, sizeof value);
    return _mm_cvtsi32_si128(value);
}

static inline void put(unsigned char *at, __m128i bytes)
{
    const int value = _mm_cvtsi128_si32(bytes);
    memcpy(at, &value, sizeof value); /* and one byte of what follows, which is written after it */
}

static inline __m128i magnitude(__m128i words)
{
    return _mm_max_epi16(words, _mm_sub_epi16(_mm_setzero_si128(), words));
}

static inline __m128i choose(__m128i which, __m128i yes, __m128i no)
{
    return _mm_or_si128(_mm_and_si128(which, yes), _mm_andnot_si128(which, no));
}

static void restore_rgb(int filter, const unsigned char *in, const unsigned char *above, unsigned char *out, Py_ssize_t length)
{
    const __m128i zero = _mm_setzero_si128(), ones = _mm_set1_epi8(1);
    __m128i left = zero, corner = zero; /* words where the filter is Paeth's, else bytes */
    switch (filter) {
    case FILTER_SUB:
        for (Py_ssize_t i = 0; i < length; i += 3)
            put(out + i, left = _mm_add_epi8(pixel(in + i), left));
        break;
    case FILTER_AVERAGE:
        for (Py_ssize_t i = 0; i < length; i += 3) {
            const __m128i up = pixel(above + i); /* the instruction rounds upwards */
            const __m128i half = _mm_sub_epi8(_mm_avg_epu8(left, up), _mm_and_si128(_mm_xor_si128(left, up), ones));
            put(out + i, left = _mm_add_epi8(pixel(in + i), half));
        }
        break;
    case FILTER_PAETH:
        for (Py_ssize_t i = 0; i < length; i += 3) {
            const __m128i up = _mm_unpacklo_epi8(pixel(above + i), zero), value = _mm_unpacklo_epi8(pixel(in + i), zero);
            __m128i to_left = _mm_sub_epi16(up, corner), to_up = _mm_sub_epi16(left, corner);
            const __m128i to_corner = magnitude(_mm_add_epi16(to_left, to_up));
            to_left = magnitude(to_left);
            to_up = magnitude(to_up);
            const __m128i least = _mm_min_epi16(_mm_min_epi16(to_left, to_up), to_corner);
            const __m128i other = choose(_mm_cmpeq_epi16(to_up, least), up, corner);
            left = _mm_add_epi8(value, choose(_mm_cmpeq_epi16(to_left, least), left, other));
            corner = up;
            put(out + i, _mm_packus_epi16(left, left));
        }
        break;
    }
}

#endif

/* One channel after the other, `step` of them. The filter is a constant, so that each has a loop of its own. */
static inline void restore_bytes(const int filter, const unsigned char *in, const unsigned char *above, unsigned char *out,
                                 Py_ssize_t length, const Py_ssize_t step)
{
    for (Py_ssize_t channel = 0; channel < step; channel++) {
        int left = 0, corner = 0;
        for (Py_ssize_t i = channel; i < length; i += step) {
            const int up = above[i];
            const int guess = filter == FILTER_SUB ? left : filter == FILTER_AVERAGE ? (left + up) >> 1 : paeth(left, up, corner);
            out[i] = (unsigned char)(in[i] + guess);
            left = out[i];
            corner = up;
        }
    }
}

/* Undo the filter of one line of `length` bytes, of one or three channels. */
static void restore(int filter, const unsigned char *in, const unsigned char *above, unsigned char *out, Py_ssize_t length,
                    Py_ssize_t channels)
{
    if (filter == FILTER_NONE)
        memcpy(out, in, (size_t)length);
    else if (filter == FILTER_UP)
        restore_up(in, above, out, length);
#ifdef __SSE2__
    else if (channels == 3)
        restore_rgb(filter, in, above, out, length);
#endif
    else if (filter == FILTER_SUB)
        restore_bytes(FILTER_SUB, in, above, out, length, channels);
    else if (filter == FILTER_AVERAGE)
        restore_bytes(FILTER_AVERAGE, in, above, out, length, channels);
    else
        restore_bytes(FILTER_PAETH, in, above, out, length, channels);
}

#endif
