/* What `_sliced.c` and `_exact.c` share: tiles as the int8 matrix units of x86 processors (AMX) take them, whether this
 * machine has such units, and the checks of what Python hands over. Python.h comes first. */

#define STRIP 16 /* rows of a left factor, columns of a right one, in a tile */
#define CHUNK 64 /* numbers that are summed, in a tile */
#define TILE (STRIP * CHUNK)
#define LIMIT ((Py_ssize_t)1 << 28) /* of each size: what two make of bytes, cut or packed, stays below 2**63 */

_Static_assert(sizeof(Py_ssize_t) == 8, "sizes are multiplied");

#if defined(__clang__)
#define KNOWS_UNITS (__clang_major__ >= 12)
#elif defined(__GNUC__)
#define KNOWS_UNITS (__GNUC__ >= 11)
#else
#define KNOWS_UNITS 0
#endif

#if defined(__GNUC__) && defined(__x86_64__)
#define HAS_AVX2
#include <cpuid.h>
#include <immintrin.h>
#endif

#if KNOWS_UNITS && defined(HAS_AVX2) && defined(__linux__)
#define HAS_UNITS
#include <sys/syscall.h>
#include <unistd.h>

#define TILES_BEGIN \
    _Alignas(64) uint8_t form[64] = {1}; /* of eight tiles of 16 rows of 64 bytes */ \
    for (int tile = 0; tile < 8; tile++) { \
        form[16 + 2 * tile] = CHUNK; \
        form[48 + tile] = STRIP; \
    } \
    _tile_loadconfig(form);
#define TILES_END _tile_release();
#endif

/* Whether the processor has them, and lets this process: Linux gives the units' registers to those that ask. */
static int units_are_here(void)
{
#ifdef HAS_UNITS
    const unsigned int tile_and_int8 = 3u << 24;
    const int arch_req_xcomp_perm = 0x1023, xfeature_xtiledata = 18;
    unsigned int a, b, c, d;
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq")
        && __builtin_cpu_supports("avx512vl") && __get_cpuid_count(7, 0, &a, &b, &c, &d)
        && (d & tile_and_int8) == tile_and_int8 && syscall(SYS_arch_prctl, arch_req_xcomp_perm, xfeature_xtiledata) == 0;
#else
    return 0;
#endif
}

/* Make a left factor's tiles of a right one's, or the other way: four numbers are four bytes in both. */
static void turn_tiles(const uint8_t *from, uint8_t *to, Py_ssize_t count)
{
    uint32_t one[STRIP][CHUNK / 4], turned[STRIP][CHUNK / 4];
    for (Py_ssize_t i = 0; i < count; i++) {
        memcpy(one, from + i * TILE, TILE);
        for (int row = 0; row < STRIP; row++)
            for (int column = 0; column < CHUNK / 4; column++)
                turned[column][row] = one[row][column];
        memcpy(to + i * TILE, turned, TILE);
    }
}

/* Whether a buffer holds at least `count` numbers of `item` bytes; 0 with an exception set where not. */
static int holds(const Py_buffer *view, Py_ssize_t count, Py_ssize_t item, const char *name)
{
    if (view->len / item < count) {
        PyErr_Format(PyExc_ValueError, "%s has %zd bytes and %zd are needed", name, view->len, count * item);
        return 0;
    }
    return 1;
}

static int is_sound(Py_ssize_t number, Py_ssize_t least, const char *name)
{
    if (number < least || number >= LIMIT) {
        PyErr_Format(PyExc_ValueError, "%s is %zd and must be %zd to %zd", name, number, least, LIMIT - 1);
        return 0;
    }
    return 1;
}

/* Whether the last of rows x columns numbers lies in a buffer; 0 with an exception set where not. */
static int reaches(
    const Py_buffer *view, Py_ssize_t item, Py_ssize_t rows, Py_ssize_t row_stride, Py_ssize_t columns, Py_ssize_t stride,
    const char *name)
{
    return is_sound(row_stride, 1, "a stride") && is_sound(stride, 1, "a stride")
        && holds(view, (rows - 1) * row_stride + (columns - 1) * stride + 1, item, name);
}

static PyObject *turn(PyObject *module, PyObject *arguments)
{
    Py_buffer from, to;
    PyObject *result = NULL;
    if (!PyArg_ParseTuple(arguments, "y*w*", &from, &to))
        return NULL;
    if (from.len % TILE != 0) {
        PyErr_Format(PyExc_ValueError, "%zd bytes are no tiles of %d", from.len, TILE);
    } else if (holds(&to, from.len, 1, "what is turned")) {
        Py_BEGIN_ALLOW_THREADS
        turn_tiles(from.buf, to.buf, from.len / TILE);
        Py_END_ALLOW_THREADS
        result = Py_NewRef(Py_None);
    }
    PyBuffer_Release(&from);
    PyBuffer_Release(&to);
    return result;
}
