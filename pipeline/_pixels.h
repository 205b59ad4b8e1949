/* What the C of pixels shares: sizes that are sound, buffers that are as long as they say, and pixels to planes. */
#ifndef TILECOV_PIXELS_H
#define TILECOV_PIXELS_H

#define SIDE_LIMIT (1 << 26) /* of a side: the product of two sides and four channels stays below 2**62 */

typedef unsigned char byte;

/* Whether these make a picture; an exception is set where they do not. */
static int sizes_are_sound(Py_ssize_t height, Py_ssize_t width, Py_ssize_t channels)
{
    if (height < 1 || width < 1 || height > SIDE_LIMIT || width > SIDE_LIMIT || (channels != 1 && channels != 3)) {
        PyErr_Format(PyExc_ValueError, "%zd x %zd pixels of %zd channels are no picture", height, width, channels);
        return 0;
    }
    return 1;
}

static int length_is(const Py_buffer *view, Py_ssize_t wanted, const char *name)
{
    if (view->len != wanted) {
        PyErr_Format(PyExc_ValueError, "%s has %zd bytes and %zd are needed", name, view->len, wanted);
        return 0;
    }
    return 1;
}

/* Compiled twice, and the better one chosen when it is loaded: spreading is a quarter of the time with AVX2. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define FOR_AVX2_TOO __attribute__((target_clones("avx2", "default")))
#else
#define FOR_AVX2_TOO
#endif

/* Write `count` interleaved pixels to planes that lie `plane` bytes apart. */
FOR_AVX2_TOO static void spread(const byte *pixels, byte *out, Py_ssize_t count, Py_ssize_t plane, Py_ssize_t channels)
{
    if (channels == 1) {
        memcpy(out, pixels, (size_t)count);
        return;
    }
    byte *red = out, *green = out + plane, *blue = out + 2 * plane;
    for (Py_ssize_t i = 0; i < count; i++) {
        red[i] = pixels[3 * i];
        green[i] = pixels[3 * i + 1];
        blue[i] = pixels[3 * i + 2];
    }
}

/* A number stored with its highest byte first. */
static inline unsigned long number(const byte *at, int bytes)
{
    unsigned long value = 0;
    while (bytes-- > 0)
        value = value << 8 | *at++;
    return value;
}

#endif
