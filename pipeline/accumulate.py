"""Rows into moments: the products of blocks, summed exactly on a device."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tilecov.storage.tiling import Tiling

from .bounds import EXACT_SUM, INT32_ROWS, ORIGIN
from .device import Kernel
from .exact import ExactAdder

INT32_SUM = 2**31 - 1
FARTHEST = 255
"""The largest distance of a uint8 value from any other."""
ALWAYS = 256
"""Rows that are exact whatever they hold: 256 * 255**2 is below 2**24."""
TALLEST = 1 << 15
"""Rows multiplied at a time at the most: their squares, exact or not, stay below 2**31."""
MARGIN = 0.95
"""Of the rows that the last block would have allowed, those tried next; a span that fails is multiplied twice."""
STRIP = 64
"""Rows of a tile that are moved at a time."""
BAND = 256
"""Rows of a diagonal tile that are multiplied at a time, each from its own diagonal on: five eighths of the whole."""
UNBOUNDED = 1 << 62

Pair = tuple[int, int]
Span = tuple[int, int]
Panels = Mapping[int, torch.Tensor]
Array = npt.NDArray[np.generic]


def panels_of(rows: torch.Tensor, tiling: Tiling) -> dict[int, torch.Tensor]:
    """Cut (n, d) rows into their tile columns, as views."""
    return {index: rows[:, span] for index, span in enumerate(tiling.spans())}


@dataclass
class Workspace:
    """Memory kept from block to block, as fresh memory costs page faults; accumulators used in turn may share it.

    Parameters
    ----------
    centred : dict of int to torch.Tensor
        Blocks made ready for the products, by tile column.
    squares : torch.Tensor
        A few rows, squared.
    product : torch.Tensor
        A diagonal tile, int32, zero below its bands.
    ready : dict
        What ``ExactAdder`` keeps.
    """

    centred: dict[int, torch.Tensor] = field(default_factory=dict)
    squares: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    product: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    ready: dict[Any, npt.NDArray[np.uint8]] = field(default_factory=dict)


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
    workspace : Workspace, optional
        Of its own where none is given.

    Notes
    -----
    A float32 sum of integers is exact while every partial sum stays within 2**24, and by Cauchy-Schwarz no entry of
    Y.T @ Y passes its largest column's sum of squares. That sum is on the diagonal of the product itself. All its terms
    are non-negative and rounding is monotone, so a float32 result below 2**24 proves that no partial sum reached it,
    in whatever order they were added: the diagonal tiles are multiplied first, and rows are cut where one fails.

    To cut seldom, float32 sums are taken about the first block's rounded mean m instead of 128, which a white or black
    background would be far from, and moved in integers when they are taken: with e = m - 128 and s the sum about m,
    ``G_128 = G_m + e s^T + s e^T + N e e^T``.
    """

    def __init__(
        self,
        tiling: Tiling,
        pairs: Iterable[Pair],
        kernel: Kernel,
        *,
        wide: bool = False,
        block: int = 0,
        workspace: Workspace | None = None,
    ) -> None:
        self._tiling, self._kernel, self._wide, self._block = tiling, kernel, wide, block
        self.count = 0
        self._tiles: dict[Pair, torch.Tensor | None] = dict.fromkeys(pairs)  # made by their first product
        self._columns = sorted({index for pair in self._tiles for index in pair})
        self._sums = {j: self._vector(j, torch.int64) for j in self._columns}
        self._squares = {j: self._vector(j, torch.int64) for j in self._columns}
        self._middle = {j: self._vector(j, torch.float32).fill_(ORIGIN) for j in self._columns}
        self._about_mean = False
        self._piece = TALLEST
        self._workspace = workspace or Workspace()

    def _put(self, pair: Pair, product: torch.Tensor) -> None:
        """Add a product, which the kernel may overwrite afterwards, to its tile."""
        tile = self._tiles[pair]
        if tile is None:
            self._tiles[pair] = product.to(torch.int64 if self._wide else torch.int32, copy=True)
        else:
            tile.add_(product)

    def _vector(self, index: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(self._tiling.width(index), dtype=dtype, device=self._kernel.device)

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
            Where the rows would pass what int32 keeps exact; nothing is added then, take the tiles first.
        """
        rows = len(panels[self._columns[0]])
        if not rows:
            return
        if rows > self.room():
            raise OverflowError(
                f"{rows} rows on top of {self.count} pass what int32 keeps exact ({INT32_ROWS} at most)"
            )
        if self._kernel.grouped:
            self._choose_middle(panels, rows)
        for start in range(0, rows, TALLEST):
            block = {j: panels[j][start : start + TALLEST] for j in self._columns}
            if self._kernel.functions is not None:
                self._add_where_they_lie(self._kernel.functions, block)
            else:
                self._add_block({j: self._centre(j, panel) for j, panel in block.items()})
        self.count += rows

    def _add_where_they_lie(self, functions: ModuleType, block: Panels) -> None:
        """Add a block to the tiles, none of which is made on the way."""
        with ExactAdder(functions, self._workspace.ready, min(self._block, TALLEST)) as adder:
            ready = {j: adder.pack(j, panel.numpy()) for j, panel in block.items()}
            adder.add(((pair, self._tile(pair)) for pair in self._tiles), ready)
        for j, packed in ready.items():
            self._sums[j] += torch.from_numpy(packed.sums[: packed.width])

    def _tile(self, pair: Pair) -> torch.Tensor:
        """Return the tile, made of zeros where there was none."""
        tile = self._tiles[pair]
        if tile is None:
            shape = tuple(self._tiling.width(index) for index in pair)
            self._tiles[pair] = tile = torch.zeros(shape, dtype=torch.int64 if self._wide else torch.int32)
        return tile

    def _choose_middle(self, panels: Panels, rows: int) -> None:
        """Begin about the mean; go back to 128, where INT32_ROWS always fit, before rows far from it could overflow."""
        if not self.count:
            self._middle = {j: self._mean_of(panels[j]) for j in self._columns}
            self._about_mean = True
        if self._about_mean and not self._wide:
            most = max(int(squares.max()) for squares in self._squares.values())
            if most + rows * FARTHEST**2 > INT32_SUM:
                self._return_to_origin()

    def _mean_of(self, panel: torch.Tensor) -> torch.Tensor:
        total = panel.to(self._kernel.device).sum(dim=0, dtype=torch.int64)
        return torch.round(total.to(torch.float64) / len(panel)).to(torch.float32)

    def _centre(self, index: int, panel: torch.Tensor) -> torch.Tensor:
        panel = panel.to(self._kernel.device, non_blocking=True)
        exact = self._kernel.dtype == torch.int8
        kept = self._workspace.centred.get(index)
        if kept is None or len(kept) < len(panel):
            shape = (max(len(panel), min(self._block, TALLEST)), panel.shape[1])
            kept = torch.empty(shape, dtype=torch.uint8 if exact else self._kernel.dtype, device=self._kernel.device)
            self._workspace.centred[index] = kept
        if exact:  # flipping the top bit subtracts 128
            return torch.bitwise_xor(panel, ORIGIN, out=kept[: len(panel)]).view(torch.int8)
        return torch.sub(panel, self._middle[index], out=kept[: len(panel)])

    def _add_block(self, centred: Panels) -> None:
        rows = len(centred[self._columns[0]])
        spans = self._add_columns(centred, rows) if self._kernel.grouped else [(0, rows)]
        for i, j in self._tiles:
            for start, stop in spans:
                if i != j:
                    self._put((i, j), self._kernel.product(centred[i][start:stop], centred[j][start:stop]))
                elif not self._kernel.grouped:  # int8 units gain nothing from bands
                    self._put((i, j), self._kernel.product(centred[i], centred[i]))
        for j, panel in centred.items():
            self._sums[j] += self._sum_of(panel).to(torch.int64)

    def _sum_of(self, panel: torch.Tensor) -> torch.Tensor:
        """Return the column sums of a centred block: at most TALLEST * 255, which float32 keeps."""
        if panel.dtype != torch.int8:
            return panel.sum(dim=0)
        ones = panel.new_ones((len(panel), 8))  # a product is many times as fast as torch's sums of int8
        return self._kernel.product(ones, panel)[0]

    def _add_columns(self, centred: Panels, rows: int) -> list[Span]:
        """Add the diagonal tiles and the sums of squares; return the spans of rows in which every column is exact."""
        spans, steepest = _cut(0, rows, self._piece), 1.0
        for j, panel in centred.items():
            exact: list[Span] = []
            waiting = spans[::-1]
            while waiting:
                start, stop = waiting.pop()
                squares, product = self._squares_of(j, panel[start:stop])
                most = int(squares.max())
                if most >= EXACT_SUM and stop - start > ALWAYS:
                    waiting += _cut(start, stop, _allowed(most / (stop - start)))[::-1]
                    continue
                self._squares[j] += squares
                if product is not None:
                    self._put((j, j), product)
                steepest = max(steepest, most / (stop - start))
                exact.append((start, stop))
            spans = exact
        self._piece = _allowed(steepest)
        return spans

    def _squares_of(self, index: int, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the column sums of squares, exact below 2**24, and the diagonal tile's product that they come from.

        A group of staged tiles need not hold the diagonal ones: then squares are summed by themselves, in memory that
        is kept, as fresh memory costs as much.
        """
        if (index, index) in self._tiles:
            product = self._product_with_itself(rows)
            return product.diagonal(), product
        total = torch.zeros(rows.shape[1], dtype=torch.int64, device=rows.device)
        for start in range(0, len(rows), ALWAYS):
            part = rows[start : start + ALWAYS]
            if self._workspace.squares.shape != part.shape:
                self._workspace.squares = torch.empty_like(part)
            total += torch.mul(part, part, out=self._workspace.squares).sum(dim=0).to(torch.int64)
        return total, None

    def _product_with_itself(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the int32 product of (n, w) rows with themselves, zero below the bands; valid until the next one."""
        width = rows.shape[1]
        if len(self._workspace.product) < width:
            self._workspace.product = torch.zeros((width, width), dtype=torch.int32, device=rows.device)
        for start in range(0, width, BAND):
            band = slice(start, min(start + BAND, width))
            self._workspace.product[band, start:width] = self._kernel.product(rows[:, band], rows[:, start:])
        return self._workspace.product[:width, :width]

    def take(self) -> tuple[int, npt.NDArray[np.int64], Iterator[tuple[Pair, Array]]]:
        """Return count, sum (d of the columns held, int64) and the int32 tiles, about 128, and start again from zero.

        The tiles come one by one and are given away as they go, so no second set of them exists.
        """
        count, shift = self.count, self._shift()
        about = {j: self._sums[j].clone() for j in self._columns}
        sums = np.concatenate([(about[j] + count * shift[j]).cpu().numpy() for j in self._columns])
        self.count = 0
        for j in self._columns:
            self._sums[j].zero_()
            self._squares[j].zero_()
        return count, sums, self._drain(count, about, shift)

    def _shift(self) -> dict[int, torch.Tensor]:
        return {j: middle.to(torch.int64) - ORIGIN for j, middle in self._middle.items()}

    def _drain(self, count: int, sums: Panels, shift: Panels) -> Iterator[tuple[Pair, Array]]:
        for pair, tile in self._tiles.items():
            if tile is None:
                shape = tuple(self._tiling.width(index) for index in pair)
                yield pair, np.zeros(shape, np.int64 if self._wide else np.int32)
            else:
                if any(shift[index].any() for index in pair):  # int8 units sum about 128 from the start
                    _move(tile, pair, count, sums, shift)
                if pair[0] == pair[1]:
                    _mirror(tile)
                self._tiles[pair] = None
                yield pair, tile.cpu().numpy()

    def _return_to_origin(self) -> None:
        """Move everything held to 128, in place."""
        shift = self._shift()
        for pair, tile in self._tiles.items():
            if tile is not None:
                _move(tile, pair, self.count, self._sums, shift)
        for j, e in shift.items():
            self._sums[j] += self.count * e
            self._middle[j].fill_(ORIGIN)
        self._about_mean = False


def _mirror(tile: torch.Tensor) -> None:
    """Copy the upper triangle of a diagonal tile to its lower one, whatever is there."""
    for start in range(0, len(tile), BAND):
        band = slice(start, start + BAND)
        square = tile[band, band]
        square.copy_(square.triu() + square.triu(1).T)
        tile[start + BAND :, band] = tile[band, start + BAND :].T


def _move(tile: torch.Tensor, pair: Pair, count: int, sums: Panels, shift: Panels) -> None:
    """Move a tile of sums about 128 + e to 128, in place: e s^T + s e^T + N e e^T = e (s + N e)^T + s e^T more.

    In int64, as terms pass int32 where their sum does not, and in strips that stay in a core's cache.
    """
    i, j = pair
    right = sums[j] + count * shift[j]
    for start in range(0, len(tile), STRIP):
        strip = slice(start, start + STRIP)
        more = torch.outer(shift[i][strip], right).addr_(sums[i][strip], shift[j])
        tile[strip] = more.add_(tile[strip])


def _allowed(steepness: float) -> int:
    """Return how many rows stay below 2**24 where the worst column's squares grow by ``steepness`` a row."""
    return min(TALLEST, max(ALWAYS, int(MARGIN * EXACT_SUM / steepness)))


def _cut(start: int, stop: int, most: int) -> list[Span]:
    """Cut rows evenly into as few spans of at most ``most`` rows as there can be."""
    parts = -(-(stop - start) // most)
    return list(pairwise(start + (stop - start) * part // parts for part in range(parts + 1)))
