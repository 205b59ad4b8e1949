"""LAPACK's symmetric eigendecomposition in place, by the library that is quickest on this processor.

Where torch's is slow (see `openblas`), OpenBLAS takes 45 to 60 % of its time on an AMD Zen 3 and loses a fifth to a
tenth as much. `numpy.linalg.eigh` copies, and computes in float64 alone.
"""

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..openblas import OpenBlas, at, integer, quicker

_REFLECTORS = 256
"""That are applied as one: OpenBLAS' `sormtr` takes 32, and nearly twice as long."""
_LEAST = 4 * _REFLECTORS
"""Columns from which what these take fits into the memory that `syevd` wants."""


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
    library = quicker() if matrix.device.type == "cpu" else None
    if library is not None:
        return eigh_by(library, matrix)
    values = matrix.new_empty(len(matrix))
    torch.linalg.eigh(matrix, UPLO="U", out=(values, matrix))
    return values


def eigh_by(library: OpenBlas, matrix: torch.Tensor) -> torch.Tensor:
    """Do as `eigh_in_place`, on the CPU, with as many threads as torch has."""
    size = len(matrix)
    if matrix.stride() != (1, size) and size > 1:
        raise ValueError(f"a matrix of strides {matrix.stride()} does not lie column after column")
    values = matrix.new_empty(size)
    work = matrix.new_empty(1 + 6 * size + 2 * size**2)
    integers = np.empty(3 + 5 * size, np.int64)
    place = ctypes.c_void_p(integers.ctypes.data)
    with library.threads():
        if size >= _LEAST:
            _eigh_by_steps(library, matrix, values, work, (place, integer(len(integers))))
        else:
            library.call(
                "syevd", matrix.dtype, b"VL", integer(size), at(matrix), integer(size), at(values), at(work),
                integer(len(work)), place, integer(len(integers)),
            )  # fmt: skip
    return values


def _eigh_by_steps(
    library: OpenBlas, matrix: torch.Tensor, values: torch.Tensor, work: torch.Tensor, integers: tuple[Any, Any]
) -> None:
    """Do what `syevd` does, but the last step, which takes it half of its time, with more reflectors at a time.

    `syevd` scales what is far from one beforehand. These steps need none: each scales what it squares.
    """
    size, dtype = len(matrix), matrix.dtype
    vectors, rest = work[: size**2].view(size, size).mT, work[size**2 :]
    beside, scales, rest = rest[:size], rest[size : 2 * size], rest[2 * size :]
    library.call(
        "sytrd", dtype, b"L", integer(size), at(matrix), integer(size), at(values), at(beside), at(scales), at(rest),
        integer(len(rest)),
    )  # fmt: skip
    library.call(
        "stedc", dtype, b"I", integer(size), at(values), at(beside), at(vectors), integer(size), at(rest),
        integer(len(rest)), *integers,
    )  # fmt: skip
    _reflect(library, matrix, scales, vectors, rest)
    matrix.mT.numpy()[:] = vectors.mT.numpy()


def _reflect(
    library: OpenBlas, matrix: torch.Tensor, scales: torch.Tensor, vectors: torch.Tensor, room: torch.Tensor
) -> None:
    """Apply the reflectors that `sytrd` left below the diagonal to vectors, in place.

    ``H_1 H_2 ... = I - V T V^T`` for `_REFLECTORS` at a time, whose T is the inverse of the upper triangle of ``V^T V``
    with its diagonal halved (Joffrain, Low, Quintana-Orti, van de Geijn and Van Zee 2006). NumPy does what is small, as
    torch's threads and OpenBLAS' wait for each other.
    """
    size, most = len(matrix), _REFLECTORS
    first, second, third, fourth = (room[i * size * most :] for i in range(4))
    for start in range((size - 2) // most * most, -1, -most):
        rows = size - 1 - start
        count = min(most, rows)
        own = slice(start, start + count)
        reflectors, triangle = _columns(first, rows, count), _columns(fourth, count, count)
        _make_explicit(reflectors.numpy(), matrix[start + 1 :, own].numpy(), scales[own].numpy())
        library.add_product(triangle, reflectors.mT, reflectors, times=1, keep=0)
        _invert(library, triangle)
        product, turned, below = _columns(second, count, size), _columns(third, count, size), vectors[start + 1 :]
        library.add_product(product, reflectors.mT, below, times=1, keep=0)
        library.add_product(turned, triangle, product, times=1, keep=0)
        library.add_product(below, reflectors, turned, times=-1, keep=1)


def _make_explicit(reflectors: npt.NDArray[Any], stored: npt.NDArray[Any], scales: npt.NDArray[Any]) -> None:
    """Fill in the ones and zeros of reflectors that are stored without them; one that changes nothing is zero."""
    reflectors[:] = stored
    top = reflectors[: len(scales)]
    top[:] = np.tril(top, -1)
    np.fill_diagonal(top, scales != 0)


def _invert(library: OpenBlas, triangle: torch.Tensor) -> None:
    """Replace ``V^T V`` by T."""
    values = triangle.numpy()
    diagonal = values.diagonal() / 2
    np.fill_diagonal(values, np.where(diagonal == 0, 1, diagonal))
    size = integer(len(triangle))
    library.call("trtri", triangle.dtype, b"UN", size, at(triangle), size)
    values[:] = np.triu(values)


def _columns(room: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Return (rows, columns) numbers of some memory, column after column."""
    return room[: rows * columns].view(columns, rows).mT
