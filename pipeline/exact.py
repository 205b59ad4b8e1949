"""Exact products of uint8 rows by a CPU's int8 matrix units, or by AVX2, added to tiles where they lie.

oneDNN, which torch calls, multiplies int8 too; but the product comes out in memory of its own and is added
afterwards, by threads that wait for each other after each. Here the rows are made ready once for all tiles (128
subtracted, four of them side by side, their columns summed), and parts of tiles are multiplied and added to one by
one by the threads: twice as fast (docs/decisions.md). C (`_exact.c`) does it, where there are such units, or no int8
instructions at all, in which case float32 would be the alternative: see `units`.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import groupby
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tilecov.storage.tiling import Tiling

from .crew import Bytes, Crew
from .memory import large_pages, span, stride

_CHUNK = 64
"""Rows of a tile of bytes."""
_TILE = 16 * _CHUNK
_PAIR = 32
"""Columns that the units' registers hold."""
_HIGH, _WIDE = 512, 512
"""The parts of a tile that one thread adds to at a time; on matrix units their sums stay in its second cache."""
_NARROWEST = 128
"""Columns that a part is cut down to where threads would wait for others: the fewer, the more often rows are read."""


@dataclass(frozen=True)
class Packed:
    """Rows that were made ready, or room for them.

    Parameters
    ----------
    rows, width : int
    data : (bytes,) uint8
    sums : (width and more,) int32
        Of each column, 128 subtracted from each value.
    """

    rows: int
    width: int
    data: Bytes
    sums: npt.NDArray[np.int32]


@dataclass(frozen=True)
class _Part:
    """A part of tile (i, j) that one thread adds to: those rows, those columns."""

    tile: npt.NDArray[Any]
    left: Bytes
    one: Packed
    other: Packed
    is_diagonal: bool
    rows: slice
    columns: slice

    @property
    def is_half(self) -> bool:
        """Whether the diagonal goes through it, so that half of it is left out."""
        return self.is_diagonal and self.columns.start == self.rows.start

    def cut(self, pieces: int) -> list["_Part"]:
        """Return up to so many parts of its columns."""
        first, width = self.columns.start, self.columns.stop - self.columns.start
        step = max(_NARROWEST, -(-width // (pieces * _PAIR)) * _PAIR)
        spans = Tiling(width, step).spans()
        return [replace(self, columns=slice(first + span.start, first + span.stop)) for span in spans]


def packed_bytes(rows: int, width: int) -> int:
    """Return the bytes that rows take once they are made ready."""
    return -(-width // _PAIR) * _PAIR * -(-rows // _CHUNK) * _CHUNK


class ExactAdder(Crew):
    """Makes rows ready and adds their products to tiles, on as many threads as torch has; a context manager.

    Parameters
    ----------
    functions : module
        Those of `_exact`.
    room : dict
        Memory that is kept from one use to the next.
    most : int
        Rows that may come at a time, as far as known: memory is taken once for them.
    """

    def __init__(self, functions: ModuleType, room: dict[Any, Bytes], most: int = 0) -> None:
        self._functions, self._kept, self._most = functions, room, most
        threads = range(torch.get_num_threads())
        super().__init__(
            "tilecov-exact", (self._take(f"room {number}", functions.room(_HIGH, _WIDE)) for number in threads)
        )

    def pack(self, key: int, rows: Bytes) -> Packed:
        """Make (n, width) uint8 rows ready, in memory that is kept under this key."""
        count, width = rows.shape
        if rows.strides[1] != 1 or rows.strides[0] < width:  # columns apart, or the same row again
            rows = np.ascontiguousarray(rows)
        sums = np.zeros(-(-width // _PAIR) * _PAIR, np.int32)
        packed = Packed(count, width, self._take_rows(key, count, width), sums)
        memory = span(rows)
        step = max(2 * _PAIR, -(-width // (self.threads * 2 * _PAIR)) * 2 * _PAIR)

        def work(start: int) -> None:
            stop = min(start + step, width)
            self._functions.pack(memory, stride(rows, 0), count, width, packed.data, packed.sums, start, stop)

        self.each(work, range(0, width, step))
        return packed

    def add(self, tiles: Iterable[tuple[tuple[int, int], torch.Tensor]], packed: dict[int, Packed]) -> None:
        """Add to upper tiles (i, j), int32 or int64 and contiguous; of those on the diagonal to the upper triangle.

        Some entries below it are added to as well, which ones depends on the processor.
        """
        for i, row in groupby(sorted(tiles, key=lambda tile: tile[0]), key=lambda tile: tile[0][0]):
            left = self._turned(packed[i])
            parts = [
                _Part(tile.numpy(), left, packed[i], packed[j], i == j, high, wide)
                for (_, j), tile in row
                for high in Tiling(packed[i].width, _HIGH).spans()
                for wide in Tiling(packed[j].width, _WIDE).spans()
                if i != j or wide.stop > high.start
            ]
            self.each(self._add_part, _shared_out(parts, self.threads))

    def _turned(self, packed: Packed) -> Bytes:
        """Return a left factor: the transpose of what was made ready as a right one."""
        turned = self._take_rows("left", packed.rows, packed.width)
        step = -(-len(turned) // (self.threads * _TILE)) * _TILE

        def work(start: int) -> None:
            self._functions.turn(packed.data[start : start + step], turned[start : start + step])

        self.each(work, range(0, len(turned), step))
        return turned

    def _add_part(self, part: _Part) -> None:
        one, other, tile = part.one, part.other, part.tile
        with self.room() as sums:
            self._functions.add(
                tile, stride(tile, 0), tile.itemsize, part.left, other.data, one.rows, one.width, other.width,
                part.is_diagonal, part.rows.start, part.rows.stop, part.columns.start, part.columns.stop, sums,
            )  # fmt: skip

    def _take_rows(self, key: Any, rows: int, width: int) -> Bytes:
        return self._take(key, packed_bytes(max(rows, self._most), width))[: packed_bytes(rows, width)]

    def _take(self, key: Any, size: int) -> Bytes:
        """Return memory, whatever is in it, that is kept."""
        kept = self._kept.get(key)
        if kept is None or len(kept) < size:
            self._kept.pop(key, None)  # frees the smaller one before there is another
            self._kept[key] = kept = large_pages(size)
        return kept[:size]


def _shared_out(parts: list[_Part], threads: int) -> list[_Part]:
    """Return the parts in an order in which threads end at about the same time.

    Whole ones come first, then halves, then pieces of those that some threads would have had one more of than others.
    """
    whole, halves = [part for part in parts if not part.is_half], [part for part in parts if part.is_half]
    even = len(whole) // threads * threads
    return [*whole[:even], *halves, *(piece for part in whole[even:] for piece in part.cut(threads))]
