"""Rows into moments: the products of blocks, summed exactly on a device."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch

from tilecov.storage.tiling import Tiling

from .device import EXACT_SUM, INT32_ROWS, ROWS_ALWAYS_EXACT, Kernel

ORIGIN = 128
"""What is subtracted from every uint8 value, so that products fit 2**14."""
UNBOUNDED = 1 << 62
_STEP = 256  # rows between two places where a block may be cut

Pair = tuple[int, int]
Panels = Mapping[int, torch.Tensor]
Array = npt.NDArray[np.generic]


def panels_of(rows: torch.Tensor, tiling: Tiling) -> dict[int, torch.Tensor]:
    """Cut (n, d) rows into their tile columns, as views."""
    return {index: rows[:, span] for index, span in enumerate(tiling.spans())}


class IntegerAccumulator:
    """Sums exact int32 tiles of Y.T @ Y for uint8 rows, y = x - 128.

    Parameters
    ----------
    tiling : Tiling
    pairs : iterable of (int, int)
        The upper tiles to sum; all of them for resident statistics, a group for staged ones.
    kernel : Kernel
        Proven exact on its device.
    wide : bool
        Whether the tiles are int64, which hold any number of rows, instead of int32.

    Notes
    -----
    A float32 sum of integers is exact while every partial sum stays within 2**24, and by Cauchy-Schwarz no entry of a
    block's Y.T @ Y passes its largest column's sum of squares; so blocks are cut where that would pass 2**24.
    """

    def __init__(self, tiling: Tiling, pairs: Iterable[Pair], kernel: Kernel, *, wide: bool = False) -> None:
        self._tiling, self._kernel, self._wide = tiling, kernel, wide
        self.count = 0
        self._tiles = {pair: self._empty(pair) for pair in pairs}
        self._columns = sorted({index for pair in self._tiles for index in pair})
        self._sums = {j: torch.zeros(tiling.width(j), dtype=torch.int64, device=kernel.device) for j in self._columns}

    def _empty(self, pair: Pair) -> torch.Tensor:
        shape = tuple(self._tiling.width(index) for index in pair)
        return torch.zeros(shape, dtype=torch.int64 if self._wide else torch.int32, device=self._kernel.device)

    @property
    def columns(self) -> list[int]:
        """The tile columns that ``add`` wants."""
        return self._columns

    def room(self) -> int:
        """Return how many more rows fit before the tiles must be taken."""
        return UNBOUNDED if self._wide else INT32_ROWS - self.count

    def add(self, panels: Panels) -> None:
        """Add rows given as their uint8 tile columns, each (n, width).

        Raises
        ------
        OverflowError
            Where the rows would pass what int32 keeps exact; take the tiles first.
        """
        rows = len(panels[self._columns[0]])
        if rows > min(self.room(), INT32_ROWS):
            raise OverflowError(f"{rows} rows on top of {self.count} pass the {INT32_ROWS} that int32 keeps exact")
        centred = {j: self._centre(panels[j]) for j in self._columns}
        for j, panel in centred.items():
            self._sums[j] += panel.sum(dim=0, dtype=torch.int64 if panel.dtype == torch.int8 else None).to(torch.int64)
        for start, stop in pairwise(self._cuts(centred, rows)):
            for (i, j), tile in self._tiles.items():
                tile.add_(self._kernel.product(centred[i][start:stop], centred[j][start:stop]))
        self.count += rows

    def _centre(self, panel: torch.Tensor) -> torch.Tensor:
        panel = panel.to(self._kernel.device, non_blocking=True)
        if self._kernel.dtype == torch.int8:
            return (panel ^ ORIGIN).view(torch.int8)  # flipping the top bit subtracts 128
        return panel.to(self._kernel.dtype).sub_(ORIGIN)

    def _cuts(self, centred: Panels, rows: int) -> list[int]:
        if rows <= ROWS_ALWAYS_EXACT or not self._kernel.grouped:
            return [0, rows]
        starts = range(0, rows, _STEP)
        squares = torch.stack(
            [
                torch.cat([panel[start : start + _STEP].square().sum(dim=0) for panel in centred.values()])
                for start in starts
            ]
        )
        return [*(start * _STEP for start in exact_groups(squares)), rows]

    def take(self) -> tuple[int, npt.NDArray[np.int64], Iterator[tuple[Pair, Array]]]:
        """Return count, sum (d of the columns held, int64) and the int32 tiles, and start again from zero.

        The tiles come one by one and are cleared as they go, so no second set of them exists.
        """
        count, sums = self.count, np.concatenate([self._sums[j].cpu().numpy() for j in self._columns])
        self.count = 0
        for total in self._sums.values():
            total.zero_()
        return count, sums, self._drain()

    def _drain(self) -> Iterator[tuple[Pair, Array]]:
        for pair, tile in self._tiles.items():
            yield pair, tile.cpu().numpy()
            tile.zero_()


def exact_groups(squares: torch.Tensor) -> list[int]:
    """Return where groups of steps start so that no column's sum of squares passes 2**24 inside a group.

    Parameters
    ----------
    squares : torch.Tensor
        (steps, d), each step's column sums of squares, none above 2**24.
    """
    squares = squares.to(torch.int64)  # in float32, 2**24 + 1 would be rounded to 2**24 and pass
    starts, running = [0], squares[0]
    for step in range(1, len(squares)):
        running = running + squares[step]
        if running.max() > EXACT_SUM:
            starts.append(step)
            running = squares[step]
    return starts


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
            yield pair, tile.cpu().numpy()
            tile.zero_()


Accumulator = IntegerAccumulator | FloatAccumulator
