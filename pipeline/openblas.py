"""OpenBLAS, which NumPy's wheels are linked with, where torch's own library is slow on this processor.

torch's BLAS and LAPACK are MKL on x86, and MKL takes its plain code on processors of other makers: on an AMD Zen 3 a
product of float32 matrices takes 1.4 times as long as OpenBLAS takes (docs/decisions.md). NumPy's own functions take
torch's memory too, but copy it, or add nothing to what is there; so Fortran's are called, as torch calls them.
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

import torch

_LETTERS = {torch.float32: "s", torch.float64: "d"}
_NUMBERS = {torch.float32: ctypes.c_float, torch.float64: ctypes.c_double}
_NAMES = ("gemm", "stedc", "syevd", "sytrd", "trtri")
_SPELLINGS = ("scipy_{}_64_", "{}_64_")  # with integers of 64 bits: NumPy's wheels, and others
_THREADS = ("scipy_openblas_{}_num_threads64_", "openblas_{}_num_threads64_")


def quicker() -> "OpenBlas | None":
    """Return OpenBLAS where it can be reached and torch's library is slow; None where not."""
    return numpys() if mkl_is_slow() else None


@cache
def mkl_is_slow() -> bool:
    """Return whether torch's library is MKL on a processor that is not Intel's."""
    if not torch.backends.mkl.is_available() or platform.machine() != "x86_64":  # type: ignore[no-untyped-call]
        return False
    try:
        return "GenuineIntel" not in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


@cache
def numpys() -> "OpenBlas | None":
    """Return the OpenBLAS of NumPy where it can be reached; None where not."""
    try:
        return OpenBlas(ctypes.CDLL(import_module("numpy.linalg._umath_linalg").__file__))
    except (AttributeError, ImportError, OSError):
        return None


class OpenBlas:
    """Functions of BLAS and LAPACK for torch's tensors on the CPU, float32 or float64.

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
        self._functions = {
            (dtype, name): _named(linked, _SPELLINGS, letter + name)
            for dtype, letter in _LETTERS.items()
            for name in _NAMES
        }
        self._alone = threading.Lock()
        self._set_threads, self._get_threads = (_named(linked, _THREADS, verb) for verb in ("set", "get"))

    @contextmanager
    def threads(self) -> Iterator[None]:
        """Give it as many threads as torch has, and no other caller of ours meanwhile."""
        with self._alone:  # the number is that of the process
            before = self._get_threads()
            self._set_threads(torch.get_num_threads())
            try:
                yield
            finally:
                self._set_threads(before)

    def add_product(
        self, total: torch.Tensor, left: torch.Tensor, right: torch.Tensor, *, times: int = 1, keep: int = 1
    ) -> None:
        """Set ``total = keep * total + times * left @ right``, in place; within ``threads``.

        Parameters
        ----------
        total, left, right : torch.Tensor
            (n, m), (n, k) and (k, m), of one dtype, rows or columns of each close together.
        times, keep : int

        Raises
        ------
        ValueError
            Where shapes or dtypes do not fit: BLAS would read and write beside them.
        """
        sizes = len(left), right.shape[1], left.shape[1]
        if total.shape != sizes[:2] or len(right) != sizes[2] or not total.dtype == left.dtype == right.dtype:
            told = ", ".join(f"{tuple(matrix.shape)} {matrix.dtype}" for matrix in (total, left, right))
            raise ValueError(f"a product and its factors do not fit: {told}")
        if total.stride(0) != 1:
            total, left, right = total.mT, right.mT, left.mT
        number = _NUMBERS[total.dtype]
        self._functions[total.dtype, "gemm"](
            _order(left), _order(right), integer(len(total)), integer(total.shape[1]), integer(left.shape[1]),
            ctypes.byref(number(times)), at(left), _apart(left), at(right), _apart(right),
            ctypes.byref(number(keep)), at(total), _apart(total), *_lengths(2),
        )  # fmt: skip

    def call(self, name: str, dtype: torch.dtype, letters: bytes, *arguments: Any) -> None:
        """Call a function of LAPACK, within ``threads``.

        Parameters
        ----------
        name : str
            Without the letter of its dtype.
        dtype : torch.dtype
        letters : bytes
            Its first arguments.
        arguments
            The others, but for the last, ``info``.

        Raises
        ------
        RuntimeError
            Where it says that it did not do what it should.
        """
        info, options = ctypes.c_int64(), [letters[i : i + 1] for i in range(len(letters))]
        self._functions[dtype, name](*options, *arguments, ctypes.byref(info), *_lengths(len(letters)))
        if info.value:
            raise RuntimeError(f"LAPACK's {_LETTERS[dtype]}{name} did not converge (info {info.value})")


def integer(number: int) -> Any:
    """Return an integer as Fortran takes it."""
    return ctypes.byref(ctypes.c_int64(number))


def at(tensor: torch.Tensor) -> ctypes.c_void_p:
    """Return where a tensor begins."""
    return ctypes.c_void_p(tensor.data_ptr())


def _order(matrix: torch.Tensor) -> bytes:
    return b"N" if matrix.stride(0) == 1 else b"T"


def _apart(matrix: torch.Tensor) -> Any:
    """Return how far apart columns lie, or rows; those of a single one may have any stride, which BLAS refuses."""
    close, apart = (0, 1) if matrix.stride(0) == 1 else (1, 0)
    if matrix.stride(close) != 1:
        raise ValueError(f"neither rows nor columns of a matrix of strides {matrix.stride()} lie close together")
    return integer(max(matrix.stride(apart), matrix.shape[close], 1))


def _lengths(strings: int) -> list[ctypes.c_size_t]:
    """Return the lengths of strings of one letter, as Fortran passes them."""
    return [ctypes.c_size_t(1)] * strings


def _named(linked: ctypes.CDLL, spellings: tuple[str, ...], name: str) -> Any:
    for spelling in spellings:
        found = getattr(linked, spelling.format(name), None)
        if found is not None:
            return found
    raise AttributeError(f"{name} is not there")
