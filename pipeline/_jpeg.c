/* Small JPEG of the simplest kind to rows of pixels, without the interpreter lock. `jpeg.py` says what for.
 *
 * ITU-T T.81, sequential and Huffman-coded, 8 bits, in one scan, of one component or of three with as many pixels each.
 * Whatever is not exactly so is left to libjpeg, which says what is a picture and what is not: nothing is written then.
 * Sizes are bounded before they are multiplied; a table is entered with bits that it has, and codes are read from a copy
 * with zeros behind it, of which a block takes no more than BLOCK_BYTES.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)
#include "_batch.h"
#include "_jpeg.h"

#define MOST_PIXELS (1 << 18) /* coefficients of larger pictures fill the caches */
#define BITS 10               /* that a table is entered with */
#define BLOCK_BYTES 256       /* a block has 64 codes of 16 bits at the most, each with up to 11 bits of a number */
#define END 128               /* how far the end of a block moves on */
#define WRONG 64              /* and what is no code */

/* What is known of a code: bits in all, those of the code, those of the number, and how far it moves on. */
#define ENTRY(code, number, step) ((uint32_t)((code) + (number)) | (uint32_t)(code) << 8 | (uint32_t)(number) << 16 | (uint32_t)(step) << 24)

typedef struct {
    uint32_t fast[1 << BITS]; /* by the next bits; 0 where the code is longer */
    int32_t ends[18], offsets[17]; /* of the codes of each length: past the last one, and where their symbols are */
    int32_t length;
    uint8_t spec[16 + 256]; /* as the picture has it */
} codes;

typedef struct {
    codes tables[8]; /* four for the first coefficients of blocks, four for the others */
} room;

typedef struct {
    const uint8_t *scan, *end;
    const codes *first[3], *others[3];
    uint16_t factors[4][64]; /* by the number of a table, in the order of the codes */
    int table[3];            /* of factors, of each component */
    int has_codes[8], has_factors[4];
    uint8_t ids[3];
    int has_frame;
    Py_ssize_t height, width, channels;
} picture;

static const uint8_t zigzag[64] = {
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7, 14, 21, 28,
    35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63};

static Py_ssize_t number(const uint8_t *at)
{
    return (Py_ssize_t)at[0] << 8 | at[1];
}

/* What a symbol says; 0 where no code of this kind may stand for it. */
static uint32_t entry_of(int symbol, int code, int is_first)
{
    const int size = symbol & 15, run = symbol >> 4;
    if (is_first)
        return symbol <= 11 ? ENTRY(code, size, 0) : 0;
    if (size == 0)
        return run == 0 ? ENTRY(code, 0, END) : run == 15 ? ENTRY(code, 0, 16) : 0;
    return size <= 10 ? ENTRY(code, size, run + 1) : 0;
}

/* Make a table of its lengths and symbols, unless it is the one that is there; returns whether it is one. */
static int make_codes(codes *table, const uint8_t *spec, int length, int is_first)
{
    if (table->length == length && memcmp(table->spec, spec, (size_t)length) == 0)
        return 1;
    table->length = 0;
    memset(table->fast, 0, sizeof table->fast);
    int code = 0, symbol = 0;
    for (int bits = 1; bits <= 16; bits++, code <<= 1) {
        table->offsets[bits] = symbol - code;
        for (int i = 0; i < spec[bits - 1]; i++, code++, symbol++) {
            const uint32_t entry = entry_of(spec[16 + symbol], bits, is_first);
            if (entry == 0 || code >= (1 << bits) - 1) /* none is all ones */
                return 0;
            for (int rest = 0; bits <= BITS && rest < 1 << (BITS - bits); rest++)
                table->fast[(code << (BITS - bits)) + rest] = entry;
        }
        table->ends[bits] = code;
    }
    memcpy(table->spec, spec, (size_t)length);
    table->length = length;
    return 1;
}

/* Read the tables of one segment; returns whether they are sound. */
static int read_codes(const uint8_t *at, Py_ssize_t left, picture *the, room *kept)
{
    while (left > 0) {
        int count = 0;
        if (left < 17 || at[0] >> 4 > 1 || (at[0] & 15) > 3)
            return 0;
        for (int i = 0; i < 16; i++)
            count += at[1 + i];
        const int which = (at[0] >> 4) * 4 + (at[0] & 15);
        if (count > 256 || left < 17 + count || !make_codes(&kept->tables[which], at + 1, 16 + count, which < 4))
            return 0;
        the->has_codes[which] = 1;
        at += 17 + count;
        left -= 17 + count;
    }
    return 1;
}

static int read_factors(const uint8_t *at, Py_ssize_t left, picture *the)
{
    for (; left > 0; left -= 65, at += 65) {
        if (left < 65 || at[0] > 3) /* of 8 bits */
            return 0;
        for (int i = 0; i < 64; i++)
            the->factors[at[0]][i] = at[1 + i];
        the->has_factors[at[0]] = 1;
    }
    return 1;
}

static int read_frame(const uint8_t *at, Py_ssize_t length, picture *the)
{
    if (the->has_frame++ || length != 8 + 3 * the->channels || at[2] != 8 || at[7] != the->channels
        || number(at + 3) != the->height || number(at + 5) != the->width)
        return 0;
    for (int i = 0; i < the->channels; i++) {
        const uint8_t *component = at + 8 + 3 * i;
        the->ids[i] = component[0];
        the->table[i] = component[2];
        /* As many pixels of each; with these numbers, and without Adobe's segment, colours are Y, Cb and Cr. */
        if ((the->channels == 3 && component[0] != i + 1) || component[1] != 0x11 || component[2] > 3)
            return 0;
    }
    return 1;
}

static int read_scan(const uint8_t *at, Py_ssize_t length, picture *the, const room *kept)
{
    if (!the->has_frame || length != 6 + 2 * the->channels || at[2] != the->channels
        || memcmp(at + 3 + 2 * the->channels, "\0\x3f\0", 3) != 0)
        return 0;
    for (int i = 0; i < the->channels; i++) {
        const int first = at[4 + 2 * i] >> 4, others = at[4 + 2 * i] & 15;
        if (at[3 + 2 * i] != the->ids[i] || first > 3 || others > 3 || !the->has_codes[first] || !the->has_codes[4 + others]
            || !the->has_factors[the->table[i]])
            return 0;
        the->first[i] = &kept->tables[first];
        the->others[i] = &kept->tables[4 + others];
    }
    return 1;
}

/* Read all up to the coded pixels; returns whether the picture is of the kind that is decoded here. */
static int read_header(const uint8_t *jpeg, Py_ssize_t size, picture *the, room *kept)
{
    Py_ssize_t at = 2;
    if (size < 4 || memcmp(jpeg, "\xff\xd8\xff", 3) != 0 || memcmp(jpeg + size - 2, "\xff\xd9", 2) != 0)
        return 0;
    while (at <= size - 4) {
        const uint8_t *segment = jpeg + at + 2;
        const Py_ssize_t length = number(segment), following = at + 2 + length;
        int sound = 0;
        if (jpeg[at] != 0xff || length < 2 || following > size - 2)
            return 0;
        switch (jpeg[at + 1]) {
        case 0xe0: /* JFIF */
            sound = length == 16;
            break;
        case 0xc4:
            sound = read_codes(segment + 2, length - 2, the, kept);
            break;
        case 0xdb:
            sound = read_factors(segment + 2, length - 2, the);
            break;
        case 0xc0:
        case 0xc1:
            sound = read_frame(segment, length, the);
            break;
        case 0xda:
            the->scan = jpeg + following;
            the->end = jpeg + size - 2;
            return read_scan(segment, length, the, kept);
        }
        if (!sound)
            return 0;
        at = following;
    }
    return 0;
}

/* Copy coded pixels without the zeros that follow bytes 0xff; returns their end, NULL where something else does. */
static uint8_t *unstuff(const uint8_t *at, const uint8_t *end, uint8_t *out)
{
    while (at < end) {
        const uint8_t *marked = memchr(at, 0xff, (size_t)(end - at));
        const Py_ssize_t length = (marked == NULL ? end : marked + 1) - at;
        memcpy(out, at, (size_t)length);
        out += length;
        at += length;
        if (marked != NULL && (at == end || *at++ != 0))
            return NULL;
    }
    memset(out, 0, 2 * BLOCK_BYTES);
    return out;
}

/* The entry of a code that is longer than BITS. */
static uint32_t longer(const codes *table, uint64_t buffer, int is_first)
{
    for (int bits = BITS + 1; bits <= 16; bits++) {
        const int32_t code = (int32_t)(buffer >> (64 - bits));
        if (code < table->ends[bits])
            return entry_of(table->spec[16 + table->offsets[bits] + code], bits, is_first);
    }
    return ENTRY(0, 0, WRONG);
}

static inline uint64_t next_bytes(const uint8_t *at)
{
    uint64_t value;
    memcpy(&value, at, sizeof value);
    return __builtin_bswap64(value);
}

#define FILL \
    do { \
        buffer |= next_bytes(at) >> held; \
        at += (63 - held) >> 3; \
        held |= 56; \
    } while (0)

/* Take the next code, and the number behind it: a leading 0 makes it negative. */
#define TAKE(table, is_first) \
    entry = (table)->fast[buffer >> (64 - BITS)]; \
    if (__builtin_expect(entry == 0, 0)) \
        entry = longer(table, buffer, is_first); \
    behind = buffer << (entry >> 8 & 31); \
    size = entry >> 16 & 15; \
    value = (int32_t)(behind >> 1 >> (63 - size)) + ((int32_t)(~(int64_t)behind >> 63) & (1 - (1 << size))); \
    buffer <<= entry & 63; \
    held -= (int)(entry & 63)

#define PUT(place, factor) \
    value *= (factor); \
    largest |= (uint32_t)(value + MOST_INSIDE + 1); \
    block[place] = (int16_t)value

#define TAKE_OTHER \
    TAKE(the->others[c], 0); \
    k += (int)(entry >> 24); \
    PUT(places[k], factors[k])

/* Decode all coefficients, two blocks side by side; returns whether there was one picture's worth of sound codes. */
static int read_coefficients(const picture *the, const uint8_t *at, const uint8_t *end, int16_t *coefficients, Py_ssize_t blocks)
{
    const Py_ssize_t component = (blocks + 1) / 2 * 128;
    uint8_t places[64 + END];
    uint16_t all_factors[3][64 + END];
    const uint8_t *start = at;
    uint64_t buffer = 0, behind;
    uint32_t entry, size, largest = 0;
    int32_t value, last[3] = {0, 0, 0};
    int held = 0;
    for (int k = 0; k < 64 + END; k++) /* past the end of a block a zero is put where one is */
        places[k] = (uint8_t)(zigzag[k < 64 ? k : 63] / 8 * 16 + zigzag[k < 64 ? k : 63] % 8);
    for (int c = 0; c < the->channels; c++)
        for (int k = 0; k < 64 + END; k++)
            all_factors[c][k] = the->factors[the->table[c]][k < 64 ? k : 63];
    for (Py_ssize_t which = 0; which < blocks; which++)
        for (int c = 0; c < the->channels; c++) {
            int16_t *block = coefficients + c * component + which / 2 * 128 + which % 2 * 8;
            const uint16_t *factors = all_factors[c];
            int k = 0;
            if (at > end + BLOCK_BYTES)
                return 0;
            FILL;
            TAKE(the->first[c], 1);
            if (entry >> 24 != 0)
                return 0;
            last[c] += value;
            if (last[c] > MOST_INSIDE || last[c] < -MOST_INSIDE)
                return 0;
            value = last[c];
            PUT(0, factors[0]);
            do {
                FILL;
                TAKE_OTHER;
                if (k >= 63)
                    break;
                TAKE_OTHER;
            } while (k < 63);
            if (k > 63 && k < END)
                return 0;
        }
    const int64_t taken = 8 * (int64_t)(at - start) - held, there = 8 * (int64_t)(end - start);
    return taken <= there && there - taken < 8 && largest < 2 * (MOST_INSIDE + 1);
}

static int decode_all(picture *the, uint8_t *row, uint8_t *memory, Py_ssize_t across, Py_ssize_t down)
{
    const Py_ssize_t blocks = across * down, component = (blocks + 1) / 2 * 128, stride = 8 * across, plane = 64 * blocks;
    int16_t *coefficients = (int16_t *)memory;
    uint8_t *planes = memory + 2 * component * the->channels, *bytes = planes + plane * the->channels + 32;
    uint8_t *end = unstuff(the->scan, the->end, bytes);
    if (end == NULL)
        return 0;
    memset(coefficients, 0, (size_t)(2 * component * the->channels));
    if (!read_coefficients(the, bytes, end, coefficients, blocks))
        return 0;
    for (int c = 0; c < the->channels; c++)
        if (!to_plane(coefficients + c * component, blocks, across, planes + c * plane, stride))
            return 0;
    if (the->channels == 3)
        to_colours(planes, stride, plane, row, the->height, the->width);
    else
        for (Py_ssize_t y = 0; y < the->height; y++)
            memcpy(row + y * the->width, planes + y * stride, (size_t)the->width);
    return 1;
}

/* Decode a picture of the sizes of `the` into a row; returns whether it is one of the kind that is known here. */
static int decode_one(picture the, const Py_buffer *data, uint8_t *row, room *kept)
{
    if (!read_header(data->buf, data->len, &the, kept))
        return 0;
    const Py_ssize_t across = (the.width + 7) / 8, down = (the.height + 7) / 8;
    const Py_ssize_t bytes = (across * down + 1) / 2 * 128 * 3 * the.channels + 32 + (the.end - the.scan) + 2 * BLOCK_BYTES;
    uint8_t *memory = malloc((size_t)bytes);
    const int done = memory != NULL && decode_all(&the, row, memory, across, down);
    free(memory);
    return done;
}

static PyObject *rows(PyObject *module, PyObject *arguments)
{
    PyObject *pictures, *result = NULL;
    Py_buffer kept;
    batch all = {0};
    picture the = {0};
    if (!PyArg_ParseTuple(arguments, "Ow*nnnw*", &pictures, &all.out, &the.height, &the.width, &the.channels, &kept))
        return NULL;
    if (the.height < 1 || the.width < 1 || the.height > MOST_PIXELS || the.width > MOST_PIXELS
        || (the.channels != 1 && the.channels != 3)) {
        PyErr_Format(PyExc_ValueError, "%zd x %zd pixels of %zd channels are no picture", the.height, the.width, the.channels);
    } else if (kept.len != sizeof(room)) {
        PyErr_Format(PyExc_ValueError, "the room has %zd bytes of %zu", kept.len, sizeof(room));
    } else if (begin_batch(&all, pictures, the.height * the.width * the.channels)) {
        uint8_t *row = all.out.buf;
        Py_BEGIN_ALLOW_THREADS
        for (Py_ssize_t i = 0; i < all.count && the.height * the.width <= MOST_PIXELS; i++) {
            all.left[i] = !decode_one(the, &all.views[i], row, kept.buf);
            row += the.height * the.width * the.channels;
        }
        Py_END_ALLOW_THREADS
        result = indices_left(&all);
    }
    end_batch(&all);
    PyBuffer_Release(&kept);
    return result;
}

static PyMethodDef functions[] = {
    {"rows", rows, METH_VARARGS, "rows(pictures, out, height, width, channels, room) -> indices of those left"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_jpeg", NULL, 0, functions, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__jpeg(void)
{
    if (!__builtin_cpu_supports("avx2")) {
        PyErr_SetString(PyExc_ImportError, "this processor has no AVX2");
        return NULL;
    }
    PyObject *module = PyModule_Create(&definition);
    if (module != NULL && PyModule_AddIntConstant(module, "ROOM", sizeof(room)) < 0)
        Py_CLEAR(module);
    return module;
}

#else

PyMODINIT_FUNC PyInit__jpeg(void)
{
    PyErr_SetString(PyExc_ImportError, "this is for processors of x86-64");
    return NULL;
}

#endif
