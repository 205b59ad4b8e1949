"""Rows in memory through the program's own arithmetic, as its tasks call it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tilecov.pipeline.accumulate import IntegerAccumulator, panels_of
from tilecov.pipeline.costs import tile_of
from tilecov.pipeline.covariance import covariance_tile
from tilecov.pipeline.device import kernel_of
from tilecov.storage.tiling import Tiling

SCALE = 2 / 255

Tiles = dict[tuple[int, int], npt.NDArray[Any]]


def covariance_of(rows: torch.Tensor, block: int) -> tuple[Tiling, Tiles]:
    """Return the upper tiles of the covariance of uint8 rows, float32, for values in [-1, 1]."""
    size = rows.shape[1]
    tiling = Tiling(size, tile_of(size))
    moments = IntegerAccumulator(tiling, tiling.upper(), kernel_of("cpu"), block=block)
    for start in range(0, len(rows), block):
        moments.add(panels_of(rows[start : start + block], tiling))
    count, sums, tiles = moments.take()
    return tiling, {pair: _finalise(count, sums, tiling, pair, gram) for pair, gram in tiles}


def _finalise(
    count: int, sums: npt.NDArray[np.int64], tiling: Tiling, pair: tuple[int, int], gram: npt.NDArray[Any]
) -> npt.NDArray[np.float32]:
    parts = (sums[tiling.span(index)] for index in pair)
    return covariance_tile(count, *parts, gram, SCALE).astype(np.float32)


@dataclass(frozen=True)
class Covariance:
    """A covariance whose upper tiles lie in memory, as the methods of decomposition read it."""

    tiling: Tiling
    tiles: Mapping[tuple[int, int], npt.NDArray[Any]]

    def read(self, i: int, j: int) -> npt.NDArray[np.float64]:
        """Return tile (i, j)."""
        return self.tiles[i, j].astype(np.float64) if i <= j else self.read(j, i).T
