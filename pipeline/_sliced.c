/* Products of float32 matrices by the int8 matrix units (AMX) of a CPU, without the interpreter lock. `sliced.py` says
 * what for and how; `_sliced.h` holds what is compiled for each kind of instructions.
 *
 * Every function checks the lengths of its buffers against the sizes that it is told before it touches them.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "_units.h"

#define SLICES 3
#define BLOCK 512 /* numbers with one scale, summed as integers: 256 * 127**2 * 512 + 2 * 127 * 128 * 512 < 2**31 */
#define STRIP_BYTES (BLOCK / CHUNK * SLICES * TILE)
#define ACROSS 256 /* columns at a time: their strips of a block stay in the second cache, and those of TALLEST rows */
#define TALLEST 256 /* rows of a total whose sums over blocks are kept at a time */
#define ROWS ((STRIP + BLOCK / CHUNK - 1) / (BLOCK / CHUNK)) /* of a tile that are added with each step */
#define SUM (STRIP * STRIP)
#define TOP_BITS 0x7efefeu /* of the significand of 127 * (2**16 + 2**8 + 1) = 0x7f7f7f, the largest with three digits */

typedef int32_t ints __attribute__((vector_size(32), aligned(4), may_alias));
typedef double doubles __attribute__((vector_size(64), aligned(8), may_alias));
typedef int32_t strip __attribute__((vector_size(64), aligned(4), may_alias));
#define STRIP_AT(from) (*(strip *)(from))
#define INTS(from) (*(const ints *)(from))

typedef struct {
    const uint8_t *left, *right;
    const double *scales, *right_scales;
    double *total;
    Py_ssize_t rows, depth, stride;
} factors;

typedef struct {
    double kept[TALLEST * ACROSS];
    int32_t sums[2][4 * SUM];
} room;
#define ROOM ((Py_ssize_t)sizeof(room) + 64) /* of any alignment */

typedef struct {
    const int32_t *sums;
    const double *row_scales, *scales;
    double *kept;
    Py_ssize_t rows;
} tile;

static Py_ssize_t blocks_of(Py_ssize_t depth)
{
    return (depth + BLOCK - 1) / BLOCK;
}

#ifdef HAS_UNITS
#ifdef __clang__ /* does not know the word, and takes them anyway */
#define WHOLE_VECTORS
#else
#define WHOLE_VECTORS ",prefer-vector-width=512"
#endif
#define TARGET \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,amx-tile,amx-int8" WHOLE_VECTORS)))
#define NAMED(name) name##_amx
#define OF_INTS(numbers) (doubles)_mm512_cvtepi32_pd((__m256i)(numbers))
#define BEGIN TILES_BEGIN
#define END TILES_END
#define CLEAR(sums) \
    _tile_zero(0); \
    _tile_zero(1); \
    _tile_zero(2); \
    _tile_zero(3);
/* Products of slices with the same weight are added up: 11, 12 + 21, 13 + 22 + 31, 23 + 32; 33 is below the rounding. */
#define STEP(left, right, sums) \
    _tile_loadd(4, left, CHUNK); \
    _tile_loadd(5, right, CHUNK); \
    _tile_dpbssd(0, 4, 5); \
    _tile_loadd(6, right + TILE, CHUNK); \
    _tile_dpbssd(1, 4, 6); \
    _tile_loadd(7, right + 2 * TILE, CHUNK); \
    _tile_dpbssd(2, 4, 7); \
    _tile_loadd(4, left + TILE, CHUNK); \
    _tile_dpbssd(1, 4, 5); \
    _tile_dpbssd(2, 4, 6); \
    _tile_dpbssd(3, 4, 7); \
    _tile_loadd(4, left + 2 * TILE, CHUNK); \
    _tile_dpbssd(2, 4, 5); \
    _tile_dpbssd(3, 4, 6);
#define STORE(sums) \
    _tile_stored(0, sums, CHUNK); \
    _tile_stored(1, sums + SUM, CHUNK); \
    _tile_stored(2, sums + 2 * SUM, CHUNK); \
    _tile_stored(3, sums + 3 * SUM, CHUNK);
#define FETCH(line) _mm_prefetch((const char *)(line), _MM_HINT_T1);
#include "_sliced.h"
#undef TARGET
#undef NAMED
#undef OF_INTS
#undef BEGIN
#undef END
#undef CLEAR
#undef STEP
#undef STORE
#undef FETCH
#endif

static inline void multiply_plainly(const uint8_t *left, const uint8_t *right, int32_t *sums)
{
    for (int one = 0; one < SLICES; one++)
        for (int other = 0; other < SLICES && one + other < 4; other++)
            for (int i = 0; i < STRIP; i++)
                for (int j = 0; j < STRIP; j++) {
                    const int8_t *row = (const int8_t *)left + one * TILE + i * CHUNK;
                    const int8_t *column = (const int8_t *)right + other * TILE + 4 * j;
                    int32_t sum = 0;
                    for (int k = 0; k < CHUNK; k++)
                        sum += row[k] * column[k / 4 * CHUNK + k % 4];
                    sums[(one + other) * SUM + i * STRIP + j] += sum;
                }
}

#define TARGET
#define NAMED(name) name##_plain
#define OF_INTS(numbers) __builtin_convertvector(numbers, doubles)
#define BEGIN
#define END
#define CLEAR(sums) memset(sums, 0, 4 * SUM * sizeof *sums);
#define STEP(left, right, sums) multiply_plainly(left, right, sums);
#define STORE(sums)
#define FETCH(line)
#include "_sliced.h"

typedef struct {
    const char *name;
    void (*multiply)(const factors *, Py_ssize_t, Py_ssize_t, room *);
    void (*cut_block)(
        const float *, Py_ssize_t, Py_ssize_t, Py_ssize_t, Py_ssize_t, float *, uint8_t *, double *, Py_ssize_t, Py_ssize_t);
} kernels;

static const kernels all[] = {
#ifdef HAS_UNITS
    {"amx", multiply_amx, cut_block_amx},
#endif
    {"plain", multiply_plain, cut_block_plain},
};

/* Whether this machine can run kernels of a kind. */
static int is_here(const kernels *kind)
{
    return strcmp(kind->name, "amx") != 0 || units_are_here();
}

#include "_kinds.h"

static PyObject *cut(PyObject *module, PyObject *arguments)
{
    Py_buffer source, slices, scales;
    Py_ssize_t stride, aside, depth, columns, whole, block, from, to;
    PyObject *result = NULL;
    if (!PyArg_ParseTuple(arguments, "y*nnnnw*w*nnnn", &source, &stride, &aside, &depth, &columns, &slices, &scales, &whole,
                          &block, &from, &to))
        return NULL;
    if (is_sound(depth, 1, "the depth") && is_sound(columns, 1, "the columns") && is_sound(whole, 1, "the whole depth")
        && is_sound(block, 0, "the block") && is_sound(from, 0, "the first column") && is_sound(to, from, "the end of columns")
        && reaches(&source, sizeof(float), depth, stride, columns, aside, "the factor")) {
        const Py_ssize_t strips = (columns + STRIP - 1) / STRIP, blocks = blocks_of(whole);
        if (to > columns || (from < to && from % STRIP != 0) || block > whole / BLOCK || depth > whole - block * BLOCK) {
            PyErr_Format(PyExc_ValueError, "columns %zd to %zd of %zd and %zd rows from block %zd on of %zd were asked for",
                         from, to, columns, depth, block, blocks);
        } else if (holds(&slices, strips * blocks * STRIP_BYTES, 1, "the slices")
                   && holds(&scales, strips * blocks * STRIP, sizeof(double), "the scales")) {
            float *copy = PyMem_Malloc(BLOCK * ACROSS * sizeof *copy);
            if (copy == NULL) {
                PyErr_NoMemory();
            } else {
                Py_BEGIN_ALLOW_THREADS
                for (Py_ssize_t column = from; column < to; column += ACROSS)
                    for (Py_ssize_t row = 0; row < depth; row += BLOCK) {
                        const Py_ssize_t at = column / STRIP * blocks + block + row / BLOCK;
                        best.cut_block(
                            (const float *)source.buf + row * stride + column * aside, stride, aside,
                            depth - row < BLOCK ? depth - row : BLOCK, to - column < ACROSS ? to - column : ACROSS, copy,
                            (uint8_t *)slices.buf + at * STRIP_BYTES, (double *)scales.buf + at * STRIP,
                            blocks * STRIP_BYTES, blocks * STRIP);
                    }
                Py_END_ALLOW_THREADS
                PyMem_Free(copy);
                result = Py_NewRef(Py_None);
            }
        }
    }
    PyBuffer_Release(&source);
    PyBuffer_Release(&slices);
    PyBuffer_Release(&scales);
    return result;
}

static PyObject *multiply(PyObject *module, PyObject *arguments)
{
    Py_buffer total, left, scales, right, right_scales, memory;
    Py_ssize_t columns, from, to;
    factors the;
    PyObject *result = NULL;
    if (!PyArg_ParseTuple(arguments, "w*ny*y*y*y*nnnnnw*", &total, &the.stride, &left, &scales, &right, &right_scales,
                          &the.rows, &the.depth, &columns, &from, &to, &memory))
        return NULL;
    if (is_sound(the.rows, 1, "the rows") && is_sound(the.depth, 1, "the depth") && is_sound(columns, 1, "the columns")
        && is_sound(from, 0, "the first column") && is_sound(to, from, "the end of columns")
        && reaches(&total, sizeof(double), the.rows, the.stride, columns, 1, "the total")) {
        const Py_ssize_t blocks = blocks_of(the.depth), strips = (the.rows + STRIP - 1) / STRIP * blocks;
        const Py_ssize_t beside = (columns + STRIP - 1) / STRIP * blocks;
        if (to > columns || (from < to && from % STRIP != 0)) {
            PyErr_Format(PyExc_ValueError, "columns %zd to %zd of %zd were asked for", from, to, columns);
        } else if (holds(&left, strips * STRIP_BYTES, 1, "the left factor")
                   && holds(&scales, strips * STRIP, sizeof(double), "the left scales")
                   && holds(&right, beside * STRIP_BYTES, 1, "the right factor")
                   && holds(&right_scales, beside * STRIP, sizeof(double), "the right scales")
                   && holds(&memory, ROOM, 1, "the room")) {
            the.left = left.buf;
            the.scales = scales.buf;
            the.right = right.buf;
            the.right_scales = right_scales.buf;
            the.total = total.buf;
            Py_BEGIN_ALLOW_THREADS
            best.multiply(&the, from, to, (room *)(((uintptr_t)memory.buf + 63) / 64 * 64));
            Py_END_ALLOW_THREADS
            result = Py_NewRef(Py_None);
        }
    }
    PyBuffer_Release(&total);
    PyBuffer_Release(&left);
    PyBuffer_Release(&scales);
    PyBuffer_Release(&right);
    PyBuffer_Release(&right_scales);
    PyBuffer_Release(&memory);
    return result;
}

static PyMethodDef functions[] = {
    CHOICE,
    {"cut", cut, METH_VARARGS,
     "cut(factor, stride, aside, depth, columns, slices, scales, whole, block, from, to)"},
    {"turn", turn, METH_VARARGS, "turn(slices, turned)"},
    {"multiply", multiply, METH_VARARGS,
     "multiply(total, stride, left, scales, right, scales, rows, depth, columns, from, to, room)"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_sliced", NULL, 0, functions, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__sliced(void)
{
    choose_kernels(NULL);
    PyObject *module = PyModule_Create(&definition);
    if (module == NULL)
        return NULL;
    if (PyModule_AddIntConstant(module, "ROOM", ROOM) < 0) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
