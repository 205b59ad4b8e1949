"""Float rows into moments: the products of blocks in float32, summed in float64 about an origin."""

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
import torch

from tilecov.storage.tiling import Tiling

from .accumulate import UNBOUNDED, Array, IntegerAccumulator, Pair, Panels


class FloatAccumulator:
    """Sums float64 tiles of (x - origin).T @ (x - origin) for float rows, in blocks of float32 products.

    Parameters
    ----------
    tiling, pairs
        As for IntegerAccumulator.
    origin : torch.Tensor
        (d,) float64: the mean of the first pass, or of the first block where there is only one pass.
    device : torch.device
    """

    def __init__(self, tiling: Tiling, pairs: Iterable[Pair], origin: torch.Tensor, device: torch.device) -> None:
        self._tiling, self._device = tiling, device
        self._origin = origin.to(device, torch.float64)
        self.count = 0
        self._tiles = {pair: self._empty(pair) for pair in pairs}
        self._columns = sorted({index for pair in self._tiles for index in pair})
        self._sums = {j: self._empty_vector(j) for j in self._columns}

    def _empty(self, pair: Pair) -> torch.Tensor:
        shape = tuple(self._tiling.width(index) for index in pair)
        return torch.zeros(shape, dtype=torch.float64, device=self._device)

    def _empty_vector(self, index: int) -> torch.Tensor:
        return torch.zeros(self._tiling.width(index), dtype=torch.float64, device=self._device)

    @property
    def columns(self) -> list[int]:
        """The tile columns that ``add`` wants."""
        return self._columns

    def room(self) -> int:
        """Return how many more rows fit: float64 tiles have no such bound that a dataset reaches."""
        return UNBOUNDED

    def add(self, panels: Panels) -> None:
        """Add rows given as their float tile columns, each (n, width)."""
        centred = {j: self._centre(j, panels[j]) for j in self._columns}
        for (i, j), tile in self._tiles.items():
            tile.add_(torch.mm(centred[i].T, centred[j]))
        self.count += len(centred[self._columns[0]])

    def _centre(self, index: int, panel: torch.Tensor) -> torch.Tensor:
        """Subtract the origin and add to the sum in float64; the products take float32."""
        centred = panel.to(self._device, torch.float64).sub(self._origin[self._tiling.span(index)])
        self._sums[index] += centred.sum(dim=0)
        return centred.to(torch.float32)

    def take(self) -> tuple[int, npt.NDArray[np.float64], Iterator[tuple[Pair, Array]]]:
        """Return count, sum (d of the columns held, float64) and the float64 tiles, and start again from zero."""
        count, sums = self.count, np.concatenate([self._sums[j].cpu().numpy() for j in self._columns])
        self.count = 0
        for total in self._sums.values():
            total.zero_()
        return count, sums, self._drain()

    def _drain(self) -> Iterator[tuple[Pair, Array]]:
        for pair, tile in self._tiles.items():
            yield pair, tile.cpu().numpy().copy()  # the tile is cleared while its copy is being written
            tile.zero_()


Accumulator = IntegerAccumulator | FloatAccumulator
