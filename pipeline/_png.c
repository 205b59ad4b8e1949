/* PNG straight into rows, many in one call and without the interpreter lock. `png.py` says what for.
 *
 * Every function checks the lengths of its buffers against the sizes that it is told before it touches them, and
 * arithmetic on sizes is bounded by SIDE_LIMIT first: nothing here depends on what a file holds.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "_pixels.h"
#include "_scanlines.h"

/* What a picture is to be, and memory for two of its lines. */
typedef struct {
    Py_ssize_t height, width, channels;
    byte *lines;
} shape;

static Py_ssize_t length_of(const shape *the)
{
    return the->width * the->channels;
}

/* Bytes of all filtered lines: each has its filter in front of it. */
static Py_ssize_t filtered_bytes(const shape *the)
{
    return the->height * (length_of(the) + 1);
}

/* Zeros for the line above the first; NULL where there is no memory. */
static byte *make_lines(const shape *the)
{
    return calloc((size_t)(2 * (length_of(the) + SLACK)), 1);
}

/* Undo the filters of a whole picture, which SLACK bytes follow; returns whether they are known. */
static int restore_all(const byte *filtered, byte *out, const shape *the)
{
    const Py_ssize_t length = length_of(the);
    byte *line = the->lines, *above = the->lines + length + SLACK;
    memset(above, 0, (size_t)(length + SLACK));
    for (Py_ssize_t y = 0; y < the->height; y++) /* first, so that nothing is written of what is no picture */
        if (filtered[y * (length + 1)] >= FILTERS)
            return 0;
    for (Py_ssize_t y = 0; y < the->height; y++, filtered += length + 1) {
        restore(filtered[0], filtered + 1, above, line, length, the->channels);
        spread(line, out + y * the->width, the->width, the->height * the->width, the->channels);
        byte *swapped = line;
        line = above;
        above = swapped;
    }
    return 1;
}

static PyObject *unfilter(PyObject *module, PyObject *arguments)
{
    Py_buffer filtered, out;
    shape the;
    PyObject *result = NULL;
    if (!PyArg_ParseTuple(arguments, "y*w*nnn", &filtered, &out, &the.height, &the.width, &the.channels))
        return NULL;
    if (sizes_are_sound(the.height, the.width, the.channels) && length_is(&filtered, filtered_bytes(&the) + SLACK, "the data")
        && length_is(&out, the.height * length_of(&the), "the row")) {
        int known = 0;
        Py_BEGIN_ALLOW_THREADS
        the.lines = make_lines(&the);
        if (the.lines != NULL)
            known = restore_all(filtered.buf, out.buf, &the);
        free(the.lines);
        Py_END_ALLOW_THREADS
        result = the.lines == NULL ? PyErr_NoMemory() : PyBool_FromLong(known);
    }
    PyBuffer_Release(&filtered);
    PyBuffer_Release(&out);
    return result;
}

/* libdeflate, by the addresses of three of its functions. */
typedef struct {
    void *(*make)(void);
    int (*inflate)(void *own, const void *in, size_t size, void *out, size_t room, size_t *made);
    void (*end)(void *own);
} library;

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
static Py_ssize_t png_data(const byte *png, Py_ssize_t size, const shape *the, Py_ssize_t *length)
{
    const byte kind[5] = {8, the->channels == 3 ? 2 : 0, 0, 0, 0};
    if (size < 33 + 12 + 12 || memcmp(png, "\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR", 16) != 0)
        return 0;
    if (number(png + 16, 4) != (unsigned long)the->width || number(png + 20, 4) != (unsigned long)the->height)
        return 0;
    if (memcmp(png + 24, kind, 5) != 0 || crc32_of(png + 12, 17) != number(png + 29, 4))
        return 0;
    if (number(png + 33, 4) > (unsigned long)(size - 33 - 12 - 12) || memcmp(png + 37, "IDAT", 4) != 0)
        return 0;
    *length = (Py_ssize_t)number(png + 33, 4);
    return memcmp(png + 41 + *length + 4 + 4, "IEND", 4) == 0 ? 41 : 0;
}

/* Decode what can be decoded here, and say what is left; 0 where there is no memory. */
static int decode_all(const Py_buffer *pictures, Py_ssize_t count, byte *rows, byte *left, shape *the, const library *deflate)
{
    const size_t wanted = (size_t)filtered_bytes(the);
    byte *filtered = NULL;
    void *own = NULL;
    int enough = 1;
    the->lines = NULL;
    for (Py_ssize_t i = 0; i < count && enough; i++) {
        Py_ssize_t length = 0, start = png_data(pictures[i].buf, pictures[i].len, the, &length);
        if (start == 0)
            continue;
        if (own == NULL) { /* for the first that needs it: where there are none, they cost nothing */
            filtered = calloc(wanted + SLACK, 1);
            the->lines = make_lines(the);
            own = deflate->make();
            enough = filtered != NULL && the->lines != NULL && own != NULL;
        }
        size_t made = 0;
        if (enough && deflate->inflate(own, (const byte *)pictures[i].buf + start, (size_t)length, filtered, wanted, &made) == 0
            && made == wanted)
            left[i] = !restore_all(filtered, rows + i * the->height * length_of(the), the);
    }
    if (own != NULL)
        deflate->end(own);
    free(the->lines);
    free(filtered);
    return enough;
}

static PyObject *indices_of(const byte *left, Py_ssize_t count)
{
    PyObject *found = PyList_New(0);
    for (Py_ssize_t i = 0; i < count && found != NULL; i++) {
        if (!left[i])
            continue;
        PyObject *index = PyLong_FromSsize_t(i);
        if (index == NULL || PyList_Append(found, index) < 0)
            Py_CLEAR(found);
        Py_XDECREF(index);
    }
    return found;
}

/* Take the buffers of all pictures; returns how many were taken, fewer with an exception set. */
static Py_ssize_t buffers_of(PyObject *pictures, Py_buffer *views, Py_ssize_t count)
{
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *picture = PySequence_GetItem(pictures, i);
        const int taken = picture == NULL ? -1 : PyObject_GetBuffer(picture, &views[i], PyBUF_SIMPLE);
        Py_XDECREF(picture);
        if (taken < 0)
            return i;
    }
    return count;
}

static PyObject *rows(PyObject *module, PyObject *arguments)
{
    PyObject *pictures, *result = NULL;
    Py_buffer out;
    shape the;
    unsigned long long make, inflate, end;
    if (!PyArg_ParseTuple(arguments, "Ow*nnn(KKK)", &pictures, &out, &the.height, &the.width, &the.channels, &make, &inflate, &end))
        return NULL;
    const library deflate = {(void *(*)(void))(uintptr_t)make,
                             (int (*)(void *, const void *, size_t, void *, size_t, size_t *))(uintptr_t)inflate,
                             (void (*)(void *))(uintptr_t)end};
    const Py_ssize_t count = PySequence_Size(pictures);
    if (count >= 0 && sizes_are_sound(the.height, the.width, the.channels)) {
        const Py_ssize_t one = the.height * length_of(&the);
        if (out.len / one != count || out.len % one != 0) {
            PyErr_Format(PyExc_ValueError, "the rows have %zd bytes and %zd of %zd bytes are needed", out.len, count, one);
        } else {
            Py_buffer *views = PyMem_Calloc((size_t)count + 1, sizeof *views);
            byte *left = PyMem_Malloc((size_t)count + 1);
            const Py_ssize_t taken = views == NULL || left == NULL ? -1 : buffers_of(pictures, views, count);
            if (taken < 0) {
                PyErr_NoMemory();
            } else if (taken == count) {
                int enough;
                memset(left, 1, (size_t)count);
                Py_BEGIN_ALLOW_THREADS
                enough = decode_all(views, count, out.buf, left, &the, &deflate);
                Py_END_ALLOW_THREADS
                result = enough ? indices_of(left, count) : PyErr_NoMemory();
            }
            for (Py_ssize_t i = 0; i < taken; i++)
                PyBuffer_Release(&views[i]);
            PyMem_Free(views);
            PyMem_Free(left);
        }
    }
    PyBuffer_Release(&out);
    return result;
}

static PyMethodDef functions[] = {
    {"rows", rows, METH_VARARGS, "rows(pictures, out, height, width, channels, libdeflate) -> indices of those left"},
    {"unfilter", unfilter, METH_VARARGS, "unfilter(filtered, out, height, width, channels) -> bool"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_png", NULL, 0, functions, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__png(void)
{
    return PyModule_Create(&definition);
}
