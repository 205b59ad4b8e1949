"""Eigenvectors held as the int8 matrix units take them, and how well they decompose a matrix in tiles."""

from collections.abc import Iterator

import numpy as np
import torch

from tilecov.storage.tiling import Tiling

from .sliced import Multiplier, Slices
from .svd.direct import SymmetricTiles
from .units import BLOCK, bytes_of
from .vectors import Array, Slabs

_STRIP = 512
"""Rows of ``U^T U`` that are summed together: half of it, the lower triangle, is left out strip by strip."""


class SlicedVectors:
    """U (d, k), cut into bytes: three quarters of what float32 takes.

    Parameters
    ----------
    multiplier : Multiplier
    slabs : callable
        What reads U.
    slices : Slices
        U, cut.
    """

    def __init__(self, multiplier: Multiplier, slabs: Slabs, slices: Slices) -> None:
        self._multiplier, self._slabs, self._slices = multiplier, slabs, slices

    @classmethod
    def hold(cls, multiplier: Multiplier, slabs: Slabs, size: int, rank: int, budget: int) -> "SlicedVectors | None":
        """Read U and cut it; None where it is not float32, or in odd slabs, or more than the budget.

        That is for U and for a slab's columns of S, or 512 of U, which are cut beside it.
        """
        slices: Slices | None = None
        if not rank or bytes_of(rank, size) > budget:
            return None
        for rows, values in slabs():
            if slices is None:
                fits = bytes_of(rank, size) + bytes_of(max(len(values), min(_STRIP, rank)), size) <= budget
                if not fits or values.dtype != np.float32 or (rows.stop % BLOCK and rows.stop != size):
                    return None
                slices = Slices.empty(rank, size)
            multiplier.cut(values, slices, rows.start)
        return None if slices is None else cls(multiplier, slabs, slices)

    def residuals(self, matrix: SymmetricTiles, values: Array) -> Iterator[float]:
        """Yield the squared norm of ``S U - U diag(LA)``, a tile row at a time."""
        tiling, values = matrix.tiling, values.astype(np.float64)
        cut = Slices.empty(tiling.tile, tiling.size)
        rest = torch.empty((tiling.tile, self._slices.count), dtype=torch.float64)
        for i, (own, slab) in enumerate(self._slabs()):
            width = own.stop - own.start
            here = cut.part(0, width)
            # S is symmetric: a tile column is the transpose of the tile row, and the right factor that cutting takes.
            for j, rows in enumerate(tiling.spans()):
                self._multiplier.cut(matrix.read(j, i).astype(np.float32, copy=False), here, rows.start)
            total = rest[:width]
            np.multiply(slab, -values, out=total.numpy())
            self._multiplier.add(total, self._multiplier.turn(here), self._slices)
            yield float(torch.linalg.vector_norm(total)) ** 2

    def deviations(self) -> Iterator[float]:
        """Yield the squared norm of ``U^T U - I``, strip by strip of its rows."""
        rank, depth = self._slices.count, self._slices.depth
        most = min(_STRIP, rank)
        left, grams = Slices.empty(most, depth), torch.empty((most, rank), dtype=torch.float64)
        for columns in Tiling(rank, _STRIP).spans():
            count = columns.stop - columns.start
            gram = grams.view(-1)[: count * (rank - columns.start)].view(count, -1).zero_()
            turned = self._multiplier.turn(self._slices.part(columns.start, columns.stop), left)
            self._multiplier.add(gram, turned, self._slices.part(columns.start, rank))
            gram.diagonal().sub_(1)
            yield float(torch.linalg.vector_norm(gram)) ** 2 + float(torch.linalg.vector_norm(gram[:, count:])) ** 2
