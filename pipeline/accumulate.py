"""Rows into moments: the products of blocks, summed exactly on a device."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch

from tilecov.storage.tiling import Tiling

from .device import EXACT_SUM, INT32_ROWS, Kernel

ORIGIN = 128
"""What is subtracted from every uint8 value, so that products fit 2**14."""
INT32_SUM = 2**31 - 1
FARTHEST = 255
"""The largest distance of a uint8 value from any other."""
STEP = 256
"""Rows between two places where a block may be cut: 256 * 255**2 is below 2**24."""
UNBOUNDED = 1 << 62

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
    block : int
        Rows that ``add`` will be given at the most, as far as known: memory is taken once for them.

    Notes
    -----
    A float32 sum of integers is exact while every partial sum stays within 2**24, and by Cauchy-Schwarz no entry of a
    block's Y.T @ Y passes its largest column's sum of squares; so blocks are cut where that would pass 2**24. To cut
    seldom, float32 sums are taken about the first block's rounded mean m instead of 128, which a white or black
    background would be far from, and moved in integers when they are taken: with e = m - 128 and s the sum about m,
    ``G_128 = G_m + e s^T + s e^T + N e e^T``.
    """

    def __init__(
        self, tiling: Tiling, pairs: Iterable[Pair], kernel: Kernel, *, wide: bool = False, block: int = 0
    ) -> None:
        self._tiling, self._kernel, self._wide, self._block = tiling, kernel, wide, block
        self.count = 0
        self._tiles = {pair: self._empty(pair) for pair in pairs}
        self._columns = sorted({index for pair in self._tiles for index in pair})
        self._sums = {j: self._vector(j, torch.int64) for j in self._columns}
        self._squares = {j: self._vector(j, torch.int64) for j in self._columns}
        self._middle = {j: self._vector(j, torch.float32).fill_(ORIGIN) for j in self._columns}
        self._scratch = torch.empty(0)
        self._centred: dict[int, torch.Tensor] = {}  # kept from block to block: fresh memory costs page faults

    def _empty(self, pair: Pair) -> torch.Tensor:
        shape = tuple(self._tiling.width(index) for index in pair)
        return torch.zeros(shape, dtype=torch.int64 if self._wide else torch.int32, device=self._kernel.device)

    def _vector(self, index: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(self._tiling.width(index), dtype=dtype, device=self._kernel.device)

    @property
    def columns(self) -> list[int]:
        """The tile columns that ``add`` wants."""
        return self._columns

    def room(self) -> int:
        """Return how many more rows fit for certain before the tiles must be taken."""
        if self._wide:
            return UNBOUNDED
        most = max(int(squares.max()) for squares in self._squares.values())
        return max(0, min(INT32_ROWS - self.count, (INT32_SUM - most) // FARTHEST**2))

    def add(self, panels: Panels) -> None:
        """Add rows given as their uint8 tile columns, each (n, width).

        Raises
        ------
        OverflowError
            Where the rows would pass what int32 keeps exact; nothing is added then, take the tiles first.
        """
        rows = len(panels[self._columns[0]])
        if not rows:
            return
        if not self.count and self._kernel.grouped:
            self._middle = {j: self._mean_of(panels[j]) for j in self._columns}
        centred = {j: self._centre(j, panels[j]) for j in self._columns}
        cuts = self._cuts(centred, rows) if self._kernel.grouped else [0, rows]
        if rows > INT32_ROWS or (not self._wide and self.count + rows > INT32_ROWS):
            raise self._overflow(rows)
        for j, panel in centred.items():
            self._sums[j] += panel.sum(dim=0, dtype=torch.int64 if panel.dtype == torch.int8 else None).to(torch.int64)
        for start, stop in pairwise(cuts):
            for (i, j), tile in self._tiles.items():
                tile.add_(self._kernel.product(centred[i][start:stop], centred[j][start:stop]))
        self.count += rows

    def _mean_of(self, panel: torch.Tensor) -> torch.Tensor:
        total = panel.to(self._kernel.device).sum(dim=0, dtype=torch.int64)
        return torch.round(total.to(torch.float64) / len(panel)).to(torch.float32)

    def _centre(self, index: int, panel: torch.Tensor) -> torch.Tensor:
        panel = panel.to(self._kernel.device, non_blocking=True)
        if self._kernel.dtype == torch.int8:
            return (panel ^ ORIGIN).view(torch.int8)  # flipping the top bit subtracts 128
        kept = self._centred.get(index)
        if kept is None or len(kept) < len(panel):
            shape = (max(len(panel), self._block), panel.shape[1])
            kept = torch.empty(shape, dtype=self._kernel.dtype, device=self._kernel.device)
            self._centred[index] = kept
        return torch.sub(panel, self._middle[index], out=kept[: len(panel)])

    def _cuts(self, centred: Panels, rows: int) -> list[int]:
        """Return where the block must be cut, and add to the columns' sums of squares where int32 holds them."""
        steps = [slice(start, start + STEP) for start in range(0, rows, STEP)]
        found = [torch.cat([self._squares_of(panel[step]) for panel in centred.values()]) for step in steps]
        squares = torch.stack(found).to(torch.int64)  # in float32, 2**24 + 1 would be rounded to 2**24 and pass
        widths = [panel.shape[1] for panel in centred.values()]
        totals = dict(zip(centred, torch.split(squares.sum(dim=0), widths), strict=True))
        if not self._wide and max(int((self._squares[j] + total).max()) for j, total in totals.items()) > INT32_SUM:
            raise self._overflow(rows)
        for j, total in totals.items():
            self._squares[j] += total
        return [*(start * STEP for start in exact_groups(squares)), rows]

    def _squares_of(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the columns' sums of squares; squares lie in memory that is kept, as fresh memory costs as much."""
        if self._scratch.shape != rows.shape:
            self._scratch = torch.empty_like(rows)
        return torch.mul(rows, rows, out=self._scratch).sum(dim=0)

    def _overflow(self, rows: int) -> OverflowError:
        return OverflowError(f"{rows} rows on top of {self.count} pass what int32 keeps exact ({INT32_ROWS} at most)")

    def take(self) -> tuple[int, npt.NDArray[np.int64], Iterator[tuple[Pair, Array]]]:
        """Return count, sum (d of the columns held, int64) and the int32 tiles, about 128, and start again from zero.

        The tiles come one by one and are cleared as they go, so no second set of them exists.
        """
        count, self.count = self.count, 0
        about, shift = {}, {}
        for j in self._columns:
            shift[j] = self._middle[j].to(torch.int64) - ORIGIN
            about[j] = self._sums[j].clone()
            self._sums[j].zero_()
            self._squares[j].zero_()
        sums = np.concatenate([(about[j] + count * shift[j]).cpu().numpy() for j in self._columns])
        return count, sums, self._drain(count, about, shift)

    def _drain(self, count: int, sums: Panels, shift: Panels) -> Iterator[tuple[Pair, Array]]:
        for (i, j), tile in self._tiles.items():
            # e s^T + s e^T + N e e^T = e (s + N e)^T + s e^T
            moved = torch.outer(shift[i], sums[j] + count * shift[j]).add_(torch.outer(sums[i], shift[j])).add_(tile)
            yield (i, j), moved.to(tile.dtype).cpu().numpy()
            tile.zero_()


def exact_groups(squares: torch.Tensor) -> list[int]:
    """Return where groups of steps start so that no column's sum of squares passes 2**24 inside a group.

    Parameters
    ----------
    squares : torch.Tensor
        (steps, d), each step's column sums of squares, none above 2**24.
    """
    squares = squares.to(torch.int64)
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
            yield pair, tile.cpu().numpy().copy()  # the tile is cleared while its copy is being written
            tile.zero_()


Accumulator = IntegerAccumulator | FloatAccumulator
