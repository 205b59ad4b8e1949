"""Staged rows of a whole run, a tile column at a time: what the dual method and its certificate read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from tilecov.storage.partials import DamagedTileError
from tilecov.storage.runs import RunFolder
from tilecov.storage.stagedrows import StagedRows
from tilecov.storage.tiling import Tiling

from .bounds import ORIGIN
from .covariance import Array


@dataclass(frozen=True)
class StagedSet:
    """The rows (N, d) that all units of a run staged.

    Parameters
    ----------
    run : RunFolder
    tiling : Tiling
        As the rows were staged.
    records : sequence of mapping
        The units' commits: where their rows are, and how many.
    sums, origin : array
        (d,) the sum of x - origin over all rows, and the origin: (1,) for uint8 rows, (d,) for floats.
    scale : float
        The value range's factor.
    """

    run: RunFolder
    tiling: Tiling
    records: Sequence[Mapping[str, Any]]
    sums: Array
    origin: Array
    scale: float

    @property
    def exact(self) -> bool:
        """Whether rows are uint8."""
        return self.sums.dtype.kind == "i"

    @cached_property
    def count(self) -> int:
        """Rows, N."""
        return sum(int(record["count"]) for record in self.records)

    def column(self, j: int) -> Array:
        """Return tile column ``j``, (N, width).

        Raises
        ------
        DamagedTileError
            Where uint8 rows do not add up to what was staged.
        """
        span = self.tiling.span(j)
        parts = [rows.read(block, span) for rows in self._staged for block in rows.blocks()]
        found = np.concatenate(parts) if parts else np.zeros((0, self.tiling.width(j)), np.uint8)
        if self.exact:
            total = found.sum(axis=0, dtype=np.int64) - ORIGIN * len(found)
            if len(found) != self.count or not np.array_equal(total, self.sums[span]):
                raise DamagedTileError(f"staged rows of {self.run.url} are damaged: tile column {j} does not add up")
        return found

    @cached_property
    def _staged(self) -> list[StagedRows]:
        return [StagedRows.open(self.run.folder(record["prefix"]).folder("rows")) for record in self.records]
