"""Shards to uint8 rows: read and decoded, nothing done with them."""

import io
import tarfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from trial import Proof, Trial

RESOLUTION = 64
BATCH = 64

Batches = Callable[[], Iterable[Any]]


def tilecov(shards: list[str], count: int, threads: int, check: bool) -> Trial:
    """Read blocks as a unit's task does."""
    from tilecov.pipeline.reading import BlockReader, Reading
    from tilecov.pipeline.rows import RowSpec
    from tilecov.storage.listing import list_shards

    spec = RowSpec(3, RESOLUTION, ("png", "jpg"), "uint8", 1 << 28)

    def batches() -> Iterator[Any]:
        for block, _ in BlockReader(list_shards(shards), Reading(spec, 4096, threads, skip=False)):
            yield block

    return _trial(batches, count, check)


def webdataset(shards: list[str], count: int, processes: int, check: bool) -> Trial:
    """Read batches by webdataset's own loader, decoded by Pillow, made into batches by its workers."""
    import webdataset as wds

    warnings.simplefilter("ignore")  # more workers than shards, in a quick run
    images = wds.WebDataset(shards, shardshuffle=False, empty_check=False).decode("torchrgb8").to_tuple("png;jpg")
    loader = wds.WebLoader(images.batched(BATCH), batch_size=None, num_workers=processes)
    return _trial(lambda: (batch[0].numpy() for batch in loader), count, check)


def litdata(shards: list[str], count: int, processes: int, folder: str, check: bool) -> Trial:
    """Read batches of litdata's own format, made of the same encoded images beforehand."""
    import torch
    from litdata import StreamingDataLoader, StreamingDataset
    from PIL import Image

    class Pictures(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, index: Any) -> Any:
            with Image.open(io.BytesIO(super().__getitem__(index))) as picture:
                return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)

    place = Path(folder) / "litdata"
    if not place.exists():
        _convert(shards, place)
    loader = StreamingDataLoader(Pictures(str(place), shuffle=False), batch_size=BATCH, num_workers=processes)
    return _trial(lambda: (batch.numpy() for batch in loader), count, check)


def tarfile_alone(shards: list[str], count: int) -> Trial:
    """Walk the members by Python's tarfile, decoding nothing."""

    def work() -> int:
        members = 0
        for shard in shards:
            with tarfile.open(shard, "r|") as archive:
                members += sum(1 for _ in _contents(archive))
        return members

    return Trial(count, work, lambda members: {"rows": [members]})


def _trial(batches: Batches, count: int, check: bool) -> Trial:
    """Count the rows while timed; to check them, read once more and sum each pixel over all images."""

    def proof(rows: int) -> Proof:
        if not check:
            return {"rows": [rows]}
        sums: npt.NDArray[np.int64] = np.zeros(3 * RESOLUTION**2, np.int64)
        for batch in batches():
            sums += np.asarray(batch).reshape(len(batch), -1).sum(axis=0, dtype=np.int64)
        return {"rows": [rows], "pixels": sums[:: len(sums) // 16].tolist()}

    return Trial(count, lambda: sum(len(batch) for batch in batches()), proof)


def _contents(archive: tarfile.TarFile) -> Iterator[bytes]:
    for member in archive:
        content = archive.extractfile(member)
        if content is not None:
            yield content.read()


def _convert(shards: list[str], place: Path) -> None:
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(str(place), chunk_bytes="64MB")
    number = 0
    for shard in shards:
        with tarfile.open(shard) as archive:
            for content in _contents(archive):
                writer.add_item(number, content)
                number += 1
    writer.done()
    writer.merge(1)
