/* The plain members of a tar in memory, found without Python's help; `tar.py` reads all others.
 *
 * What is taken for plain here is what every tar writer makes of a file with a short name: type '0', octal numbers in
 * full width, an unsigned checksum that is right. Whatever else a header says, this function stops in front of it.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>
#include <string.h>

#define BLOCK 512

typedef unsigned char byte;

/* Read `count` octal digits; -1 where there are others. */
static long long octal(const byte *text, int count)
{
    long long value = 0;
    for (int i = 0; i < count; i++) {
        if (text[i] < '0' || text[i] > '7')
            return -1;
        value = value * 8 + (text[i] - '0');
    }
    return value;
}

/* Return the size of the payload that a plain header announces; -1 where the header is not plain. */
static long long plain_size(const byte *header)
{
    long long stored = octal(header + 148, 6), size = octal(header + 124, 11);
    if (header[156] != '0' || header[0] == 0 || header[345] != 0 || stored < 0 || size < 0)
        return -1;
    if (header[154] != 0 || header[155] != ' ' || (header[135] != 0 && header[135] != ' '))
        return -1;
    long long sum = 8 * ' ';
    for (int i = 0; i < BLOCK; i++)
        sum += header[i];
    for (int i = 148; i < 156; i++) /* its own field counts as blanks */
        sum -= header[i];
    return sum == stored ? size : -1;
}

static PyObject *plain_members(PyObject *module, PyObject *arguments)
{
    Py_buffer data;
    Py_ssize_t at;
    if (!PyArg_ParseTuple(arguments, "y*n", &data, &at))
        return NULL;
    PyObject *found = PyList_New(0);
    while (found != NULL && at >= 0 && at <= data.len - BLOCK) {
        const byte *header = (const byte *)data.buf + at;
        long long size = plain_size(header);
        if (size < 0 || size > data.len - BLOCK - at)
            break;
        Py_ssize_t padded = (Py_ssize_t)((size + BLOCK - 1) / BLOCK * BLOCK);
        if (padded > data.len - BLOCK - at)
            break;
        const byte *end = memchr(header, 0, 100);
        PyObject *name = PyUnicode_DecodeUTF8((const char *)header, end ? end - header : 100, "surrogateescape");
        PyObject *member = name == NULL ? NULL : Py_BuildValue("(Nnn)", name, (Py_ssize_t)size, at);
        if (member == NULL || PyList_Append(found, member) < 0)
            Py_CLEAR(found);
        Py_XDECREF(member);
        at += BLOCK + padded;
    }
    PyBuffer_Release(&data);
    return found;
}

static PyMethodDef functions[] = {
    {"plain_members", plain_members, METH_VARARGS, "plain_members(data, at) -> [(name, size, where its header begins)]"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_tarwalk", NULL, 0, functions, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__tarwalk(void)
{
    return PyModule_Create(&definition);
}
