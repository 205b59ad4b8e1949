/* Pixels from one order of memory to another, without the interpreter lock. `pixels.py` says what for.
 *
 * Every function checks the lengths of its buffers against the sizes that it is told before it touches them, and
 * arithmetic on sizes is bounded by SIDE_LIMIT first: nothing here depends on what a file holds.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>
#include <stdint.h>
#include <string.h>

#define SIDE_LIMIT (1 << 26) /* of a side: the product of two sides and four channels stays below 2**62 */

#define SQUARES (1 << 16) /* values whose squares are summed in int32 */

typedef unsigned char byte;

/* Read `channels` and two sides; 0 with an exception set where they make no picture. */
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

/* The predictor of the PNG specification, 9.4: the neighbour nearest to left + above - corner, in that order. */
static inline byte paeth(int left, int above, int corner)
{
    int to_left = above - corner, to_above = left - corner, to_corner = to_left + to_above;
    to_left = to_left < 0 ? -to_left : to_left;
    to_above = to_above < 0 ? -to_above : to_above;
    to_corner = to_corner < 0 ? -to_corner : to_corner;
    int nearer = to_above < to_left ? above : left;
    int distance = to_above < to_left ? to_above : to_left;
    return (byte)(to_corner < distance ? corner : nearer);
}

/* One row of a PNG: `row` is `length` filtered bytes and becomes the pixels. Both rows have `step` zeros before them,
 * so that the first pixel has a left neighbour too. The filter is one of the five there are. */
static inline void restore(int filter, byte *restrict row, const byte *restrict above, Py_ssize_t length, const Py_ssize_t step)
{
    Py_ssize_t i;
    switch (filter) {
    case 1:
        for (i = 0; i < length; i++)
            row[i] = (byte)(row[i] + row[i - step]);
        break;
    case 2:
        for (i = 0; i < length; i++)
            row[i] = (byte)(row[i] + above[i]);
        break;
    case 3:
        for (i = 0; i < length; i++)
            row[i] = (byte)(row[i] + ((row[i - step] + above[i]) >> 1));
        break;
    case 4:
        for (i = 0; i < length; i++)
            row[i] = (byte)(row[i] + paeth(row[i - step], above[i], above[i - step]));
        break;
    }
}

/* Undo the filters of a whole picture; returns whether they are known. `rows` is room for two rows with four zeros
 * before each. */
static int restore_all(const byte *filtered, byte *out, byte *rows, Py_ssize_t height, Py_ssize_t width, Py_ssize_t channels)
{
    Py_ssize_t length = width * channels;
    byte *row = rows + 4, *above = rows + 4 + length + 4;
    for (Py_ssize_t y = 0; y < height; y++) /* first, so that nothing is written of what is no picture */
        if (filtered[y * (length + 1)] > 4)
            return 0;
    for (Py_ssize_t y = 0; y < height; y++, filtered += length + 1) {
        memcpy(row, filtered + 1, (size_t)length);
        if (channels == 3) /* constant steps, so that the compiler makes a loop of each */
            restore(filtered[0], row, above, length, 3);
        else
            restore(filtered[0], row, above, length, 1);
        spread(row, out + y * width, width, height * width, channels);
        byte *swapped = row;
        row = above;
        above = swapped;
    }
    return 1;
}

static PyObject *unfilter(PyObject *module, PyObject *arguments)
{
    Py_buffer filtered, out;
    Py_ssize_t height, width, channels;
    PyObject *result = NULL;
    if (!PyArg_ParseTuple(arguments, "y*w*nnn", &filtered, &out, &height, &width, &channels))
        return NULL;
    if (sizes_are_sound(height, width, channels) && length_is(&filtered, height * (width * channels + 1), "the data")
        && length_is(&out, height * width * channels, "the row")) {
        byte *rows = PyMem_Calloc((size_t)(2 * (width * channels + 4)), 1);
        if (rows == NULL) {
            PyErr_NoMemory();
        } else {
            int known;
            Py_BEGIN_ALLOW_THREADS
            known = restore_all(filtered.buf, out.buf, rows, height, width, channels);
            Py_END_ALLOW_THREADS
            PyMem_Free(rows);
            result = PyBool_FromLong(known);
        }
    }
    PyBuffer_Release(&filtered);
    PyBuffer_Release(&out);
    return result;
}

static PyObject *planes(PyObject *module, PyObject *arguments)
{
    Py_buffer pixels, out;
    Py_ssize_t count, channels;
    PyObject *result = NULL;
    if (!PyArg_ParseTuple(arguments, "y*w*nn", &pixels, &out, &count, &channels))
        return NULL;
    if (sizes_are_sound(count, 1, channels) && length_is(&pixels, count * channels, "the picture")
        && length_is(&out, count * channels, "the row")) {
        Py_BEGIN_ALLOW_THREADS
        spread(pixels.buf, out.buf, count, count, channels);
        Py_END_ALLOW_THREADS
        result = Py_NewRef(Py_None);
    }
    PyBuffer_Release(&pixels);
    PyBuffer_Release(&out);
    return result;
}

/* Bytes 0xFF that no 0x00 follows. */
static Py_ssize_t markers(const byte *at, const byte *end)
{
    Py_ssize_t found = 0;
    while (at < end && (at = memchr(at, 0xff, (size_t)(end - at))) != NULL) {
        at++;
        if (at == end || *at != 0)
            found++;
    }
    return found;
}

static PyObject *jpeg_markers(PyObject *module, PyObject *arguments)
{
    Py_buffer data;
    Py_ssize_t start, found;
    if (!PyArg_ParseTuple(arguments, "y*n", &data, &start))
        return NULL;
    if (start < 0)
        start = 0;
    Py_BEGIN_ALLOW_THREADS
    const byte *all = data.buf;
    found = markers(all + (start < data.len ? start : data.len), all + data.len);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&data);
    return PyLong_FromSsize_t(found);
}

static unsigned long number(const byte *at, int bytes)
{
    unsigned long value = 0;
    while (bytes-- > 0)
        value = value << 8 | *at++;
    return value;
}

static unsigned long crc32_of(const byte *at, int bytes)
{
    unsigned long value = 0xffffffff;
    while (bytes-- > 0) {
        value ^= *at++;
        for (int bit = 0; bit < 8; bit++)
            value = value >> 1 ^ (value & 1 ? 0xedb88320 : 0);
    }
    return value ^ 0xffffffff;
}

/* Where the data of a PNG lie that is one IHDR with a sound checksum, one IDAT and an IEND; 0 where it is another.
 * `headers.py` takes more kinds for plain; this is the one that nearly all programs write. */
static Py_ssize_t png_data(const byte *png, Py_ssize_t size, Py_ssize_t height, Py_ssize_t width, Py_ssize_t channels, Py_ssize_t *length)
{
    const byte kind[5] = {8, channels == 3 ? 2 : 0, 0, 0, 0};
    if (size < 33 + 12 + 12 || memcmp(png, "\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR", 16) != 0)
        return 0;
    if (number(png + 16, 4) != (unsigned long)width || number(png + 20, 4) != (unsigned long)height)
        return 0;
    if (memcmp(png + 24, kind, 5) != 0 || crc32_of(png + 12, 17) != number(png + 29, 4))
        return 0;
    if (number(png + 33, 4) > (unsigned long)(size - 33 - 12 - 12) || memcmp(png + 37, "IDAT", 4) != 0)
        return 0;
    *length = (Py_ssize_t)number(png + 33, 4);
    return memcmp(png + 41 + *length + 4 + 4, "IEND", 4) == 0 ? 41 : 0;
}

/* Whether these are Huffman tables of which no code is all ones: over others libjpeg's versions differ. */
static int codes_are_open(const byte *at, Py_ssize_t left)
{
    while (left > 0) {
        unsigned long taken = 0;
        Py_ssize_t count = 0;
        if (left < 17)
            return 0;
        for (int bits = 1; bits <= 16; bits++) {
            taken += (unsigned long)at[bits] << (16 - bits);
            count += at[bits];
        }
        if (taken >= 1 << 16 || left < 17 + count)
            return 0;
        at += 17 + count;
        left -= 17 + count;
    }
    return 1;
}

/* Whether a JPEG is sequential, of these sizes, has nothing but tables and a JFIF segment before its only scan, and no
 * marker after it but the end. So is what `headers.py` takes for plain. */
static int jpeg_is_plain(const byte *jpeg, Py_ssize_t size, Py_ssize_t height, Py_ssize_t width, Py_ssize_t channels)
{
    int frames = 0;
    Py_ssize_t at = 2;
    if (size < 4 || memcmp(jpeg, "\xff\xd8\xff", 3) != 0 || memcmp(jpeg + size - 2, "\xff\xd9", 2) != 0)
        return 0;
    while (at <= size - 4) {
        const byte *segment = jpeg + at;
        Py_ssize_t length = (Py_ssize_t)number(segment + 2, 2), following = at + 2 + length;
        if (segment[0] != 0xff || length < 2 || following > size)
            return 0;
        switch (segment[1]) {
        case 0xc4: /* tables: Huffman */
            if (!codes_are_open(segment + 4, length - 2))
                return 0;
            break;
        case 0xdb: /* and quantization */
            break;
        case 0xe0: /* JFIF */
            if (length != 16)
                return 0;
            break;
        case 0xc0:
        case 0xc1:
            if (length < 8 || frames++ > 0 || segment[4] != 8 || segment[9] != channels)
                return 0;
            if (number(segment + 5, 2) != (unsigned long)height || number(segment + 7, 2) != (unsigned long)width)
                return 0;
            break;
        case 0xda:
            return frames == 1 && following <= size - 2 && markers(jpeg + following, jpeg + size) == 1;
        default:
            return 0;
        }
        at = following;
    }
    return 0;
}

static PyObject *png_plain(PyObject *module, PyObject *arguments)
{
    Py_buffer data;
    Py_ssize_t height, width, channels, length = 0;
    PyObject *result = NULL;
    if (!PyArg_ParseTuple(arguments, "y*nnn", &data, &height, &width, &channels))
        return NULL;
    if (sizes_are_sound(height, width, channels)) {
        Py_ssize_t start = png_data(data.buf, data.len, height, width, channels, &length);
        result = start > 0 ? Py_BuildValue("nn", start, start + length) : Py_NewRef(Py_None);
    }
    PyBuffer_Release(&data);
    return result;
}

static PyObject *jpeg_plain(PyObject *module, PyObject *arguments)
{
    Py_buffer data;
    Py_ssize_t height, width, channels;
    PyObject *result = NULL;
    if (!PyArg_ParseTuple(arguments, "y*nnn", &data, &height, &width, &channels))
        return NULL;
    if (sizes_are_sound(height, width, channels)) {
        int plain;
        Py_BEGIN_ALLOW_THREADS
        plain = jpeg_is_plain(data.buf, data.len, height, width, channels);
        Py_END_ALLOW_THREADS
        result = PyBool_FromLong(plain);
    }
    PyBuffer_Release(&data);
    return result;
}

/* The sum of squares of a row of values, 128 subtracted, and to `third` that times the row: whole numbers below 2**53. */
FOR_AVX2_TOO static int64_t add_norms(const byte *row, Py_ssize_t size, double *third)
{
    int64_t square = 0;
    for (Py_ssize_t start = 0; start < size; start += SQUARES) {
        const Py_ssize_t end = size - start < SQUARES ? size : start + SQUARES;
        int32_t sum = 0;
        for (Py_ssize_t i = start; i < end; i++)
            sum += (row[i] - 128) * (row[i] - 128);
        square += sum;
    }
    const double factor = (double)square;
    for (Py_ssize_t i = 0; i < size; i++)
        third[i] += factor * (row[i] - 128);
    return square;
}

static PyObject *norms(PyObject *module, PyObject *arguments)
{
    Py_buffer rows, squares, third;
    PyObject *result = NULL;
    if (!PyArg_ParseTuple(arguments, "y*w*w*", &rows, &squares, &third))
        return NULL;
    const Py_ssize_t count = squares.len / (Py_ssize_t)sizeof(int64_t), size = third.len / (Py_ssize_t)sizeof(double);
    if (count < 1 || size < 1 || count > SIDE_LIMIT || size > SIDE_LIMIT) {
        PyErr_Format(PyExc_ValueError, "%zd rows of %zd values are too few or too many", count, size);
    } else if (length_is(&rows, count * size, "the rows") && length_is(&squares, count * (Py_ssize_t)sizeof(int64_t), "squares")
               && length_is(&third, size * (Py_ssize_t)sizeof(double), "third")) {
        Py_BEGIN_ALLOW_THREADS
        for (Py_ssize_t i = 0; i < count; i++)
            ((int64_t *)squares.buf)[i] = add_norms((const byte *)rows.buf + i * size, size, third.buf);
        Py_END_ALLOW_THREADS
        result = Py_NewRef(Py_None);
    }
    PyBuffer_Release(&rows);
    PyBuffer_Release(&squares);
    PyBuffer_Release(&third);
    return result;
}

static PyMethodDef functions[] = {
    {"unfilter", unfilter, METH_VARARGS, "unfilter(filtered, out, height, width, channels) -> bool"},
    {"planes", planes, METH_VARARGS, "planes(pixels, out, count, channels)"},
    {"png_plain", png_plain, METH_VARARGS, "png_plain(data, height, width, channels) -> (start, stop) or None"},
    {"jpeg_plain", jpeg_plain, METH_VARARGS, "jpeg_plain(data, height, width, channels) -> bool"},
    {"jpeg_markers", jpeg_markers, METH_VARARGS, "jpeg_markers(data, start) -> int"},
    {"norms", norms, METH_VARARGS, "norms(rows, squares, third)"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_pixels", NULL, 0, functions, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__pixels(void)
{
    return PyModule_Create(&definition);
}
