"""Shards to blocks of rows: read, decoded on threads, in bounded memory, ahead of whoever takes the blocks."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt

from tilecov.storage.checksums import Checksummed
from tilecov.storage.listing import Shard
from tilecov.storage.streams import open_shard
from tilecov.storage.tar import TarError

from .costs import BLOCKS, DECODE_BYTES, FIRST_BLOCK
from .errors import DoesNotFitError, SampleError, ShardError
from .images import MAX_PIXELS, declared_size
from .rows import RowSpec
from .shards import Refused, Sample, Unwanted, samples
from .sizes import show_size

BATCH_SAMPLES = 32
"""Samples that one decode call takes: enough to make hand-over cheap."""
BATCH_BYTES = 1 << 22
"""Encoded bytes after which a batch is closed before it has that many."""


Block = npt.NDArray[Any]
Labels = list[str]


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


_LARGE = threading.Lock()
"""Held while a picture larger than the planned ones is decoded: one at a time in a process."""


@dataclass(frozen=True, slots=True)
class PictureBudget:
    """Which pictures the plan kept memory for.

    Parameters
    ----------
    usual : int
        Pixels of a picture that every thread may hold.
    large : int
        Pixels of one larger picture on top.
    """

    usual: int = MAX_PIXELS
    large: int = MAX_PIXELS

    def decode(self, spec: RowSpec, sample: Sample, row: Block) -> None:
        """Decode ``sample`` into ``row``.

        Raises
        ------
        ValueError
            Where the sample is damaged or no row.
        DoesNotFitError
            Where its picture needs more memory than the plan has left. This says nothing of the data, so it is never
            skipped.
        """
        try:
            spec.decode(sample, row, self.usual)
        except ValueError:
            width, height = (sample.extension != "npy" and declared_size(sample.data)) or (0, 0)
            if not self.usual < width * height <= MAX_PIXELS:
                raise
            if width * height > self.large:
                needed, left = show_size(DECODE_BYTES * width * height), show_size(DECODE_BYTES * self.large)
                raise DoesNotFitError(
                    f"the picture of {sample.key!r}, {width} x {height}, needs {needed} to decode and {left} are left; "
                    "raise --memory"
                ) from None
            with _LARGE:
                spec.decode(sample, row)


ANY_PICTURE = PictureBudget()


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
    """

    spec: RowSpec
    block_rows: int
    threads: int
    skip: bool
    pictures: PictureBudget = ANY_PICTURE
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    blocks: int = BLOCKS


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
        self._stop = threading.Event()

    def __iter__(self) -> Iterator[tuple[Block, Labels | None]]:
        spec = self._reading.spec
        for _ in range(self._reading.blocks):
            self._free.put(np.empty((self._reading.block_rows, spec.size), spec.kind))
        thread = threading.Thread(target=self._run, name="tilecov-read", daemon=True)
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

    def _run(self) -> None:
        try:
            with ThreadPoolExecutor(self._reading.threads, "tilecov-decode") as pool:
                self._fill(pool)
            self._full.put(None)
        except BaseException as error:  # noqa: BLE001  (handed to the thread that iterates)
            self._full.put(error)

    def _fill(self, pool: ThreadPoolExecutor) -> None:
        filling: _Filling | None = None
        limit = FIRST_BLOCK
        for tally, waiting in self._batches():
            batch = waiting
            while batch and not self._stop.is_set():
                if filling is None:
                    block = self._free.get()
                    if block is None:
                        return
                    filling = _Filling(block[:limit], self._reading, pool, block)
                    limit *= 2
                batch = filling.take(tally, batch)
                if filling.is_full:
                    self._full.put(filling.finish())
                    filling = None
            if self._stop.is_set():
                return
        if filling is not None:
            self._full.put(filling.finish())

    def _batches(self) -> Iterator[tuple[ShardTally, list[Sample]]]:
        for tally in self.tallies:
            batch: list[Sample] = []
            weight = 0
            for sample in self._samples(tally):
                batch.append(sample)
                weight += len(sample.data)
                if len(batch) >= BATCH_SAMPLES or weight >= BATCH_BYTES:
                    yield tally, batch
                    batch, weight = [], 0
            yield tally, batch
            if self._progress is not None:
                self._progress(1)

    def _samples(self, tally: ShardTally) -> Iterator[Sample]:
        """Yield the wanted samples of a shard and count the others."""
        spec, url = self._reading.spec, tally.shard.url
        try:
            with open_shard(tally.shard, self._reading.options) as opened:
                stream = Checksummed(opened)
                beside = spec.grouping.companion if spec.grouping else ""
                for item in samples(
                    cast("BinaryIO", stream), spec.image_keys, max_bytes=spec.max_sample, companion=beside
                ):
                    tally.samples += 1
                    if isinstance(item, Sample):
                        yield item
                    elif isinstance(item, Unwanted):
                        tally.passed_over += 1
                    else:
                        self._refuse(tally, item)
                tally.crc32 = stream.crc32()
        except TarError as error:
            if not self._reading.skip:
                raise ShardError(url, str(error)) from error
            tally.error = str(error)
        else:
            if tally.samples == tally.passed_over:
                self._without_images(tally)

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

    def __init__(self, block: Block, reading: Reading, pool: ThreadPoolExecutor, whole: Block) -> None:
        self.block, self.whole, self._reading, self._pool = block, whole, reading, pool
        self.rows = 0
        self.labels: Labels | None = None if reading.spec.grouping is None else [""] * len(block)
        self._pending: deque[tuple[ShardTally, Future[list[tuple[int, str, str]]]]] = deque()
        self._holes: list[int] = []

    @property
    def is_full(self) -> bool:
        return self.rows == len(self.block)

    def take(self, tally: ShardTally, batch: list[Sample]) -> list[Sample]:
        """Start decoding as much of ``batch`` as has room; return the rest."""
        room = len(self.block) - self.rows
        now, rest = batch[:room], batch[room:]
        rows = self.block[self.rows : self.rows + len(now)]
        work = self._pool.submit(_decode, self._reading, now, rows, self.rows, self.labels)
        self._pending.append((tally, work))
        tally.used += len(now)
        self.rows += len(now)
        while len(self._pending) > self._reading.threads + 1:  # bounds the encoded bytes that wait
            self._settle()
        return rest

    def _settle(self) -> None:
        tally, future = self._pending.popleft()
        for slot, key, reason in future.result():
            if not self._reading.skip:
                raise SampleError(tally.shard.url, key, reason)
            self._holes.append(slot)
            tally.used -= 1
            tally.skipped.append((key, reason))

    def finish(self) -> "_Filling":
        """Wait for the decoders and fill the holes with the last rows."""
        while self._pending:
            self._settle()
        for hole in sorted(self._holes, reverse=True):  # the order of rows changes no sum
            self.rows -= 1
            self.block[hole] = self.block[self.rows]
            if self.labels is not None:
                self.labels[hole] = self.labels[self.rows]
        return self


def _decode(
    reading: Reading, batch: list[Sample], rows: Block, first: int, labels: Labels | None
) -> list[tuple[int, str, str]]:
    """Decode a batch into its rows and labels; return (slot, key, reason) of the samples that failed."""
    failed, grouping = [], reading.spec.grouping
    for slot, (sample, row) in enumerate(zip(batch, rows, strict=True), first):
        try:
            if labels is not None and grouping is not None:
                labels[slot] = grouping.label(sample)
            reading.pictures.decode(reading.spec, sample, row)
        except ValueError as error:
            failed.append((slot, sample.key, str(error)))
    return failed
