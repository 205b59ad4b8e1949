"""Blocks of rows out of shards: whole, bounded, and tidy when nobody wants more."""

import io
import threading
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import npy, png, random_images, rows_of, write_shards, write_tar

from tilecov.pipeline import decoders, forks
from tilecov.pipeline.ahead import ahead
from tilecov.pipeline.batches import batches
from tilecov.pipeline.decoders import PictureBudget, decode_batch
from tilecov.pipeline.errors import DoesNotFitError, SampleError
from tilecov.pipeline.reading import BlockReader, Reading
from tilecov.pipeline.rows import RowSpec
from tilecov.pipeline.shards import Sample
from tilecov.storage.listing import Shard, list_shards
from tilecov.storage.streams import ShardStreams

BESIDE = "bin", bytes(1 << 20)


def spec(**fields: Any) -> RowSpec:
    return RowSpec(
        **{"channels": 3, "resolution": 4, "image_keys": ("png", "npy"), "kind": "uint8", "max_sample": 2**20, **fields}
    )


def shards_of(paths: list[Path]) -> list[Shard]:
    return list_shards([str(path) for path in paths])


forked_or_not = pytest.mark.parametrize("forked", [False, True], ids=["threads", "processes"])


@forked_or_not
@pytest.mark.parametrize("block_rows", [1, 3, 64, 1000])
@pytest.mark.parametrize("threads", [1, 4])
def test_all_rows_arrive_once(tmp_path: Path, block_rows: int, threads: int, forked: bool) -> None:
    images = random_images(100, 4)
    how = Reading(spec(), block_rows, threads, skip=False, forked=forked)
    reader = BlockReader(shards_of(write_shards(tmp_path, images, 3)), how)
    blocks = [block.copy() for block, _ in reader]
    assert all(len(block) == block_rows for block in blocks[:-1])
    found = np.concatenate(blocks)
    assert np.array_equal(found, rows_of(images))
    assert sum(tally.used for tally in reader.tallies) == 100


@forked_or_not
def test_bad_samples_leave_no_hole(tmp_path: Path, forked: bool) -> None:
    good = [(f"{i:02d}.npy", npy(np.full(48, i + 1, np.uint8))) for i in range(20)]
    bad = [(f"{i:02d}x.npy", b"damaged") for i in range(20)]
    files = [file for pair in zip(good, bad, strict=True) for file in pair]
    shard = write_tar(tmp_path / "a.tar", [*bad[:3], *files[6:], *good[:3]])
    reader = BlockReader(shards_of([shard]), Reading(spec(), 7, 2, skip=True, forked=forked))
    rows = np.concatenate([block.copy() for block, _ in reader])
    assert sorted(rows[:, 0]) == list(range(1, 21))
    assert (rows == rows[:, :1]).all()
    (tally,) = reader.tallies
    assert (tally.samples, tally.used, len(tally.skipped)) == (40, 20, 20)


@forked_or_not
def test_an_error_is_raised_where_the_blocks_are_used(tmp_path: Path, forked: bool) -> None:
    shard = write_tar(tmp_path / "a.tar", [("a.npy", npy(np.zeros(48, np.uint8))), ("b.npy", b"damaged")])
    with pytest.raises(SampleError, match="'b'"):
        list(BlockReader(shards_of([shard]), Reading(spec(), 8, 2, skip=False, forked=forked)))


@forked_or_not
def test_larger_pictures_are_decoded_one_at_a_time_or_refused(tmp_path: Path, forked: bool) -> None:
    files = [(f"{i}.png", png(image)) for i, image in enumerate(random_images(8, 4))]
    files += [(f"large{i}.png", png(image)) for i, image in enumerate(random_images(3, 20))]
    shard = write_tar(tmp_path / "a.tar", files)
    usual = {"spec": spec(), "block_rows": 4, "threads": 4, "skip": True, "forked": forked}
    rows = [
        len(block) for block, _ in BlockReader(shards_of([shard]), Reading(**usual, pictures=PictureBudget(16, 400)))
    ]
    assert sum(rows) == 11
    with pytest.raises(DoesNotFitError, match=r"20 x 20.*raise --memory"):
        list(BlockReader(shards_of([shard]), Reading(**usual, pictures=PictureBudget(16, 399))))


def test_no_thread_is_left_when_reading_stops_early(tmp_path: Path) -> None:
    before = threading.active_count()
    images = random_images(200, 4)
    reader = iter(BlockReader(shards_of(write_shards(tmp_path, images, 3)), Reading(spec(), 8, 2, skip=False)))
    next(reader)
    reader.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


@forked_or_not
def test_what_lies_beside_the_wanted_is_let_go(tmp_path: Path, forked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small images beside large files nobody wants: the batches that wait must not keep those in memory."""
    images = random_images(60, 4)
    files = [(f"{i:02d}.{end}", data) for i, image in enumerate(images) for end, data in (("png", png(image)), BESIDE)]
    reader = BlockReader(
        shards_of([write_tar(tmp_path / "a.tar", files)]), Reading(spec(), 64, 2, skip=False, forked=forked)
    )
    del files

    def slowly(*args: Any) -> Any:
        time.sleep(0.3)  # meanwhile everything is read that may be
        return decode_batch(*args)

    monkeypatch.setattr(decoders, "decode_batch", slowly)
    monkeypatch.setattr(forks, "decode_batch", slowly)
    tracemalloc.start()
    try:
        rows = np.concatenate([block.copy() for block, _ in reader])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert np.array_equal(rows, rows_of(images))
    assert peak < 8 << 20


@pytest.mark.parametrize(
    ("sizes", "wanted"),
    [
        ([[100] * 70, [100] * 70], [64, 64, 12]),  # copied: no chunk is kept
        ([[10_000] * 70, [10_000] * 70], [64, 64, 12]),
        ([[100_000] * 10, [100_000] * 10], [11, 9]),  # by their bytes
        ([[20_000] * 8] * 5, [16, 16, 8]),  # by the chunks that they lie in
        ([[], [100], []], [1]),
        ([], [0]),
    ],
)
def test_batches_are_bounded_in_samples_bytes_and_chunks(sizes: list[list[int]], wanted: list[int]) -> None:
    found = [[Sample(f"{i} {j}", "png", bytes(size)) for j, size in enumerate(chunk)] for i, chunk in enumerate(sizes)]
    gathered = list(batches(found))
    assert [len(batch) for batch in gathered] == wanted
    assert [sample for batch in gathered for sample in batch] == [sample for chunk in found for sample in chunk]


class Endless(io.RawIOBase):
    """A shard of files that nobody wants; it has no end that a test would wait for."""

    def __init__(self, path: Path) -> None:
        self.file = path.read_bytes()[:1024]  # a header and its content
        self.begun = time.monotonic()

    def read(self, size: int = -1) -> bytes:
        assert time.monotonic() < self.begun + 60
        return self.file * (size // 1024)


def test_the_files_beside_the_images_count() -> None:
    found = [[Sample(str(i), "png", b"image", bytes(300_000))] for i in range(9)]
    assert [len(batch) for batch in batches(found)] == [2, 2, 2, 2, 1]  # by chunks
    assert [len(batch) for batch in batches([[sample for chunk in found for sample in chunk]])] == [4, 4, 1]  # by bytes


@forked_or_not
def test_reading_ends_where_nothing_wanted_comes_any_more(
    tmp_path: Path, forked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after Ctrl-C, which must not wait for the end of a shard."""
    opened = ShardStreams.open_next
    shards = shards_of(write_shards(tmp_path, random_images(65, 4), 1))
    shards += shards_of([write_tar(tmp_path / "endless.tar", [("a.bin", b"unwanted")])])

    @contextmanager
    def opening(streams: ShardStreams) -> Iterator[Any]:
        with opened(streams) as stream:
            yield stream if len(streams._left) else Endless(tmp_path / "endless.tar")

    monkeypatch.setattr(ShardStreams, "open_next", opening)
    blocks = iter(BlockReader(shards, Reading(spec(), 8, 2, skip=False, forked=forked)))
    next(blocks)
    began = time.monotonic()
    blocks.close()  # type: ignore[attr-defined]
    assert time.monotonic() < began + 50


def test_ahead_yields_everything_in_order_and_stops() -> None:
    before = threading.active_count()
    assert list(ahead(range(100))) == list(range(100))
    few = ahead(iter(range(100)))
    assert [next(few), next(few)] == [0, 1]
    few.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_ahead_makes_no_more_than_one_item_ahead() -> None:
    made = []

    def items() -> Any:
        for index in range(10):
            made.append(index)
            yield index

    for index in ahead(items()):
        assert max(made) <= index + 1


def test_ahead_raises_what_making_an_item_raised() -> None:
    def items() -> Any:
        yield 1
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        list(ahead(items()))
