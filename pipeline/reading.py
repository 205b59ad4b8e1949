"""Shards to blocks of rows: read, decoded by threads or processes, in bounded memory, ahead of whoever takes them."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt

from tilecov.storage.answers import check_wanted
from tilecov.storage.checksums import Checksummed
from tilecov.storage.listing import Shard
from tilecov.storage.streams import ShardStreams
from tilecov.storage.tar import TarError

from .batches import batches
from .costs import BLOCKS, FIRST_BLOCK
from .decoders import ANY_PICTURE, Batch, Decoders, PictureBudget, ThreadDecoders
from .errors import SampleError, ShardError
from .forks import ForkedDecoders, can_fork, shared_blocks
from .rows import RowSpec
from .shards import Item, Refused, Sample, Unwanted, sample_lists

Block = npt.NDArray[Any]
Labels = list[str]
Empty = Callable[[tuple[int, int], str], Block]


@dataclass(slots=True)
class ShardTally:
    """One line of the ledger, as it is being counted.

    Parameters
    ----------
    shard : Shard
    samples : int
        Keys seen.
    used, passed_over : int
        Those that became rows; those without a wanted image.
    skipped : list of (key, reason)
    error : str or None
        Why the rest of the shard could not be read (``--on-error skip``).
    crc32 : int or None
        Of all bytes of the shard; None where not all of them were read.
    """

    shard: Shard
    samples: int = 0
    used: int = 0
    passed_over: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)
    error: str | None = None
    crc32: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the ledger's line."""
        counts = {"samples": self.samples, "used": self.used, "passed_over": self.passed_over}
        skipped = [{"key": key, "reason": reason} for key, reason in sorted(self.skipped)]
        return {**self.shard.as_dict(), "crc32": self.crc32, **counts, "skipped": skipped, "error": self.error}


@dataclass(frozen=True, slots=True)
class Reading:
    """How shards are read.

    Parameters
    ----------
    spec : RowSpec
    block_rows : int
        Rows a block.
    threads : int
        Decoders.
    skip : bool
        Whether bad samples are counted and left out, or raise.
    pictures : PictureBudget
    options : mapping
        For fsspec.
    blocks : int
        Blocks in flight. With one, decoding waits while the products run.
    forked : bool
        Whether the decoders are processes, where they can be.
    empty : callable
        (shape, dtype) -> the array of a block; processes have shared ones.
    """

    spec: RowSpec
    block_rows: int
    threads: int
    skip: bool
    pictures: PictureBudget = ANY_PICTURE
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    blocks: int = BLOCKS
    forked: bool = False
    empty: Empty = np.empty

    def decoders(self) -> tuple[Decoders, list[Block]]:
        """Return decoders and the blocks that they can write to; processes are forked by this call."""
        shape = self.block_rows, self.spec.size
        if not (self.forked and can_fork()):
            blocks = [self.empty(shape, self.spec.kind) for _ in range(self.blocks)]
            return ThreadDecoders(self.spec, self.pictures, self.threads), blocks
        blocks = shared_blocks(self.blocks, shape, self.spec.kind)
        return ForkedDecoders(self.spec, self.pictures, blocks, self.threads), blocks


class BlockReader:
    """Reads shards into blocks of rows on a thread of its own.

    Iterating gives blocks, (n, d) with n <= block_rows, each valid until the next is asked for, and the groups of their
    rows, or None where there are no groups. Afterwards ``tallies`` holds a line for every shard.

    Raises
    ------
    SampleError, ShardError
        While iterating, unless the reading skips.
    """

    def __init__(
        self, shards: Sequence[Shard], reading: Reading, progress: Callable[[int], None] | None = None
    ) -> None:
        self._reading, self._shards, self._progress = reading, shards, progress
        self.tallies = [ShardTally(shard) for shard in shards]
        self._free: queue.Queue[Block | None] = queue.Queue()
        self._full: queue.Queue[_Filling | BaseException | None] = queue.Queue()
        self._pending: deque[tuple[_Filling, ShardTally, int]] = deque()  # batches started: whose, and their first row
        self._stop = threading.Event()

    def __iter__(self) -> Iterator[tuple[Block, Labels | None]]:
        decoders, blocks = self._reading.decoders()  # here, since the thread that forks should be the one that waits
        for block in blocks:
            self._free.put(block)
        thread = threading.Thread(target=self._run, args=(decoders,), name="tilecov-read", daemon=True)
        thread.start()
        try:
            while (item := self._full.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                if item.rows:
                    yield item.block[: item.rows], item.labels and item.labels[: item.rows]
                self._free.put(item.whole)
        finally:
            self._stop.set()
            self._free.put(None)
            thread.join()

    def _run(self, decoders: Decoders) -> None:
        try:
            streams = ShardStreams(self._shards, self._reading.options, self._stop)
            with closing(decoders), streams:
                self._fill(decoders, streams)
            self._full.put(None)
        except BaseException as error:  # noqa: BLE001  (handed to the thread that iterates)
            self._full.put(error)

    def _fill(self, decoders: Decoders, streams: ShardStreams) -> None:
        filling: _Filling | None = None
        limit = FIRST_BLOCK
        for tally, waiting in self._batches(streams):
            batch = waiting
            while batch and not self._stop.is_set():
                if filling is None:
                    block = self._free_block(decoders)
                    if block is None:
                        return
                    filling = _Filling(block[:limit], block, labelled=self._reading.spec.grouping is not None)
                    limit *= 2
                batch = self._start(decoders, filling, tally, batch)
                if filling.is_full:
                    filling = None
            if self._stop.is_set():
                return
        self._settle_all(decoders)
        if filling is not None:
            self._full.put(filling.close())

    def _free_block(self, decoders: Decoders) -> Block | None:
        """Return a block to fill; None where nobody takes blocks any more."""
        if self._free.empty():  # whoever holds the others gets the rest first
            self._settle_all(decoders)
        return self._free.get()

    def _start(self, decoders: Decoders, filling: "_Filling", tally: ShardTally, batch: list[Sample]) -> list[Sample]:
        """Start decoding as much of ``batch`` as has room; return the rest."""
        first, room = filling.rows, len(filling.block) - filling.rows
        now, rest = batch[:room], batch[room:]
        decoders.start(Batch(tally.shard.url, now, filling.block[first : first + len(now)]))
        self._pending.append((filling, tally, first))
        tally.used += len(now)
        filling.rows += len(now)
        while decoders.is_full:  # never down to the batch just started, which `filling` is not handed on without
            self._settle(decoders)
        return rest

    def _settle(self, decoders: Decoders) -> None:
        """Take the batch that was started first; hand its block on where that was the last one of a full block."""
        filling, tally, first = self._pending.popleft()
        failed, labels = decoders.take()
        if filling.labels is not None and labels is not None:
            filling.labels[first : first + len(labels)] = labels
        for index, key, reason in failed:
            if not self._reading.skip:
                raise SampleError(tally.shard.url, key, reason)
            filling.holes.append(first + index)
            tally.used -= 1
            tally.skipped.append((key, reason))
        if filling.is_full and not (self._pending and self._pending[0][0] is filling):
            self._full.put(filling.close())

    def _settle_all(self, decoders: Decoders) -> None:
        while self._pending:
            self._settle(decoders)

    def _batches(self, streams: ShardStreams) -> Iterator[tuple[ShardTally, list[Sample]]]:
        for tally in self.tallies:
            for batch in batches(self._samples(tally, streams)):
                yield tally, batch
            if self._progress is not None:
                self._progress(1)

    def _samples(self, tally: ShardTally, streams: ShardStreams) -> Iterator[list[Sample]]:
        """Yield the wanted samples of the next shard and count the others."""
        spec, url = self._reading.spec, tally.shard.url
        try:
            with streams.open_next() as opened:
                stream = Checksummed(opened)
                beside = spec.grouping.companion if spec.grouping else ""
                for items in sample_lists(
                    cast("BinaryIO", stream), spec.image_keys, max_bytes=spec.max_sample, companion=beside
                ):
                    yield from self._wanted(tally, items)
                    check_wanted(self._stop)  # also where nothing is found for long
                tally.crc32 = stream.crc32()
        except TarError as error:
            if not self._reading.skip:
                raise ShardError(url, str(error)) from error
            tally.error = str(error)
        else:
            if tally.samples == tally.passed_over:
                self._without_images(tally)

    def _wanted(self, tally: ShardTally, items: list[Item]) -> Iterator[list[Sample]]:
        tally.samples += len(items)
        wanted: list[Sample] = []
        for item in items:
            if isinstance(item, Sample):
                wanted.append(item)
            elif isinstance(item, Unwanted):
                tally.passed_over += 1
            else:
                yield wanted  # first, since what is wrong with them is said before what is wrong with this one
                wanted = []
                self._refuse(tally, item)
        yield wanted

    def _refuse(self, tally: ShardTally, item: Refused) -> None:
        if not self._reading.skip:
            raise SampleError(tally.shard.url, item.key, item.reason)
        tally.skipped.append((item.key, item.reason))

    def _without_images(self, tally: ShardTally) -> None:
        wanted = ";".join(self._reading.spec.image_keys)
        reason = f"none of its {tally.samples} samples has a file of {wanted}; see --image-key"
        if not self._reading.skip:
            raise ShardError(tally.shard.url, reason)
        tally.error = reason


class _Filling:
    """A block, or the first part of ``whole``, while its rows are decoded; bad samples' slots are closed at the end."""

    def __init__(self, block: Block, whole: Block, *, labelled: bool) -> None:
        self.block, self.whole = block, whole
        self.rows = 0
        self.labels: Labels | None = [""] * len(block) if labelled else None
        self.holes: list[int] = []

    @property
    def is_full(self) -> bool:
        return self.rows == len(self.block)

    def close(self) -> "_Filling":
        """Fill the holes with the last rows."""
        for hole in sorted(self.holes, reverse=True):  # the order of rows changes no sum
            self.rows -= 1
            self.block[hole] = self.block[self.rows]
            if self.labels is not None:
                self.labels[hole] = self.labels[self.rows]
        return self
