/* Samples of the usual kind among the plain members of a tar, found without Python's help; `shards.py` reads all others.
 *
 * What is taken for usual: files whose names are a key, a dot and an extension in ASCII, with nothing that
 * webdataset might pass over; a key that was not there before; no extension twice; a wanted image that is not too large;
 * and a file of another key behind the last one. Whatever else comes, this function stops in front of that sample.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>
#include <string.h>

#define BLOCK 512
#define MOST_FILES 16   /* of a sample */
#define MOST_WANTED 32 /* extensions */

typedef struct {
    const char *text;
    Py_ssize_t length;
} part;

/* A file: its name taken apart, and where its payload lies. */
typedef struct {
    part key, extension;
    long long start, size;
} file;

typedef struct {
    PyObject *entries, *seen;
    part wanted[MOST_WANTED], companion, open;
    int extensions;
    long long max_bytes;
} search;

static int same(part a, part b)
{
    return a.length == b.length && memcmp(a.text, b.text, (size_t)a.length) == 0;
}

static inline char lower(char letter)
{
    return letter >= 'A' && letter <= 'Z' ? (char)(letter + 'a' - 'A') : letter;
}

/* Whether an extension, put in lower case, is another one, which is so already. */
static int is_extension(part extension, part other)
{
    if (extension.length != other.length)
        return 0;
    for (Py_ssize_t i = 0; i < other.length; i++)
        if (lower(extension.text[i]) != other.text[i])
            return 0;
    return 1;
}

static int is_same_extension(part a, part b)
{
    if (a.length != b.length)
        return 0;
    for (Py_ssize_t i = 0; i < a.length; i++)
        if (lower(a.text[i]) != lower(b.text[i]))
            return 0;
    return 1;
}

/* Take a name apart; 0 where webdataset's own rules are to be asked. */
static int split(part name, file *the)
{
    const char *base = name.text, *end = name.text + name.length;
    if (name.length >= 2 && memcmp(base, "__", 2) == 0) /* metadata, perhaps */
        return 0;
    for (const char *at = name.text; at < end; at++) {
        if (*at == '/')
            base = at + 1;
        if (*at == '\n')
            return 0;
    }
    const char *dot = memchr(base, '.', (size_t)(end - base));
    if (dot == NULL || dot == base)
        return 0;
    for (const char *at = dot + 1; at < end; at++)
        if ((unsigned char)*at >= 0x80)
            return 0;
    the->key = (part){name.text, dot - name.text};
    the->extension = (part){dot + 1, end - dot - 1};
    return 1;
}

/* Read a text; of bytes that are no UTF-8 the length is -1, as of no other text. 0 with an exception set where it is none. */
static int read_text(PyObject *from, part *to)
{
    to->text = PyUnicode_AsUTF8AndSize(from, &to->length);
    if (to->text != NULL)
        return 1;
    if (!PyErr_ExceptionMatches(PyExc_UnicodeEncodeError))
        return 0;
    PyErr_Clear();
    to->length = -1;
    return 1;
}

/* Read entry `index`, (name, size, where its header begins): 1 where its name is usual, 0 where not, -1 on an error. */
static int read_file(const search *the, Py_ssize_t index, file *found)
{
    PyObject *entry = PyList_GetItem(the->entries, index);
    if (entry != NULL && !PyTuple_Check(entry)) {
        PyErr_SetString(PyExc_TypeError, "entries are tuples");
        return -1;
    }
    PyObject *name = entry == NULL ? NULL : PyTuple_GetItem(entry, 0);
    PyObject *size = name == NULL ? NULL : PyTuple_GetItem(entry, 1), *at = size == NULL ? NULL : PyTuple_GetItem(entry, 2);
    if (at == NULL)
        return -1;
    part text;
    if (!read_text(name, &text))
        return -1;
    if (text.length < 0)
        return 0;
    found->size = PyLong_AsLongLong(size);
    found->start = PyLong_AsLongLong(at) + BLOCK;
    return PyErr_Occurred() ? -1 : split(text, found);
}

static int rank_of(const search *the, part extension)
{
    for (int rank = 0; rank < the->extensions; rank++)
        if (is_extension(extension, the->wanted[rank]))
            return rank;
    return the->extensions;
}

/* Read the sample that begins with entry `first`, and note it; return the entry behind it, `first` where it is not a
 * usual one, -1 on an error. */
static Py_ssize_t read_sample(const search *the, Py_ssize_t first, PyObject *samples)
{
    const Py_ssize_t count = PyList_Size(the->entries);
    file files[MOST_FILES];
    const file *companion = NULL;
    int number = 0, best = the->extensions, image = 0;
    for (Py_ssize_t at = first;; at++, number++) {
        if (at >= count || number == MOST_FILES)
            return first;
        file *this = &files[number];
        const int usual = read_file(the, at, this);
        if (usual <= 0)
            return usual < 0 ? -1 : first;
        if (number == 0 && same(this->key, the->open))
            return first;
        if (!same(this->key, files[0].key))
            break;
        for (int i = 0; i < number; i++)
            if (is_same_extension(files[i].extension, this->extension))
                return first;
        const int rank = rank_of(the, this->extension);
        if (rank < best) {
            best = rank;
            image = number;
        }
        if (the->companion.length > 0 && is_extension(this->extension, the->companion)) {
            if (this->size > the->max_bytes)
                return first;
            companion = this;
        }
    }
    if (best == the->extensions || files[image].size > the->max_bytes)
        return first;
    PyObject *key = PyUnicode_FromStringAndSize(files[0].key.text, files[0].key.length);
    if (key == NULL)
        return -1;
    const int known = PySet_Contains(the->seen, key);
    if (known != 0 || PySet_Add(the->seen, key) < 0) {
        Py_DECREF(key);
        return known > 0 ? first : -1;
    }
    const long long beside = companion == NULL ? -1 : companion->start, end = companion == NULL ? -1 : beside + companion->size;
    PyObject *sample = Py_BuildValue("(NiLLLL)", key, best, files[image].start, files[image].start + files[image].size, beside, end);
    const int noted = sample == NULL ? -1 : PyList_Append(samples, sample);
    Py_XDECREF(sample);
    return noted < 0 ? -1 : first + number;
}

static PyObject *usual(PyObject *module, PyObject *arguments)
{
    search the;
    PyObject *extensions, *companion, *open;
    Py_ssize_t at, after;
    if (!PyArg_ParseTuple(arguments, "O!nO!UUO!L", &PyList_Type, &the.entries, &at, &PyTuple_Type, &extensions,
                          &companion, &open, &PySet_Type, &the.seen, &the.max_bytes)
        || !read_text(companion, &the.companion) || !read_text(open, &the.open))
        return NULL;
    const Py_ssize_t count = PyTuple_Size(extensions);
    if (at < 0 || count > MOST_WANTED)
        return Py_BuildValue("[]n", at);
    for (the.extensions = 0; the.extensions < count; the.extensions++) {
        if (!read_text(PyTuple_GetItem(extensions, the.extensions), &the.wanted[the.extensions]))
            return NULL;
    }
    PyObject *samples = PyList_New(0);
    while (samples != NULL && (after = read_sample(&the, at, samples)) != at) {
        if (after < 0)
            Py_CLEAR(samples);
        else
            at = after;
    }
    return samples == NULL ? NULL : Py_BuildValue("Nn", samples, at);
}

static PyMethodDef functions[] = {
    {"usual", usual, METH_VARARGS,
     "usual(entries, at, extensions, companion, open_key, seen, max_bytes) -> [(key, rank, start, stop, companion's)], next"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_samples", NULL, 0, functions, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__samples(void)
{
    return PyModule_Create(&definition);
}
