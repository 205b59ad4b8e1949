"""The tiles of a symmetric matrix while they are being changed: those that fit stay in memory, the rest in files.

Plain files, a tile each, not Zarr: whose event loop, one thread of many that want two cores, made reading or writing a
tile of 1 MB take 5 ms where the file alone takes a half.
"""

import contextlib
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import cast

import numpy as np
import torch

from tilecov.storage.objects import Folder
from tilecov.storage.partials import DamagedTileError
from tilecov.storage.tiling import Tiling

from ..ahead import ahead
from .direct import SymmetricTiles

SHARES = 2
"""Threads that go over the tiles at a time, at most: one reads or writes its tile while the other one multiplies."""

IN_FLIGHT = 3 * SHARES
"""Tiles beside the resident ones, upper bound: of each thread one, and two copies of it while it is read or written."""

Place = tuple[int, int, torch.Tensor]

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
        drop_generations(scratch, but=generation)
        self._make_folder()

    def folder(self, generation: int) -> Folder:
        """Return the folder of a generation; what belongs to its checkpoint may be put there."""
        return self._scratch.folder(f"{_PREFIX}{generation}")

    def _make_folder(self) -> None:
        if self._scratch.is_local:  # elsewhere there are no folders to make
            Path(self.folder(self.generation + 1).path()).mkdir(parents=True, exist_ok=True)

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
        whole = self.tiling.span(place[0]), self.tiling.span(place[1])
        if resident and place in self._resident:
            tile = self._resident[place]
        elif not resident and place in self._rewritten:
            tile = self._read(*place)
        else:
            tile = self._empty(*place, self._device if resident else torch.device("cpu"))
        tile[_within(rows, whole[0]), _within(columns, whole[1])] = part
        if resident:
            self._resident[place] = tile
        else:
            self._write(place, tile)

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

    def sweep(self, first: int, *, room: int, changed: bool, shares: int = 1) -> list[Iterator[Place]]:
        """Return iterators over (i, j, tile), together all upper tiles from tile row ``first`` on; drop earlier rows.

        Each is for a thread of its own. Which tiles it has depends on ``first`` and ``shares`` alone, and their order
        too: so sums over them have the same bits, whatever ``room`` there is and however long the disk takes.

        Parameters
        ----------
        first : int
        room : int
            Bytes that resident tiles may take; never less than the sweep before had.
        changed : bool
            Whether the caller changes the tiles in place.
        shares : int
            How many iterators, up to `SHARES`.
        """
        for place in [place for place in self._resident if place[0] < first]:
            del self._resident[place]
        kept = self._longest_lived(first, room)
        places = [(i, j) for i in range(first, len(self.tiling)) for j in range(i, len(self.tiling))]
        return [self._share(places[k::shares], kept, changed, shares == 1) for k in range(shares)]

    def _share(
        self,
        places: list[tuple[int, int]],
        kept: set[tuple[int, int]],
        changed: bool,  # noqa: FBT001
        alone: bool,  # noqa: FBT001
    ) -> Iterator[Place]:
        absent = [place for place in places if place not in self._resident]
        unread = (self._read(*place) for place in absent)
        reading = cast("Generator[torch.Tensor, None, None]", ahead(unread) if alone else unread)
        with contextlib.closing(reading) as spilled:
            for place in places:
                tile = self._resident[place] if place in self._resident else next(spilled).to(self._device)
                yield *place, tile
                if place in kept:
                    self._resident[place] = tile
                elif changed:
                    self._write(place, tile)

    def row(self, index: int) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield (j, tile) of tile row ``index``, from the diagonal on."""
        for j in range(index, len(self.tiling)):
            tile = self._resident.get((index, j))
            yield j, self._read(index, j).to(self._device) if tile is None else tile

    def _empty(self, i: int, j: int, device: torch.device) -> torch.Tensor:
        return torch.empty((self.tiling.width(i), self.tiling.width(j)), dtype=self._dtype, device=device)

    def _read(self, i: int, j: int) -> torch.Tensor:
        folder = self.folder(self.generation + ((i, j) in self._rewritten))
        # Matrix products give the same bits only for memory aligned in the same way: torch's own.
        tile = self._empty(i, j, torch.device("cpu"))
        values = tile.numpy().data.cast("B")
        try:
            if folder.is_local:
                with Path(folder.path(_name(i, j))).open("rb", buffering=0) as file:
                    count = file.readinto(values)
            else:
                data = folder.read(_name(i, j))
                values[: len(data)] = data
                count = len(data)
        except FileNotFoundError:
            count = 0
        if count != len(values):
            raise DamagedTileError(f"{folder.path(_name(i, j))} has {count} bytes of {len(values)}")
        return tile

    def _write(self, place: tuple[int, int], tile: torch.Tensor) -> None:
        folder = self.folder(self.generation + 1)
        values = tile.cpu().numpy().data.cast("B")
        if folder.is_local:
            # Not flushed to the disk: a checkpoint does so for all tiles at once, and most are rewritten before.
            Path(folder.path(_name(*place))).write_bytes(values)
        else:
            folder.write(_name(*place), values)
        self._rewritten.add(place)

    def complete(self) -> int:
        """Write the resident tiles too and return the number of the generation that is whole then.

        Every tile that is still needed must have been changed since the last checkpoint.
        """
        for place, tile in self._resident.items():
            self._write(place, tile)
        return self.generation + 1

    def advance(self) -> None:
        """Drop the committed generation, because the one after it is committed now."""
        self._scratch.remove(f"{_PREFIX}{self.generation}")
        self.generation += 1
        self._rewritten.clear()
        self._make_folder()


def drop_generations(scratch: Folder, *, but: int = 0) -> None:
    """Remove all generations in ``scratch``, but for one."""
    for name in scratch.names():
        if name.startswith(_PREFIX) and name != f"{_PREFIX}{but}":
            scratch.remove(name)


def _name(i: int, j: int) -> str:
    return f"tile-{i:05d}-{j:05d}"


def _touched(tiling: Tiling, span: slice) -> range:
    """Return the tiles that ``span`` lies in."""
    return range(span.start // tiling.tile, (span.stop - 1) // tiling.tile + 1)


def _common(a: slice, b: slice) -> slice:
    return slice(max(a.start, b.start), min(a.stop, b.stop))


def _within(span: slice, whole: slice) -> slice:
    """Return ``span`` as counted from the start of ``whole``."""
    return slice(span.start - whole.start, span.stop - whole.start)
