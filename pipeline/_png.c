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

#include "_batch.h"
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

/* Memory for two lines and what may be read behind them; NULL where there is none. */
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

/* Decode what can be decoded here; 0 where there is no memory. */
static int decode_all(batch *all, shape *the, const library *deflate)
{
    const size_t wanted = (size_t)filtered_bytes(the);
    byte *filtered = NULL, *row = all->out.buf;
    void *own = NULL;
    int enough = 1;
    the->lines = NULL;
    for (Py_ssize_t i = 0; i < all->count && enough; i++, row += the->height * length_of(the)) {
        const byte *png = all->views[i].buf;
        Py_ssize_t length = 0, start = png_data(png, all->views[i].len, the, &length);
        if (start == 0)
            continue;
        if (own == NULL) { /* for the first that needs it: where there are none, they cost nothing */
            filtered = calloc(wanted + SLACK, 1);
            the->lines = make_lines(the);
            own = deflate->make();
            enough = filtered != NULL && the->lines != NULL && own != NULL;
        }
        size_t made = 0;
        if (enough && deflate->inflate(own, png + start, (size_t)length, filtered, wanted, &made) == 0 && made == wanted)
            all->left[i] = !restore_all(filtered, row, the);
    }
    if (own != NULL)
        deflate->end(own);
    free(the->lines);
    free(filtered);
    return enough;
}

static PyObject *rows(PyObject *module, PyObject *arguments)
{
    PyObject *pictures, *result = NULL;
    batch all = {0};
    shape the;
    unsigned long long make, inflate, end;
    if (!PyArg_ParseTuple(arguments, "Ow*nnn(KKK)", &pictures, &all.out, &the.height, &the.width, &the.channels, &make, &inflate, &end))
        return NULL;
    const library deflate = {(void *(*)(void))(uintptr_t)make,
                             (int (*)(void *, const void *, size_t, void *, size_t, size_t *))(uintptr_t)inflate,
                             (void (*)(void *))(uintptr_t)end};
    if (sizes_are_sound(the.height, the.width, the.channels) && begin_batch(&all, pictures, the.height * length_of(&the))) {
        int enough;
        Py_BEGIN_ALLOW_THREADS
        enough = decode_all(&all, &the, &deflate);
        Py_END_ALLOW_THREADS
        result = enough ? indices_left(&all) : PyErr_NoMemory();
    }
    end_batch(&all);
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
