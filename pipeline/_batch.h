/* What functions that decode many pictures in one call share: the buffers of all, and the indices of those left. */
#ifndef TILECOV_BATCH_H
#define TILECOV_BATCH_H

/* Pictures, a flag for each that says whether it is left, and the rows that they are to become. */
typedef struct {
    Py_buffer out, *views;
    unsigned char *left;
    Py_ssize_t count, taken;
} batch;

static void end_batch(batch *the)
{
    for (Py_ssize_t i = 0; i < the->taken; i++)
        PyBuffer_Release(&the->views[i]);
    PyMem_Free(the->views);
    PyMem_Free(the->left);
    PyBuffer_Release(&the->out);
}

/* Take the buffers of all pictures, each to become a row of `size` bytes of `out`, and call them left; 0 with an exception
 * set where that cannot be. All but `out` is zero before, and `end_batch` to be called in any case. */
static int begin_batch(batch *the, PyObject *pictures, Py_ssize_t size)
{
    the->count = PySequence_Size(pictures);
    if (the->count < 0)
        return 0;
    if (the->out.len / size != the->count || the->out.len % size != 0) {
        PyErr_Format(PyExc_ValueError, "the rows have %zd bytes and %zd of %zd bytes are needed", the->out.len, the->count, size);
        return 0;
    }
    the->views = PyMem_Calloc((size_t)the->count + 1, sizeof *the->views);
    the->left = PyMem_Malloc((size_t)the->count + 1);
    if (the->views == NULL || the->left == NULL) {
        PyErr_NoMemory();
        return 0;
    }
    memset(the->left, 1, (size_t)the->count);
    for (; the->taken < the->count; the->taken++) {
        PyObject *picture = PySequence_GetItem(pictures, the->taken);
        const int found = picture == NULL ? -1 : PyObject_GetBuffer(picture, &the->views[the->taken], PyBUF_SIMPLE);
        Py_XDECREF(picture);
        if (found < 0)
            return 0;
    }
    return 1;
}

static PyObject *indices_left(const batch *the)
{
    PyObject *found = PyList_New(0);
    for (Py_ssize_t i = 0; i < the->count && found != NULL; i++) {
        if (!the->left[i])
            continue;
        PyObject *index = PyLong_FromSsize_t(i);
        if (index == NULL || PyList_Append(found, index) < 0)
            Py_CLEAR(found);
        Py_XDECREF(index);
    }
    return found;
}

#endif
