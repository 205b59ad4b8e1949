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

#include "_pixels.h"

#define SQUARES (1 << 16) /* values whose squares are summed in int32 */

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
    {"planes", planes, METH_VARARGS, "planes(pixels, out, count, channels)"},
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
