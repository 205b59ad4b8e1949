"""Batches of samples to rows: what a decoder does, whoever runs it, and decoders that are threads."""

import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy.typing as npt

from .costs import DECODE_BYTES
from .errors import DoesNotFitError
from .images import MAX_PIXELS, declared_size
from .rows import RowSpec
from .shards import Sample
from .sizes import show_size

Block = npt.NDArray[Any]

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
class Batch:
    """Samples to decode.

    Parameters
    ----------
    shard : str
        URL.
    samples : list of Sample
    rows : array
        (n, d), overwritten.
    """

    shard: str
    samples: list[Sample]
    rows: Block

    @property
    def bytes(self) -> int:
        """Encoded bytes."""
        return sum(len(sample.data) for sample in self.samples)


class Decoded(NamedTuple):
    """What was found in a batch.

    Parameters
    ----------
    failed : list of (index, key, reason)
        Samples that are no rows.
    labels : list of str or None
        The group of each sample; None where there are no groups.
    """

    failed: list[tuple[int, str, str]]
    labels: list[str] | None


class Decoders(Protocol):
    """Who decodes batches; they are taken in the order in which they were started."""

    @property
    def is_full(self) -> bool:
        """Whether a batch must be taken before another one may be started."""

    def start(self, batch: Batch) -> None:
        """Hand over a batch."""

    def take(self) -> Decoded:
        """Wait for the batch that was started first; return what was found in it."""

    def close(self) -> None:
        """End the decoders; what they were at is dropped."""


class ThreadDecoders:
    """Decoders that are threads of this process.

    Parameters
    ----------
    spec : RowSpec
    pictures : PictureBudget
    threads : int
    """

    def __init__(self, spec: RowSpec, pictures: PictureBudget, threads: int) -> None:
        self._spec, self._pictures, self._threads = spec, pictures, threads
        self._pool = ThreadPoolExecutor(threads, "tilecov-decode")
        self._waiting: deque[Future[Decoded]] = deque()

    @property
    def is_full(self) -> bool:
        """Whether a batch must be taken before another one is started: bounds the encoded bytes that wait."""
        return len(self._waiting) > self._threads + 1

    def start(self, batch: Batch) -> None:
        """Hand over a batch."""
        self._waiting.append(self._pool.submit(decode_batch, self._spec, self._pictures, batch.samples, batch.rows))

    def take(self) -> Decoded:
        """Wait for the batch that was started first; return what was found in it."""
        return self._waiting.popleft().result()

    def close(self) -> None:
        """Wait for what is under way."""
        self._pool.shutdown(cancel_futures=True)


def decode_batch(spec: RowSpec, pictures: PictureBudget, samples: list[Sample], rows: Block) -> Decoded:
    """Decode samples into their rows, (n, d)."""
    failed, labels = _labels(spec, samples)
    for index in spec.decode_usual(samples, rows, pictures.usual):
        if index in failed:
            continue
        try:
            pictures.decode(spec, samples[index], rows[index])
        except ValueError as error:
            failed[index] = str(error)
    return Decoded([(index, samples[index].key, failed[index]) for index in sorted(failed)], labels)


def _labels(spec: RowSpec, samples: list[Sample]) -> tuple[dict[int, str], list[str] | None]:
    """Return which samples have no group, and why; and the groups of all, or None where there are no groups."""
    failed: dict[int, str] = {}
    if spec.grouping is None:
        return failed, None
    labels = [""] * len(samples)
    for index, sample in enumerate(samples):
        try:
            labels[index] = spec.grouping.label(sample)
        except ValueError as error:
            failed[index] = str(error)
    return failed, labels
