"""Samples as they are found to batches for decoders, none of which keeps much more memory alive than it has."""

from collections.abc import Iterable, Iterator

from tilecov.storage.tar import CHUNK_BYTES

from .shards import Sample

BATCH_SAMPLES = 64
"""Samples that one decode call takes: enough to make hand-over cheap."""
BATCH_BYTES = 1 << 20
"""Encoded bytes, with the files beside, after which a batch is closed before it has that many: a decoder has four."""
_CHUNKS = 2
"""Chunks of a shard that a batch may lie in: it keeps them alive."""
_SPARSE = CHUNK_BYTES // 8
"""Bytes of samples, with the files beside them, up to which they are copied out of their chunk."""


def batches(found: Iterable[list[Sample]]) -> Iterator[list[Sample]]:
    """Yield the samples of one shard in batches, in order.

    Parameters
    ----------
    found : iterable of list of Sample
        Each of one chunk of the shard, at most; the last sample of the chunk before may come first.
    """
    batch: list[Sample] = []
    size, chunks = 0, 0
    for samples in found:
        sizes = [len(data) + (0 if beside is None else len(beside)) for _, _, data, beside in samples]
        if sum(sizes) <= _SPARSE:
            samples = list(map(_copied, samples))  # noqa: PLW2901
        elif chunks == _CHUNKS:
            yield batch
            batch, size, chunks = [], 0, 1
        else:
            chunks += 1
        for sample, bytes_ in zip(samples, sizes, strict=True):
            batch.append(sample)
            size += bytes_
            if len(batch) >= BATCH_SAMPLES or size >= BATCH_BYTES:
                yield batch
                batch, size, chunks = [], 0, 1
    yield batch


def _copied(sample: Sample) -> Sample:
    key, extension, data, companion = sample
    return Sample(key, extension, bytes(data), None if companion is None else bytes(companion))
