"""Rows for the tests of the dual method, of its certificate and of norms."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tilecov.pipeline.norms import Norms, NormsSum
from tilecov.storage.tiling import Tiling

Array = npt.NDArray[Any]


@dataclass
class MemoryRows:
    """Rows that are in memory, uint8 or float."""

    whole: Array
    tile: int = 16
    scale: float = 1.0

    @property
    def tiling(self) -> Tiling:
        return Tiling(self.whole.shape[1], self.tile)

    @property
    def count(self) -> int:
        return len(self.whole)

    @property
    def exact(self) -> bool:
        return self.whole.dtype == np.uint8

    @property
    def origin(self) -> Array | int:
        return 128 if self.exact else self.whole.mean(axis=0, dtype=np.float64)

    @property
    def sums(self) -> Array:
        return (self.whole.astype(np.int64 if self.exact else np.float64) - self.origin).sum(axis=0)

    def column(self, j: int) -> Array:
        return self.whole[:, self.tiling.span(j)]


def norms_of(rows: npt.NDArray[np.uint8]) -> Norms:
    """Return the sums of the norms of uint8 rows (n, d)."""
    found = NormsSum(rows.shape[1])
    found.add(rows)
    return found.total()
