"""The tiles of a symmetric matrix while they are being changed: those that fit stay in memory, the rest lie in Zarr."""

import contextlib
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self, cast

import numpy as np
import torch

from tilecov.storage.objects import Folder
from tilecov.storage.tiles import TileMatrix, open_group
from tilecov.storage.tiling import Tiling

from ..ahead import ahead
from .direct import SymmetricTiles

IN_FLIGHT = 7
"""Tiles beside the resident ones, upper bound: one in use, one read ahead (three copies), one being written (two)."""

_PREFIX = "generation-"


class TileCache:
    """The upper tiles of a symmetric matrix that is changed in place, pass by pass.

    Changing tiles in place cannot be repeated, so what a checkpoint holds is never touched: tiles are written to the
    generation after the committed one, which is dropped only when the next one is complete. The passes of a reduction
    walk down the matrix, so the last tiles live longest: those are the resident ones.

    Parameters
    ----------
    scratch : Folder
        Where the generations lie.
    tiling : Tiling
        How rows and columns are cut.
    dtype : torch.dtype
        float32 or float64.
    device : torch.device
        Where resident tiles live.
    generation : int
        The committed generation, 0 where there is none. All others are removed.
    """

    def __init__(
        self, scratch: Folder, tiling: Tiling, *, dtype: torch.dtype, device: torch.device, generation: int = 0
    ) -> None:
        self.tiling = tiling
        self.generation = generation
        self._scratch = scratch
        self._dtype = dtype
        self._device = device
        self._resident: dict[tuple[int, int], torch.Tensor] = {}
        self._rewritten: set[tuple[int, int]] = set()
        self._writer = ThreadPoolExecutor(1, "tilecov-write")
        self._writing: Future[None] | None = None
        drop_generations(scratch, but=generation)
        self._old = self._matrix(generation) if generation else None
        self._new = self._matrix(generation + 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.shutdown(wait=True)

    def folder(self, generation: int) -> Folder:
        """Return the folder of a generation; what belongs to its checkpoint may be put there."""
        return self._scratch.folder(f"{_PREFIX}{generation}")

    def _matrix(self, generation: int) -> TileMatrix:
        size, tile = self.tiling.size, self.tiling.tile
        dtype = str(self._dtype).removeprefix("torch.")
        group = open_group(self.folder(generation), writable=True)
        return TileMatrix.create(group, "tiles", (size, size), (tile, tile), dtype)

    def fill(self, matrix: SymmetricTiles, room: int) -> None:
        """Take the tiles of ``matrix``, however it is cut; each is read once.

        Parameters
        ----------
        matrix : SymmetricTiles
        room : int
            Bytes that resident tiles may take.
        """
        resident = self._longest_lived(0, room)
        for i, j in matrix.tiling.upper():
            rows, columns = matrix.tiling.span(i), matrix.tiling.span(j)
            values = torch.from_numpy(np.ascontiguousarray(matrix.read(i, j))).to(self._dtype)
            for a in _touched(self.tiling, rows):
                for b in _touched(self.tiling, columns):
                    if a > b:
                        continue
                    down, across = _common(self.tiling.span(a), rows), _common(self.tiling.span(b), columns)
                    part = values[_within(down, rows), _within(across, columns)]
                    self._place((a, b), down, across, part, (a, b) in resident)
                    if a == b and i != j:  # a tile on the diagonal is kept whole
                        self._place((a, b), across, down, part.T, (a, b) in resident)
            del values, part  # else they are there while the next tile is made

    def _place(self, place: tuple[int, int], rows: slice, columns: slice, part: torch.Tensor, resident: bool) -> None:  # noqa: FBT001
        if not resident:
            self._new.array[rows, columns] = part.numpy()
            self._rewritten.add(place)
            return
        if place not in self._resident:
            shape = self.tiling.width(place[0]), self.tiling.width(place[1])
            self._resident[place] = torch.empty(shape, dtype=self._dtype, device=self._device)
        whole = self.tiling.span(place[0]), self.tiling.span(place[1])
        self._resident[place][_within(rows, whole[0]), _within(columns, whole[1])] = part

    def _longest_lived(self, first: int, room: int) -> set[tuple[int, int]]:
        """Return the last tiles, from tile row ``first`` on, that fit ``room`` bytes."""
        kept: set[tuple[int, int]] = set()
        for i in range(len(self.tiling) - 1, first - 1, -1):
            for j in range(len(self.tiling) - 1, i - 1, -1):
                room -= self.tiling.width(i) * self.tiling.width(j) * self._dtype.itemsize
                if room < 0:
                    return kept
                kept.add((i, j))
        return kept

    def sweep(self, first: int, *, room: int, changed: bool) -> Iterator[tuple[int, int, torch.Tensor]]:
        """Yield (i, j, tile) of all upper tiles from tile row ``first`` on, row by row; earlier rows are given up.

        Parameters
        ----------
        first : int
        room : int
            Bytes that resident tiles may take; never less than the sweep before had.
        changed : bool
            Whether the caller changes the tiles in place.
        """
        for place in [place for place in self._resident if place[0] < first]:
            del self._resident[place]
        kept = self._longest_lived(first, room)
        places = [(i, j) for i in range(first, len(self.tiling)) for j in range(i, len(self.tiling))]
        absent = [place for place in places if place not in self._resident]
        reading = cast("Generator[torch.Tensor, None, None]", ahead(self._read(*place) for place in absent))
        with contextlib.closing(reading) as spilled:
            for place in places:
                tile = self._resident[place] if place in self._resident else next(spilled).to(self._device)
                yield *place, tile
                if place in kept:
                    self._resident[place] = tile
                elif changed:
                    self._write(place, tile)
        self._written()

    def row(self, index: int) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield (j, tile) of tile row ``index``, from the diagonal on."""
        for j in range(index, len(self.tiling)):
            tile = self._resident.get((index, j))
            yield j, self._read(index, j).to(self._device) if tile is None else tile

    def _read(self, i: int, j: int) -> torch.Tensor:
        source = self._new if (i, j) in self._rewritten or self._old is None else self._old
        # Matrix products give the same bits only for memory aligned in the same way: torch's own.
        tile = torch.empty((self.tiling.width(i), self.tiling.width(j)), dtype=self._dtype)
        tile.numpy()[:] = source.read(i, j)
        return tile

    def _write(self, place: tuple[int, int], tile: torch.Tensor) -> None:
        self._written()
        self._rewritten.add(place)
        self._writing = self._writer.submit(self._new.write, *place, tile.cpu().numpy())

    def _written(self) -> None:
        """Wait for the tile that is being written."""
        if self._writing is not None:
            self._writing.result()
            self._writing = None

    def complete(self) -> int:
        """Write the resident tiles too and return the number of the generation that is whole then.

        Every tile that is still needed must have been changed since the last checkpoint.
        """
        for place, tile in self._resident.items():
            self._write(place, tile)
        self._written()
        return self.generation + 1

    def advance(self) -> None:
        """Drop the committed generation, because the one after it is committed now."""
        self._scratch.remove(f"{_PREFIX}{self.generation}")
        self.generation += 1
        self._old, self._new = self._new, self._matrix(self.generation + 1)
        self._rewritten.clear()


def drop_generations(scratch: Folder, *, but: int = 0) -> None:
    """Remove all generations in ``scratch``, but for one."""
    for name in scratch.names():
        if name.startswith(_PREFIX) and name != f"{_PREFIX}{but}":
            scratch.remove(name)


def _touched(tiling: Tiling, span: slice) -> range:
    """Return the tiles that ``span`` lies in."""
    return range(span.start // tiling.tile, (span.stop - 1) // tiling.tile + 1)


def _common(a: slice, b: slice) -> slice:
    return slice(max(a.start, b.start), min(a.stop, b.stop))


def _within(span: slice, whole: slice) -> slice:
    """Return ``span`` as counted from the start of ``whole``."""
    return slice(span.start - whole.start, span.stop - whole.start)
