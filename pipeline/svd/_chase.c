/* Bulge chasing and the product of its reflectors with a slab, without the interpreter lock. `chase.py` and
 * `chase_reflectors.py` say what for, and do the same where no compiler was at hand.
 *
 * Every function checks the lengths of its buffers against the sizes that it is told before it touches them.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>
#include <float.h>
#include <math.h>
#include <sched.h>
#include <stdint.h>
#include <string.h>

#define SIZE_LIMIT (1 << 19) /* of each number: a product of three, 4 times as long and in bytes, stays below 2**63 */
#define COUPLINGS 10 /* numbers that go with four reflectors */
#define ROW_BYTES 192 /* of a strip: the 1.5 b rows that a step of a group touches stay in the first cache at b = 64 */
#define NEAR 8 /* sweeps that are chased together: at b = 64, what they touch is 1.5 MB */
#define SMALLEST (DBL_MIN / DBL_EPSILON) /* as in chase.py */

/* Wait till `steps` of a sweep are done; returns 0 where the number after the last sweep's says that there is no need. */
static int has_come(const int64_t *progress, Py_ssize_t sweep, int64_t steps, Py_ssize_t sweeps)
{
    int tries = 0;
    while (__atomic_load_n(progress + sweep, __ATOMIC_ACQUIRE) < steps) {
        if (__atomic_load_n(progress + sweeps, __ATOMIC_ACQUIRE) != 0)
            return 0;
        if (tries < 1000)
            tries++;
        else /* a step takes some microseconds, unless another program has the other core */
            sched_yield();
    }
    return 1;
}

_Static_assert(sizeof(Py_ssize_t) == 8, "sizes are multiplied");

typedef double wide __attribute__((vector_size(64), aligned(8), may_alias));
#define AT(array, i) (*(wide *)((array) + (i)))

#if defined(__x86_64__) && defined(__GNUC__)
#define HAS_KINDS /* of instruction sets */
#include <immintrin.h>

#define TARGET __attribute__((target("avx512f")))
#define NAMED(name) name##_avx512
#define VECTOR 64
#include "_kernels.h"
#undef TARGET
#undef NAMED
#undef VECTOR

#define TARGET __attribute__((target("avx2,fma")))
#define NAMED(name) name##_avx2
#define VECTOR 32
#include "_kernels.h"
#undef TARGET
#undef NAMED
#undef VECTOR
#endif

#define TARGET
#define NAMED(name) name##_plain
#define VECTOR 16
#include "_kernels.h"

typedef void chasing(
    double *, Py_ssize_t, Py_ssize_t, Py_ssize_t, Py_ssize_t, double *, double *, int64_t *, Py_ssize_t, Py_ssize_t);
typedef void applying(const void *, const void *, Py_ssize_t, Py_ssize_t, Py_ssize_t, void *, Py_ssize_t);
typedef void preparing(const void *, Py_ssize_t, Py_ssize_t, Py_ssize_t, void *, void *);

typedef struct {
    const char *name;
    chasing *chase;
    applying *apply[2]; /* of floats and of doubles */
    preparing *prepare[2];
} kernels;

#define KERNELS(kind) \
    {#kind, chase_##kind, {float_apply_##kind, double_apply_##kind}, {float_prepare_##kind, double_prepare_##kind}}

static const kernels all[] = {
#ifdef HAS_KINDS
    KERNELS(avx512),
    KERNELS(avx2),
#endif
    KERNELS(plain),
};

/* Whether this machine can run kernels of a kind. */
static int is_here(const kernels *kind)
{
#ifdef HAS_KINDS
    if (strcmp(kind->name, "avx512") == 0)
        return __builtin_cpu_supports("avx512f") != 0;
    if (strcmp(kind->name, "avx2") == 0)
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
    return 1;
}

#include "../_kinds.h"

/* Numbers too small to be normal are taken as zero while a strip is worked on: they would take a hundred times as long,
 * and there are many where eigenvectors have no part in some rows. */
#ifdef HAS_KINDS
#define FLUSHING unsigned int control = _mm_getcsr(); _mm_setcsr(control | 0x8040);
#define AS_BEFORE _mm_setcsr(control);
#else
#define FLUSHING
#define AS_BEFORE
#endif

/* Whether a buffer holds `count` numbers of `item` bytes; 0 with an exception set where not. */
static int holds(const Py_buffer *view, Py_ssize_t count, Py_ssize_t item, const char *name)
{
    if (view->len != count * item) {
        PyErr_Format(PyExc_ValueError, "%s has %zd bytes and %zd are needed", name, view->len, count * item);
        return 0;
    }
    return 1;
}

static int is_sound(Py_ssize_t number, Py_ssize_t least, const char *name)
{
    if (number < least || number > SIZE_LIMIT) {
        PyErr_Format(PyExc_ValueError, "%s is %zd and must be %zd to %d", name, number, least, SIZE_LIMIT);
        return 0;
    }
    return 1;
}

static PyObject *chase(PyObject *module, PyObject *arguments)
{
    Py_buffer matrix, kept, progress;
    Py_ssize_t size, reach, first, count, share, shares;
    PyObject *result = NULL;
    if (!PyArg_ParseTuple(
            arguments, "w*w*w*nnnnnn", &matrix, &kept, &progress, &size, &reach, &first, &count, &share, &shares))
        return NULL;
    if (is_sound(size, 3, "the size") && is_sound(reach, 1, "the width") && is_sound(first, 0, "the first sweep")
        && is_sound(count, 1, "the number of sweeps") && is_sound(share, 0, "the share") && is_sound(shares, 1, "shares")) {
        if (reach > size - 1 || first + count > size - 2) {
            PyErr_Format(PyExc_ValueError, "sweeps %zd to %zd of width %zd do not fit %zd rows", first, first + count, reach, size);
        } else {
            const Py_ssize_t steps = (size - 3 - first) / reach + 1;
            if (holds(&matrix, (size + reach) * 3 * reach, sizeof(double), "the matrix")
                && holds(&kept, steps * count * reach, sizeof(double), "what is kept")
                && holds(&progress, size - 1, sizeof(int64_t), "the progress")) {
                double *room = PyMem_Calloc((size_t)(5 * reach), sizeof(double));
                if (room == NULL) {
                    PyErr_NoMemory();
                } else {
                    Py_BEGIN_ALLOW_THREADS
                    best.chase(matrix.buf, size, reach, first, count, kept.buf, room, progress.buf, share, shares);
                    Py_END_ALLOW_THREADS
                    PyMem_Free(room);
                    result = Py_NewRef(Py_None);
                }
            }
        }
    }
    PyBuffer_Release(&matrix);
    PyBuffer_Release(&kept);
    PyBuffer_Release(&progress);
    return result;
}

/* Read what a group is; 0 with an exception set where there is none of these sizes. */
static int is_group(Py_ssize_t steps, Py_ssize_t count, Py_ssize_t reach, Py_ssize_t item)
{
    if (item != sizeof(float) && item != sizeof(double)) {
        PyErr_Format(PyExc_ValueError, "numbers have 4 or 8 bytes, not %zd", item);
        return 0;
    }
    return is_sound(steps, 1, "the number of steps") && is_sound(count, 1, "the number of sweeps")
        && is_sound(reach, 1, "the width");
}

static PyObject *prepare(PyObject *module, PyObject *arguments)
{
    Py_buffer kept, group, couplings;
    Py_ssize_t steps, count, reach, item;
    PyObject *result = NULL;
    if (!PyArg_ParseTuple(arguments, "y*w*w*nnnn", &kept, &group, &couplings, &steps, &count, &reach, &item))
        return NULL;
    if (is_group(steps, count, reach, item)) {
        const Py_ssize_t fours = (count + 3) / 4;
        if (holds(&kept, steps * count * reach, item, "what was kept")
            && holds(&group, steps * fours * 4 * (reach + 3), item, "the group")
            && holds(&couplings, steps * fours * COUPLINGS, item, "the couplings")) {
            Py_BEGIN_ALLOW_THREADS
            best.prepare[item == sizeof(double)](kept.buf, steps, count, reach, group.buf, couplings.buf);
            Py_END_ALLOW_THREADS
            result = Py_NewRef(Py_None);
        }
    }
    PyBuffer_Release(&kept);
    PyBuffer_Release(&group);
    PyBuffer_Release(&couplings);
    return result;
}

static PyObject *apply(PyObject *module, PyObject *arguments)
{
    Py_buffer group, couplings, strip;
    Py_ssize_t steps, fours, reach, first, item;
    PyObject *result = NULL;
    if (!PyArg_ParseTuple(arguments, "y*y*w*nnnnn", &group, &couplings, &strip, &steps, &fours, &reach, &first, &item))
        return NULL;
    if (is_group(steps, fours, reach, item) && is_sound(first, 0, "the first row")) {
        if (strip.len % ROW_BYTES != 0 || first > strip.len / ROW_BYTES) {
            PyErr_Format(PyExc_ValueError, "a strip of %zd bytes has no rows of %d from row %zd on", strip.len, ROW_BYTES, first);
        } else if (holds(&group, steps * fours * 4 * (reach + 3), item, "the group")
                   && holds(&couplings, steps * fours * COUPLINGS, item, "the couplings")) {
            Py_BEGIN_ALLOW_THREADS
            FLUSHING
            best.apply[item == sizeof(double)](
                group.buf, couplings.buf, steps, fours, reach, (char *)strip.buf + ROW_BYTES * first,
                strip.len / ROW_BYTES - first);
            AS_BEFORE
            Py_END_ALLOW_THREADS
            result = Py_NewRef(Py_None);
        }
    }
    PyBuffer_Release(&group);
    PyBuffer_Release(&couplings);
    PyBuffer_Release(&strip);
    return result;
}

static PyMethodDef functions[] = {
    {"chase", chase, METH_VARARGS, "chase(matrix, kept, progress, size, reach, first, count, share, shares)"},
    CHOICE,
    {"prepare", prepare, METH_VARARGS, "prepare(kept, group, couplings, steps, count, reach, itemsize)"},
    {"apply", apply, METH_VARARGS, "apply(group, couplings, strip, steps, fours, reach, first, itemsize)"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_chase", NULL, 0, functions, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__chase(void)
{
    choose_kernels(NULL);
    PyObject *module = PyModule_Create(&definition);
    if (module != NULL && PyModule_AddIntMacro(module, ROW_BYTES) < 0)
        Py_CLEAR(module);
    return module;
}
