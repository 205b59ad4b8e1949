/* Exact products of rows of bytes by the int8 matrix units (AMX) of a CPU, or by AVX2, without the interpreter lock.
 * `exact.py` says what for; `_packing.h` and `_exact.h` hold what is compiled for several kinds of instructions,
 * `_exact_avx2.h` what AVX2 does its own way.
 *
 * Every function checks the lengths of its buffers against the sizes that it is told before it touches them.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>
#include <stdint.h>
#include <string.h>

#include "_units.h"

#define PAIR (2 * STRIP) /* rows and columns of the total that the registers hold */
#define DEEP 8 /* tiles to sum at a time: those of a pair of strips stay in the first cache */
#define MOST 131071 /* rows whose products of values in [-128, 127] sum to less than 2**31 */

typedef struct {
    const uint8_t *left, *right;
    void *total;
    Py_ssize_t chunks, stride, rows, columns, first_row, last_row, first_column, last_column;
    int wide, is_diagonal; /* whether the total is of int64; whether it is symmetric */
} product;

/* Add so many sums to a row of the total, from a column on, in the instructions of whoever calls. */
static inline void add_row(const product *the, const int32_t *sums, Py_ssize_t row, Py_ssize_t column, Py_ssize_t columns)
{
    const Py_ssize_t place = row * the->stride + column;
    if (the->wide)
        for (Py_ssize_t j = 0; j < columns; j++)
            ((int64_t *)the->total)[place + j] += sums[j];
    else
        for (Py_ssize_t j = 0; j < columns; j++)
            ((int32_t *)the->total)[place + j] += sums[j];
}

#ifdef HAS_AVX2
#define FLIPPED(from) \
    _mm_xor_si128(_mm_loadu_si128((const __m128i *)(const void *)(from)), _mm_set1_epi8((char)0x80))
#define FOUR_ROWS(from, stride) \
    const __m128i a = FLIPPED(from), b = FLIPPED(from + stride), c = FLIPPED(from + 2 * stride); \
    const __m128i d = FLIPPED(from + 3 * stride); \
    const __m128i ab = _mm_unpacklo_epi8(a, b), cd = _mm_unpacklo_epi8(c, d); \
    const __m128i further_ab = _mm_unpackhi_epi8(a, b), further_cd = _mm_unpackhi_epi8(c, d);
#endif

#ifdef HAS_UNITS
#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni,amx-tile,amx-int8")))
#define NAMED(name) name##_amx
#define START_SUMS __m512i total = _mm512_setzero_si512();
#define INTERLEAVE(from, stride, to) \
    FOUR_ROWS(from, stride) \
    __m512i all = _mm512_castsi128_si512(_mm_unpacklo_epi16(ab, cd)); \
    all = _mm512_inserti32x4(all, _mm_unpackhi_epi16(ab, cd), 1); \
    all = _mm512_inserti32x4(all, _mm_unpacklo_epi16(further_ab, further_cd), 2); \
    all = _mm512_inserti32x4(all, _mm_unpackhi_epi16(further_ab, further_cd), 3); \
    _mm512_storeu_si512(to, all); \
    total = _mm512_dpbusd_epi32(total, _mm512_set1_epi8(1), all);
#define END_SUMS(sums) _mm512_storeu_si512(sums, total);
#include "_packing.h"
#undef START_SUMS
#undef INTERLEAVE
#undef END_SUMS
#define CLEAR_TILES \
    _tile_zero(0); \
    _tile_zero(1); \
    _tile_zero(2); \
    _tile_zero(3);
#define LOAD_TILES(sums) \
    _tile_loadd(0, sums, PAIR * 4); \
    _tile_loadd(1, sums + STRIP, PAIR * 4); \
    _tile_loadd(2, sums + STRIP * PAIR, PAIR * 4); \
    _tile_loadd(3, sums + STRIP * PAIR + STRIP, PAIR * 4);
#define STORE_TILES(sums) \
    _tile_stored(0, sums, PAIR * 4); \
    _tile_stored(1, sums + STRIP, PAIR * 4); \
    _tile_stored(2, sums + STRIP * PAIR, PAIR * 4); \
    _tile_stored(3, sums + STRIP * PAIR + STRIP, PAIR * 4);
#define STEP(left, right, apart) \
    _tile_loadd(4, left, CHUNK); \
    _tile_loadd(5, right, CHUNK); \
    _tile_dpbssd(0, 4, 5); \
    _tile_loadd(6, right + apart, CHUNK); \
    _tile_dpbssd(1, 4, 6); \
    _tile_loadd(7, left + apart, CHUNK); \
    _tile_dpbssd(2, 7, 5); \
    _tile_dpbssd(3, 7, 6);
#include "_exact.h"
#undef TARGET
#undef NAMED
#undef CLEAR_TILES
#undef LOAD_TILES
#undef STORE_TILES
#undef STEP
#undef TILES_BEGIN
#undef TILES_END
#endif

#ifdef HAS_AVX2
#define TARGET __attribute__((target("avx2")))
#define NAMED(name) name##_avx2
#define START_SUMS __m256i first = _mm256_setzero_si256(), last = _mm256_setzero_si256();
#define INTERLEAVE(from, stride, to) \
    FOUR_ROWS(from, stride) \
    const __m256i eight = _mm256_set_m128i(_mm_unpackhi_epi16(ab, cd), _mm_unpacklo_epi16(ab, cd)); \
    const __m256i others = \
        _mm256_set_m128i(_mm_unpackhi_epi16(further_ab, further_cd), _mm_unpacklo_epi16(further_ab, further_cd)); \
    _mm256_storeu_si256((__m256i *)(void *)(to), eight); \
    _mm256_storeu_si256((__m256i *)(void *)(to + 2 * STRIP), others); \
    first = _mm256_add_epi32(first, SUMMED(eight)); \
    last = _mm256_add_epi32(last, SUMMED(others));
#define SUMMED(fours) \
    _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_set1_epi8(1), fours), _mm256_set1_epi16(1))
#define END_SUMS(sums) \
    _mm256_storeu_si256((__m256i *)(void *)(sums), first); \
    _mm256_storeu_si256((__m256i *)(void *)(sums + STRIP / 2), last);
#include "_packing.h"
#include "_exact_avx2.h"
#undef TARGET
#undef NAMED
#undef START_SUMS
#undef INTERLEAVE
#undef END_SUMS
#endif

static void interleave_plainly(const uint8_t *from, Py_ssize_t stride, uint8_t *to, int32_t *sums)
{
    for (int i = 0; i < STRIP; i++)
        for (int k = 0; k < 4; k++) {
            to[4 * i + k] = from[k * stride + i] ^ 0x80;
            sums[i] += from[k * stride + i] - 128;
        }
}

static void multiply_plainly(const uint8_t *left, const uint8_t *right, Py_ssize_t apart, int32_t *registers)
{
    for (int i = 0; i < PAIR; i++)
        for (int j = 0; j < PAIR; j++) {
            const int8_t *row = (const int8_t *)left + i / STRIP * apart + i % STRIP * CHUNK;
            const int8_t *column = (const int8_t *)right + j / STRIP * apart + j % STRIP * 4;
            for (int k = 0; k < CHUNK; k++)
                registers[i * PAIR + j] += row[k] * column[k / 4 * CHUNK + k % 4];
        }
}

#define TARGET
#define NAMED(name) name##_plain
#define START_SUMS int32_t total[STRIP] = {0};
#define INTERLEAVE(from, stride, to) interleave_plainly(from, stride, to, total);
#define END_SUMS(sums) memcpy(sums, total, sizeof total);
#include "_packing.h"
#define CLEAR_TILES memset(registers, 0, sizeof registers);
#define LOAD_TILES(sums) memcpy(registers, sums, sizeof registers);
#define STORE_TILES(sums) memcpy(sums, registers, sizeof registers);
#define STEP(left, right, apart) multiply_plainly(left, right, apart, registers);
#define TILES_BEGIN int32_t registers[PAIR * PAIR];
#define TILES_END
#include "_exact.h"

typedef struct {
    const char *name;
    void (*pack_strip)(const uint8_t *, Py_ssize_t, Py_ssize_t, Py_ssize_t, uint8_t *, int32_t *);
    void (*multiply)(const product *, void *);
    Py_ssize_t room; /* bytes that it works in besides the sums of a part */
} kernels;

static const kernels all[] = {
#ifdef HAS_UNITS
    {"amx", pack_strip_amx, multiply_amx, 0},
#endif
#ifdef HAS_AVX2
    {"avx2", pack_strip_avx2, multiply_avx2, sizeof(widened) + 64}, /* of any alignment */
#endif
    {"plain", pack_strip_plain, multiply_plain, 0},
};

/* Whether this machine can run kernels of a kind. */
static int is_here(const kernels *kind)
{
#ifdef HAS_UNITS
    if (strcmp(kind->name, "amx") == 0)
        return units_are_here() && __builtin_cpu_supports("avx512vnni");
#endif
#ifdef HAS_AVX2
    if (strcmp(kind->name, "avx2") == 0)
        return __builtin_cpu_supports("avx2");
#endif
    return 1;
}

#include "_kinds.h"

static Py_ssize_t whole_pairs(Py_ssize_t columns)
{
    return (columns + PAIR - 1) / PAIR * PAIR;
}

/* Bytes of columns that were packed: an even number of strips. */
static Py_ssize_t packed_bytes(Py_ssize_t columns, Py_ssize_t chunks)
{
    return whole_pairs(columns) / STRIP * chunks * TILE;
}

/* Bytes that a part of a total takes while it is worked on. */
static Py_ssize_t room_for(Py_ssize_t rows, Py_ssize_t columns)
{
    return best.room + whole_pairs(rows) * whole_pairs(columns) * (Py_ssize_t)sizeof(int32_t);
}

/* Whether so many rows have sums that int32 holds; 0 with an exception set where not. */
static int are_few(Py_ssize_t rows)
{
    if (rows > MOST) {
        PyErr_Format(PyExc_ValueError, "%zd rows were asked for at a time, and sums of %d are exact", rows, MOST);
        return 0;
    }
    return is_sound(rows, 1, "the rows");
}

static PyObject *pack(PyObject *module, PyObject *arguments)
{
    Py_buffer source, packed, sums;
    Py_ssize_t stride, rows, columns, from, to;
    PyObject *result = NULL;
    if (!PyArg_ParseTuple(arguments, "y*nnnw*w*nn", &source, &stride, &rows, &columns, &packed, &sums, &from, &to))
        return NULL;
    if (are_few(rows) && is_sound(columns, 1, "the columns") && is_sound(from, 0, "the first column")
        && is_sound(to, from, "the end of columns")
        && reaches(&source, 1, rows, stride, columns, 1, "the rows")) {
        const Py_ssize_t chunks = (rows + CHUNK - 1) / CHUNK;
        if (to > columns || from % PAIR != 0) {
            PyErr_Format(PyExc_ValueError, "columns %zd to %zd of %zd were asked for", from, to, columns);
        } else if (holds(&packed, packed_bytes(columns, chunks), 1, "what is packed")
                   && holds(&sums, whole_pairs(columns), sizeof(int32_t), "the sums")) {
            Py_BEGIN_ALLOW_THREADS
            for (Py_ssize_t column = from; column < to; column += STRIP)
                best.pack_strip(
                    (const uint8_t *)source.buf + column, stride, rows, to - column < STRIP ? to - column : STRIP,
                    (uint8_t *)packed.buf + column / STRIP * chunks * TILE, (int32_t *)sums.buf + column);
            if (to == columns && (columns + STRIP - 1) / STRIP % 2 != 0)
                memset((uint8_t *)packed.buf + packed_bytes(columns, chunks) - chunks * TILE, 0, (size_t)(chunks * TILE));
            Py_END_ALLOW_THREADS
            result = Py_NewRef(Py_None);
        }
    }
    PyBuffer_Release(&source);
    PyBuffer_Release(&packed);
    PyBuffer_Release(&sums);
    return result;
}

static PyObject *add(PyObject *module, PyObject *arguments)
{
    Py_buffer total, left, right, room;
    Py_ssize_t item, rows;
    product the;
    PyObject *result = NULL;
    if (!PyArg_ParseTuple(arguments, "w*nny*y*nnnpnnnnw*", &total, &the.stride, &item, &left, &right, &rows, &the.rows,
                          &the.columns, &the.is_diagonal, &the.first_row, &the.last_row, &the.first_column, &the.last_column,
                          &room))
        return NULL;
    if (item != sizeof(int32_t) && item != sizeof(int64_t)) {
        PyErr_Format(PyExc_ValueError, "integers have 4 or 8 bytes, not %zd", item);
    } else if (are_few(rows) && is_sound(the.rows, 1, "the height") && is_sound(the.columns, 1, "the width")
               && is_sound(the.first_row, 0, "the first row") && is_sound(the.last_row, the.first_row, "the end of rows")
               && is_sound(the.first_column, 0, "the first column")
               && is_sound(the.last_column, the.first_column, "the end of columns")
               && reaches(&total, item, the.rows, the.stride, the.columns, 1, "the total")) {
        the.chunks = (rows + CHUNK - 1) / CHUNK;
        if (the.last_row > the.rows || the.last_column > the.columns || the.first_row % PAIR != 0 || the.first_column % PAIR != 0
            || (the.is_diagonal && the.rows != the.columns)) {
            PyErr_Format(PyExc_ValueError, "rows %zd to %zd of %zd and columns %zd to %zd of %zd were asked for", the.first_row,
                         the.last_row, the.rows, the.first_column, the.last_column, the.columns);
        } else if (holds(&left, packed_bytes(the.rows, the.chunks), 1, "the left factor")
                   && holds(&right, packed_bytes(the.columns, the.chunks), 1, "the right factor")
                   && holds(&room, room_for(the.last_row - the.first_row, the.last_column - the.first_column), 1,
                            "the room")) {
            the.left = left.buf;
            the.right = right.buf;
            the.total = total.buf;
            the.wide = item == sizeof(int64_t);
            Py_BEGIN_ALLOW_THREADS
            best.multiply(&the, room.buf);
            Py_END_ALLOW_THREADS
            result = Py_NewRef(Py_None);
        }
    }
    PyBuffer_Release(&total);
    PyBuffer_Release(&left);
    PyBuffer_Release(&right);
    PyBuffer_Release(&room);
    return result;
}

static PyObject *room(PyObject *module, PyObject *arguments)
{
    Py_ssize_t rows, columns;
    if (!PyArg_ParseTuple(arguments, "nn", &rows, &columns) || !is_sound(rows, 0, "the rows")
        || !is_sound(columns, 0, "the columns"))
        return NULL;
    return PyLong_FromSsize_t(room_for(rows, columns));
}

/* Whether the processor multiplies and sums int8 in one step, in vectors of any width. */
static int has_int8_instructions(void)
{
#ifdef HAS_AVX2
    const unsigned int avx_vnni = 1u << 4;
    unsigned int a, b, c, d;
    return __builtin_cpu_supports("avx512vnni") || (__get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & avx_vnni));
#else
    return 1;
#endif
}

/* Whether what was chosen is quicker than int8 products can be here without it: matrix units are, and AVX2 is where there
 * are no int8 instructions, which oneDNN would use. */
static PyObject *beats_int8(PyObject *module, PyObject *none)
{
    if (strcmp(best.name, "avx2") == 0)
        return PyBool_FromLong(!has_int8_instructions());
    return PyBool_FromLong(strcmp(best.name, "amx") == 0);
}

static PyMethodDef functions[] = {
    CHOICE,
    {"pack", pack, METH_VARARGS, "pack(source, stride, rows, columns, packed, sums, from, to)"},
    {"turn", turn, METH_VARARGS, "turn(packed, turned)"},
    {"room", room, METH_VARARGS, "room(rows, columns) -> bytes that add wants for so many"},
    {"beats_int8", beats_int8, METH_NOARGS, "beats_int8() -> bool"},
    {"add", add, METH_VARARGS,
     "add(total, stride, itemsize, left, right, rows, height, width, diagonal, from, to, from, to, room)"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_exact", NULL, 0, functions, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__exact(void)
{
    choose_kernels(NULL);
    return PyModule_Create(&definition);
}
