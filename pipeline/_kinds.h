/* Kernels that are compiled for several kinds of processors: which of them count. Included after `kernels`, whose first
 * member is `name`, `all` of them, the quickest first, and `is_here`. Python.h and string.h come first. */

#define KINDS ((Py_ssize_t)(sizeof all / sizeof *all))

static kernels best;

/* Choose the kernels of a name, or, for NULL, the first ones that this machine has; returns whether there are any. */
static int choose_kernels(const char *name)
{
    for (Py_ssize_t i = 0; i < KINDS; i++)
        if ((name == NULL || strcmp(all[i].name, name) == 0) && is_here(all + i)) {
            best = all[i];
            return 1;
        }
    return 0;
}

/* For tests, so that every kind is tested that a machine has; while nothing else runs. */
static PyObject *choose(PyObject *module, PyObject *arguments)
{
    const char *name;
    if (!PyArg_ParseTuple(arguments, "s", &name))
        return NULL;
    return PyBool_FromLong(choose_kernels(name));
}

static PyObject *chosen(PyObject *module, PyObject *none)
{
    return PyUnicode_FromString(best.name);
}

#define CHOICE \
    {"choose", choose, METH_VARARGS, "choose(kind) -> bool"}, {"chosen", chosen, METH_NOARGS, "chosen() -> kind"}
