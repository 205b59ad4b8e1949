"""Products with a run's eigenvectors, a tile at a time."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tilecov.storage.tiles import TileMatrix

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Eigenvectors:
    """U (d, k) of a run. Each product reads every tile once, and holds one.

    Parameters
    ----------
    tiles : TileMatrix
    """

    tiles: TileMatrix

    @property
    def shape(self) -> tuple[int, int]:
        """Values of a row, and eigenvectors: (d, k)."""
        return self.tiles.shape

    def _each(self) -> Iterator[tuple[slice, slice, Array]]:
        for i, rows in enumerate(self.tiles.rows.spans()):
            for j, columns in enumerate(self.tiles.columns.spans()):
                yield rows, columns, self.tiles.read(i, j)

    def leading(self, count: int) -> Array:
        """Return the first ``count`` columns as rows, (count, d)."""
        size, rank = self.shape
        found = np.empty((min(count, rank), size), np.float32)
        for j, columns in enumerate(self.tiles.columns.spans()):
            last = min(columns.stop, len(found))
            for i, rows in enumerate(self.tiles.rows.spans() if columns.start < last else ()):
                found[columns.start : last, rows] = self.tiles.read(i, j)[:, : last - columns.start].T
        return found

    def rows(self, indices: list[int]) -> Array:
        """Return some rows, (len(indices), k)."""
        found = np.empty((len(indices), self.shape[1]), np.float32)
        for j, columns in enumerate(self.tiles.columns.spans()):
            for at, index in enumerate(indices):
                i, inside = divmod(index, self.tiles.rows.tile)
                found[at, columns] = self.tiles.read(i, j)[inside]
        return found

    def times(self, factors: Array) -> Array:
        """Return U @ factors, (d, m)."""
        return self.both(factors, np.empty((self.shape[0], 0), np.float32))[0]

    def both(self, factors: Array, panel: Array) -> tuple[Array, Array]:
        """Return U @ factors (d, m) and U.T @ panel (k, n), in one pass."""
        size, rank = self.shape
        product = np.zeros((size, factors.shape[1]), np.float32)
        projected = np.zeros((rank, panel.shape[1]), np.float32)
        for rows, columns, tile in self._each():
            product[rows] += tile.astype(np.float32, copy=False) @ factors[columns]
            projected[columns] += tile.astype(np.float32, copy=False).T @ panel[rows]
        return product, projected
