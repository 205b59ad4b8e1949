"""LAPACK's symmetric eigendecomposition in place, by the library that is quickest on this processor.

torch's LAPACK is MKL on x86, and MKL takes its plain code on processors of other makers. OpenBLAS, which NumPy's wheels
are linked with, takes 60 to 75 % of its time on an AMD Zen 3 and loses a fifth to a tenth as much (docs/decisions.md).
`numpy.linalg.eigh` copies, and computes in float64 alone; so LAPACK's own function is called, with the same memory as
torch calls it.
"""

import ctypes
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

_NAMES = {torch.float32: "ssyevd", torch.float64: "dsyevd"}
_SPELLINGS = ("scipy_{}_64_", "{}_64_")  # of OpenBLAS with integers of 64 bits: NumPy's wheels, and others
_THREADS = ("scipy_openblas_{}_num_threads64_", "openblas_{}_num_threads64_")


def eigh_in_place(matrix: torch.Tensor) -> torch.Tensor:
    """Return the eigenvalues of a symmetric matrix, ascending; its columns become the eigenvectors.

    Parameters
    ----------
    matrix : torch.Tensor
        (d, d), float32 or float64, column after column in memory, on any device. Either triangle may be read, whichever
        is quicker. Two more of its size are worked in.

    Raises
    ------
    RuntimeError
        Where LAPACK does not converge, as may happen to matrices that are not finite; of others not one is known.
    """
    library = numpys() if matrix.device.type == "cpu" and mkl_is_slow() else None
    if library is None:
        values = matrix.new_empty(len(matrix))
        torch.linalg.eigh(matrix, UPLO="U", out=(values, matrix))
        return values
    return library.eigh_in_place(matrix)


@cache
def mkl_is_slow() -> bool:
    """Return whether torch's LAPACK is MKL on a processor that is not Intel's."""
    if not torch.backends.mkl.is_available() or platform.machine() != "x86_64":  # type: ignore[no-untyped-call]
        return False
    try:
        return "GenuineIntel" not in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


class Library:
    """The LAPACK that NumPy is linked with.

    Parameters
    ----------
    linked : ctypes.CDLL
        What is linked with it.

    Raises
    ------
    AttributeError
        Where it is no OpenBLAS with integers of 64 bits.
    """

    def __init__(self, linked: ctypes.CDLL) -> None:
        self._functions = {dtype: _named(linked, _SPELLINGS, name) for dtype, name in _NAMES.items()}
        self._alone = threading.Lock()
        self._set_threads, self._get_threads = (_named(linked, _THREADS, verb) for verb in ("set", "get"))

    def eigh_in_place(self, matrix: torch.Tensor) -> torch.Tensor:
        """Do as the function of this name, on the CPU, with as many threads as torch has."""
        size = len(matrix)
        if matrix.stride() != (1, size) and size > 1:
            raise ValueError(f"a matrix of strides {matrix.stride()} does not lie column after column")
        values = matrix.new_empty(size)
        work = matrix.new_empty(1 + 6 * size + 2 * size**2)
        integers = np.empty(3 + 5 * size, np.int64)
        info = ctypes.c_int64()
        with self._threads(torch.get_num_threads()):
            self._functions[matrix.dtype](
                b"V", b"L", _integer(size), _at(matrix), _integer(size), _at(values), _at(work), _integer(len(work)),
                ctypes.c_void_p(integers.ctypes.data), _integer(len(integers)), ctypes.byref(info),
                ctypes.c_size_t(1), ctypes.c_size_t(1),  # the lengths of the two strings, as Fortran passes them
            )  # fmt: skip
        if info.value:
            raise RuntimeError(f"LAPACK's {_NAMES[matrix.dtype]} did not converge (info {info.value})")
        return values

    @contextmanager
    def _threads(self, count: int) -> Iterator[None]:
        with self._alone:  # the number is that of the process
            before = self._get_threads()
            self._set_threads(count)
            try:
                yield
            finally:
                self._set_threads(before)


@cache
def numpys() -> Library | None:
    """Return the LAPACK of NumPy where it can be reached; None where not."""
    try:
        return Library(ctypes.CDLL(import_module("numpy.linalg._umath_linalg").__file__))
    except (AttributeError, ImportError, OSError):
        return None


def _named(linked: ctypes.CDLL, spellings: tuple[str, ...], name: str) -> Any:
    for spelling in spellings:
        found = getattr(linked, spelling.format(name), None)
        if found is not None:
            return found
    raise AttributeError(f"{name} is not there")


def _integer(number: int) -> Any:
    return ctypes.byref(ctypes.c_int64(number))


def _at(tensor: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())
