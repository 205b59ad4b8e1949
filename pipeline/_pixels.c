/* Pixels from one order of memory to another, without the interpreter lock. `pixels.py` says what for.
 *
 * Every function checks the lengths of its buffers against the sizes that it is told before it touches them, and
 * arithmetic on sizes is bounded by SIDE_LIMIT first: nothing here depends on what a file holds.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>
#include <string.h>

#define SIDE_LIMIT (1 << 26) /* of a side: the product of two sides and four channels stays below 2**62 */

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

/* Write `count` interleaved pixels to planes that lie `plane` bytes apart. */
static void spread(const byte *pixels, byte *out, Py_ssize_t count, Py_ssize_t plane, Py_ssize_t channels)
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

static PyObject *jpeg_markers(PyObject *module, PyObject *arguments)
{
    Py_buffer data;
    Py_ssize_t start, found = 0;
    if (!PyArg_ParseTuple(arguments, "y*n", &data, &start))
        return NULL;
    if (start < 0)
        start = 0;
    Py_BEGIN_ALLOW_THREADS
    const byte *all = data.buf, *at = all + (start < data.len ? start : data.len), *end = all + data.len;
    while (at < end && (at = memchr(at, 0xff, (size_t)(end - at))) != NULL) {
        at++;
        if (at == end || *at != 0)
            found++;
    }
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&data);
    return PyLong_FromSsize_t(found);
}

static PyMethodDef functions[] = {
    {"unfilter", unfilter, METH_VARARGS, "unfilter(filtered, out, height, width, channels) -> bool"},
    {"planes", planes, METH_VARARGS, "planes(pixels, out, count, channels)"},
    {"jpeg_markers", jpeg_markers, METH_VARARGS, "jpeg_markers(data, start) -> int"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_pixels", NULL, 0, functions, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__pixels(void)
{
    return PyModule_Create(&definition);
}
