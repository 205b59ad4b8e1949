"""What a dataset looks like: its shards, one sample, and how many samples there will be."""

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

import numpy as np

from tilecov.storage.listing import Shard, list_shards
from tilecov.storage.streams import open_shard
from tilecov.storage.tar import TarError

from .errors import SampleError, ShardError
from .images import MAX_PIXELS, declared_size
from .job import Job
from .rows import Kind, RowSpec, kind_of
from .shards import Sample, samples

LOOKED_AT = 64
"""Samples at the head of the first good shard that are read before a plan is made."""
_BATCH_BYTES = 1 << 20  # of rows that are decoded at a time to see how long they take
_HEADERS = 1024  # bytes that tar adds to a small file: its header and half a block of padding, and some for long names


@dataclass(frozen=True, slots=True)
class DatasetFacts:
    """Facts that the plan needs.

    Parameters
    ----------
    shards : tuple of Shard
    kind : str
        dtype of the rows.
    samples : int
        Estimated from the sizes of the first samples, or given.
    pixels : int
        Of the largest picture looked at; 0 for arrays.
    encoded : int
        Bytes of an encoded sample, on average.
    decode_seconds : float
        To make one row of a sample on one thread.
    batched : float
        The share of samples that are decoded many in one call of C, without the interpreter's lock.
    """

    shards: tuple[Shard, ...]
    kind: Kind
    samples: int
    pixels: int
    encoded: int
    decode_seconds: float
    batched: float = 0.0

    @property
    def bytes(self) -> int:
        """Bytes of all shards."""
        return sum(shard.size for shard in self.shards)


def inspect(job: Job, shards: Sequence[Shard] | None = None) -> DatasetFacts:
    """List the shards and look at the first samples.

    Raises
    ------
    ShardError, SampleError
        Where no shard has a sample that becomes a row, or the first bad one where ``job`` does not skip.
    """
    shards = tuple(list_shards(job.shards, job.storage_options) if shards is None else shards)
    problem: Exception = ShardError(
        shards[0].url, f"no file of {';'.join(job.image_key)} in any sample; see --image-key"
    )
    for shard in shards:
        try:
            found = _head(job, shard)
            if found:
                return _facts(job, shards, found)
        except TarError as error:
            problem = ShardError(shard.url, str(error))
        except SampleError as error:
            problem = error
        if job.on_error == "fail" and not isinstance(problem, ShardError):
            break
    raise problem


def _head(job: Job, shard: Shard) -> list[Sample]:
    with open_shard(shard, job.storage_options) as stream:
        items = samples(stream, job.image_key, max_bytes=job.max_sample)
        # Copied: a view would keep the bytes around it alive.
        return [
            Sample(item.key, item.extension, bytes(item.data))
            for item in islice(items, LOOKED_AT)
            if isinstance(item, Sample)
        ]


def _facts(job: Job, shards: tuple[Shard, ...], head: list[Sample]) -> DatasetFacts:
    kind, spec = None, None
    for sample in head:
        try:
            kind = kind_of(sample, job.channels, job.resolution)
            spec = RowSpec.of(job, kind)
            spec.decode(sample, np.empty(spec.size, spec.kind))
            break
        except ValueError as error:
            if job.on_error == "fail":
                raise SampleError(shards[0].url, sample.key, str(error)) from error
    if kind is None or spec is None:
        raise ShardError(shards[0].url, f"none of its first {len(head)} samples can be read")
    encoded = sum(len(sample.data) for sample in head) // len(head)
    count = job.samples or max(1, round(sum(shard.size for shard in shards) / (encoded + _HEADERS)))
    pixels = max(map(_pixels, head))
    return DatasetFacts(shards, kind, count, pixels, encoded, *_decoding(spec, head))


def _pixels(sample: Sample) -> int:
    """Return the pixels that a sample's decoding will hold; 0 for arrays and pictures that will be refused."""
    width, height = (sample.extension != "npy" and declared_size(sample.data)) or (0, 0)
    return width * height if width * height <= MAX_PIXELS else 0


def _decoding(spec: RowSpec, head: list[Sample]) -> tuple[float, float]:
    """Return the seconds that a row takes, and the share of samples that a batch takes."""
    rows = np.empty((min(len(head), max(1, _BATCH_BYTES // (spec.size * spec.itemsize))), spec.size), spec.kind)
    alone = 0
    start = time.perf_counter()
    for first in range(0, len(head), len(rows)):
        batch = head[first : first + len(rows)]
        left = spec.decode_usual(batch, rows[: len(batch)], MAX_PIXELS)
        alone += len(left)
        for index in left:
            with suppress(ValueError):
                spec.decode(batch[index], rows[index])
    return (time.perf_counter() - start) / len(head), 1 - alone / len(head)
