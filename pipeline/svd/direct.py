"""The direct method: LAPACK's symmetric eigendecomposition of the whole matrix in memory.

The covariance is symmetric and positive semidefinite, so its SVD is its eigendecomposition in descending order.
"""

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from tilecov.storage.tiling import Tiling

from .lapack import eigh_in_place

_COLUMNS = 64
"""Eigenvectors that are worked on at a time, so that no second matrix is made. NumPy does it on one thread: torch's
would wait for those of OpenBLAS, which look for more work for a while."""


class SymmetricTiles(Protocol):
    """A symmetric matrix that is read tile by tile."""

    @property
    def tiling(self) -> Tiling:
        """How rows and columns are cut."""

    def read(self, i: int, j: int) -> npt.NDArray[np.float64]:
        """Return tile (i, j)."""


def assemble(matrix: SymmetricTiles, dtype: torch.dtype) -> torch.Tensor:
    """Return the whole (d, d) matrix, read from its upper tiles."""
    tiling = matrix.tiling
    whole = torch.empty((tiling.size, tiling.size), dtype=dtype)
    for i, j in tiling.upper():
        tile = torch.from_numpy(np.ascontiguousarray(matrix.read(i, j))).to(dtype)
        whole[tiling.span(i), tiling.span(j)] = tile
        whole[tiling.span(j), tiling.span(i)] = tile.T
    return whole


def decompose(matrix: SymmetricTiles, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return LA (d,) and U (d, d) on the CPU: ``matrix = U diag(LA) U.T``, LA descending.

    Parameters
    ----------
    matrix : SymmetricTiles
    dtype : torch.dtype
        float64 or float32.
    device : torch.device

    Raises
    ------
    RuntimeError
        Where LAPACK does not converge, as may happen to matrices that are not finite.
    """
    # Column after column, as LAPACK has it, so that it need not be turned and its eigenvectors can take its place.
    whole = assemble(matrix, dtype).to(device).mT
    values = eigh_in_place(whole)
    vectors = whole.cpu()
    _reverse(vectors.mT.numpy())
    return values.cpu().flip(0), vectors


def _reverse(rows: npt.NDArray[Any]) -> None:
    """Put the last row first, and so on, in place."""
    count = len(rows)
    for start in range(0, count // 2, _COLUMNS):
        stop = min(start + _COLUMNS, count // 2)
        first, last = rows[start:stop], rows[count - stop : count - start]
        kept = first[::-1].copy()
        first[:] = last[::-1]
        last[:] = kept


def settle(values: torch.Tensor, vectors: torch.Tensor, rows: int) -> None:
    """Make a spectrum canonical, in place.

    Eigenvalues that rounding made negative become 0, and so do all past the rank that ``rows`` samples can have, N - 1;
    the largest component of each eigenvector becomes positive, the first one where several are largest.

    Parameters
    ----------
    values : torch.Tensor
        (k,), descending.
    vectors : torch.Tensor
        (d, k).
    rows : int
        N.
    """
    clear(values, rows)
    orient(vectors)


def clear(values: torch.Tensor, rows: int) -> None:
    """Set to 0, in place, eigenvalues (k,) that rounding made negative and those past the rank N - 1."""
    values.clamp_(min=0)
    values[max(0, rows - 1) :] = 0


def orient(vectors: torch.Tensor) -> None:
    """Make the largest component of each column of ``vectors``, (d, k), positive, in place."""
    values = vectors.numpy()
    for start in range(0, values.shape[1], _COLUMNS):
        block = values[:, start : start + _COLUMNS]
        largest = np.abs(block).argmax(axis=0)
        is_negative = np.take_along_axis(block, largest[None], 0) < 0
        block *= np.where(is_negative, -1, 1).astype(block.dtype)
