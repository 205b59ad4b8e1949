"""Full to band: a symmetric matrix that does not fit the memory becomes a band, by blocked Householder panels.

``A = Q B Q.T`` with B of half-width b, after Bischof and Van Loan (1987), and Dongarra, Sorensen and Hammarling (1989):
the QR factorization of the block column below the diagonal block gives a panel, ``Q_k = I - V T V.T``, and with
``Z = A V T`` and ``W = Z - V (T.T V.T Z) / 2`` the rest becomes ``Q_k.T A Q_k = A - V W.T - W V.T``. One pass over the
tiles a panel does both: it applies the panel before, which waits till then, and multiplies the tiles by the new V.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tilecov.storage.objects import Folder
from tilecov.storage.tiles import Array, TileMatrix, open_group
from tilecov.storage.tiling import Tiling

from ..blas import single_threaded
from ..errors import DoesNotFitError
from ..sizes import show_size
from .direct import SymmetricTiles
from .panels import Panels, factor
from .tilecache import IN_FLIGHT, SHARES, Place, TileCache, drop_generations

COMMIT = "band"
"""The name of the one record that is committed, again and again."""

_HELD = 4 + SHARES
"""Arrays (n, b) at once, upper bound: V and W of the panel that waits, V of the new one and a Z of each thread, and the
next block row."""

Commit = Callable[[str, dict[str, Any]], None]


def working_tiling(size: int, width: int) -> Tiling:
    """Return how the matrix is cut while it is reduced: no block column lies in two tiles."""
    edge = 512 if size <= 16_384 else 1024
    blocks = min(-(-size // width), max(1, edge // width))
    return Tiling(size, blocks * width)


def least_bytes(size: int, width: int, dtype: torch.dtype, rest: int | None = None) -> int:
    """Return the bytes of working arrays where no tile stays in memory and ``rest`` rows (all by default) are left."""
    tile = min(working_tiling(size, width).tile, size)
    small = 8 * (6 * width * width + 2 * width * 4096)  # float64 matrices of (b, b), and pieces of V
    panels = dtype.itemsize * _HELD * (size if rest is None else rest) * width
    filling = (8 + dtype.itemsize) * min(size, 1024) ** 2  # a tile of the matrix, as it is read and as it is kept
    return small + max(panels, filling) + dtype.itemsize * tile * (IN_FLIGHT * tile + SHARES * 4 * width)


@dataclass
class _Waiting:
    """A panel that the stored tiles do not have yet: ``A - V W.T - W V.T`` from row ``first`` on."""

    first: int
    V: torch.Tensor
    W: torch.Tensor

    def rows(self, span: slice) -> tuple[torch.Tensor, torch.Tensor]:
        part = slice(span.start - self.first, span.stop - self.first)
        return self.V[part], self.W[part]


@dataclass
class _Reduction:
    """What the steps of one reduction share."""

    size: int
    width: int
    dtype: torch.dtype
    device: torch.device
    budget: int
    scratch: Folder
    tiles: TileCache
    panels: Panels
    band: TileMatrix
    block: torch.Tensor  # the next block row, (up to b, d - first), without the panel that waits
    pool: ThreadPoolExecutor  # one for all passes, since every new thread takes some MB for its products
    writer: ThreadPoolExecutor  # of the panel that was made last, while the next pass begins
    written: Future[None] | None = None
    waiting: _Waiting | None = None

    def start(self, matrix: SymmetricTiles, done: int) -> None:
        """Take the tiles of ``matrix``, or go on after ``done`` blocks that are committed."""
        first = done * self.width
        if done:
            V, _ = self.panels.read(done - 1)
            kept = TileMatrix.open(open_group(self.tiles.folder(self.tiles.generation)), "waiting")
            W = torch.empty_like(V)
            W.numpy()[:] = kept.read_all()
            self.waiting = _Waiting(first, V.to(self.device), W.to(self.device))
        else:
            self.tiles.fill(matrix, self.room(0))
        self.block = self.read_block(first)

    def checkpoint(self, waiting: _Waiting, commit: Commit) -> None:
        """Commit what there is: the tiles, and W of the panel that they do not have yet."""
        self.finish_writing()
        generation = self.tiles.complete()
        values: Array = waiting.W.cpu().numpy()
        group = open_group(self.tiles.folder(generation), writable=True)
        kept = TileMatrix.create(group, "waiting", values.shape, (4096, self.width), str(values.dtype))
        for i, span in enumerate(kept.rows.spans()):
            kept.write(i, 0, values[span])
        self.scratch.sync()
        commit(COMMIT, {"blocks": waiting.first // self.width, "generation": generation})
        self.tiles.advance()

    def room(self, first: int) -> int:
        """Return the bytes left for resident tiles when rows from ``first`` on remain."""
        return self.budget - least_bytes(self.size, self.width, self.dtype, self.size - first)

    def block_of(self, first: int) -> tuple[torch.Tensor, slice]:
        """Return room for the next block row, (up to b, d - first), and its rows."""
        span = slice(first, min(first + self.width, self.size))
        shape = span.stop - span.start, self.size - first
        return torch.empty(shape, dtype=self.dtype, device=self.device), span

    def read_block(self, first: int) -> torch.Tensor:
        """Return the block row that begins at ``first``, (up to b, d - first), as the tiles have it."""
        block, span = self.block_of(first)
        index = first // self.tiles.tiling.tile
        start = index * self.tiles.tiling.tile
        for j, tile in self.tiles.row(index):
            columns = self.tiles.tiling.span(j)
            skip = max(first - columns.start, 0)
            block[:, columns.start + skip - first : columns.stop - first] = tile[
                span.start - start : span.stop - start, skip:
            ]
        return block

    def step(self, k: int) -> None:
        """Bring block row k up to date, write its part of the band, make panel k and go over the tiles with it."""
        first = k * self.width
        block, self.block = self.block, torch.empty(0)
        span, whole = slice(first, first + len(block)), slice(first, self.size)
        if self.waiting is not None:
            V, W = self.waiting.rows(span)
            all_V, all_W = self.waiting.rows(whole)
            block.addmm_(V, all_W.T, alpha=-1).addmm_(W, all_V.T, alpha=-1)
        diagonal = block[:, : len(block)].T
        if k < len(self.panels):
            V, T, R = factor(block[:, self.width :].T)
            self._write_band(k, torch.cat([diagonal, R]))
            self.finish_writing()
            self.written = self.writer.submit(self.panels.write, k, V, T)
            del block, diagonal  # frees their memory before the pass
            self._pass(span.stop, V, T)
        else:  # the row below, if there is one, lies in the band
            self._write_band(k, torch.cat([diagonal, block[:, len(block) :].T]))
            if span.stop < self.size:
                self.block = self.read_block(span.stop)

    def finish_writing(self) -> None:
        """Wait till the last panel is written."""
        if self.written is not None:
            self.written.result()

    def _write_band(self, k: int, columns: torch.Tensor) -> None:
        """Write block column k of B, (up to 2 b, up to b) from the diagonal on, below the diagonal only."""
        values = columns.double().cpu().numpy()
        stored = np.zeros((self.width + 1, values.shape[1]))
        for c in range(values.shape[1]):
            part = values[c : c + self.width + 1, c]
            stored[: len(part), c] = part
        self.band.write(0, k, stored)

    def _pass(self, first: int, V: torch.Tensor, T: torch.Tensor) -> None:
        """Go over the tiles once: apply the panel that waits, add up A V, and take out the next block row."""
        self.block, _ = self.block_of(first)
        sums = self._sums(first, V)
        self.waiting = None  # frees its memory before the next one is made
        Z = sums.pop(0)
        while sums:
            Z += sums.pop(0)
        Z = Z @ T.to(self.dtype)
        middle = T.T @ (V.T @ Z).double()
        self.waiting = _Waiting(first, V, Z.addmm_(V, ((middle + middle.T) / 4).to(self.dtype), alpha=-1))

    def _sums(self, first: int, V: torch.Tensor) -> list[torch.Tensor]:
        """Return the parts of A V that each thread has added up.

        One thread's arithmetic hides what the other one waits for: the disk, and torch's threads for each other, which
        after every product of tiles takes as long as the product where other threads are busy.
        """
        stopped = threading.Event()
        with single_threaded() as threads:
            shares = min(threads, SHARES) if self.device.type == "cpu" else 1
            torch.set_num_threads(threads // shares)
            index, changed = first // self.tiles.tiling.tile, self.waiting is not None
            parts = self.tiles.sweep(index, room=self.room(first), changed=changed, shares=shares)
            futures = [self.pool.submit(self._multiply, part, first, V, stopped) for part in parts]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
            finally:
                stopped.set()  # one that failed, or ctrl-C, does not wait for the others' whole pass
                wait(futures)
        return [future.result() for future in futures]

    def _multiply(self, tiles: Iterator[Place], first: int, V: torch.Tensor, stopped: threading.Event) -> torch.Tensor:
        """Bring ``tiles`` up to date, take their part of the next block row, and return their part of A V."""
        tile = self.tiles.tiling.tile
        Z = torch.zeros_like(V)
        for i, j, whole in tiles:
            if stopped.is_set():
                break
            rows, columns = self._left(i, first), self._left(j, first)
            part = whole[rows.start - i * tile :, columns.start - j * tile :]
            if self.waiting is not None:
                left, right = self.waiting.rows(rows), self.waiting.rows(columns)
                part.addmm_(torch.cat(left, 1), torch.cat(right[::-1], 1).T, alpha=-1)
            here, there = _from(rows, first), _from(columns, first)
            Z[here].addmm_(part, V[there])
            if i != j:
                Z[there].addmm_(part.T, V[here])
            if rows.start == first:
                self.block[:, there] = part[: len(self.block)]
        return Z

    def _left(self, index: int, first: int) -> slice:
        span = self.tiles.tiling.span(index)
        return slice(max(span.start, first), span.stop)


def reduce_to_band(
    matrix: SymmetricTiles,
    scratch: Folder,
    *,
    width: int,
    dtype: torch.dtype,
    device: torch.device,
    budget: int,
    commit: Commit,
    committed: Mapping[str, Mapping[str, Any]],
    due: Callable[[], bool],
) -> None:
    """Reduce ``matrix`` to a band, ``matrix = Q B Q.T``: `read_band` gives B, `Panels.open` Q.

    The result has the same bits for any budget, and for any number of kills and resumptions, on one machine with one
    number of threads.

    Parameters
    ----------
    matrix : SymmetricTiles
        Of order d; each upper tile is read once, unless a kill comes before the first checkpoint.
    scratch : Folder
        Holds the result, 8 (b + 1) d bytes of band and half a matrix of panels, and, until it is complete, the upper
        tiles once, or twice while checkpoints are made.
    width : int
        b, the half-width of the band.
    dtype : torch.dtype
        float32 or float64.
    device : torch.device
    budget : int
        Bytes, upper bound of all arrays at once, without what ``matrix.read`` needs beside its tile.
    commit : callable
        Takes a name and a record, and makes the record count, in place of an earlier one of that name.
    committed : mapping
        The records that count, by name.
    due : callable
        Asked after each pass over the tiles: whether to write a checkpoint.

    Raises
    ------
    DoesNotFitError
        Where the budget is less than `least_bytes`.
    """
    size = matrix.tiling.size
    needed = least_bytes(size, width, dtype)
    if budget < needed:
        raise DoesNotFitError(
            f"reducing {size} columns to a band of {width} needs {show_size(needed)} and {show_size(budget)} are "
            "allowed; allow more with --memory"
        )
    record = committed.get(COMMIT, {"blocks": 0, "generation": 0})
    blocks = -(-size // width)
    if record["blocks"] < blocks:
        band = TileMatrix.create(
            open_group(scratch, writable=True), "band", (width + 1, size), (width + 1, width), "float64"
        )
        panels = Panels.create(scratch, size=size, width=width, dtype=dtype)
        tiling = working_tiling(size, width)
        tiles = TileCache(scratch, tiling, dtype=dtype, device=device, generation=record["generation"])
        with ThreadPoolExecutor(SHARES, "tilecov-tiles") as pool, ThreadPoolExecutor(1, "tilecov-write") as writer:
            reduction = _Reduction(
                size, width, dtype, device, budget, scratch, tiles, panels, band, torch.empty(0), pool, writer
            )
            reduction.start(matrix, record["blocks"])
            for k in range(record["blocks"], blocks):
                reduction.step(k)
                if reduction.waiting is not None and k + 1 < len(panels) and due():
                    reduction.checkpoint(reduction.waiting, commit)
            reduction.finish_writing()
        scratch.sync()
        commit(COMMIT, {"blocks": blocks, "generation": 0})
    drop_generations(scratch)


def read_band(scratch: Folder) -> npt.NDArray[np.float64]:
    """Return the band that lies in ``scratch``, (b + 1, d): entry (k, j) is B[j + k, j], zero where there is none."""
    return TileMatrix.open(open_group(scratch), "band").read_all()


def _from(span: slice, first: int) -> slice:
    return slice(span.start - first, span.stop - first)
