"""Decoder processes: the same rows as from threads, and nothing left behind however they end."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import png, random_images, rows_of, write_shards, write_tar

from tilecov.pipeline import Job, costs, forks, run
from tilecov.pipeline.decoders import ANY_PICTURE, Batch, ThreadDecoders
from tilecov.pipeline.errors import DecoderDiedError
from tilecov.pipeline.forks import ForkedDecoders, can_fork, shared_blocks
from tilecov.pipeline.grouping import Grouping
from tilecov.pipeline.reading import BlockReader, Reading
from tilecov.pipeline.rows import RowSpec
from tilecov.pipeline.shards import Sample
from tilecov.storage.listing import list_shards

pytestmark = pytest.mark.skipif(not can_fork(), reason="decoders are forked on Linux alone")

SPEC = RowSpec(3, 4, ("png", "npy"), "uint8", 2**26)


def children() -> list[int]:
    """Return the processes that this one has begun and not waited for."""
    task = f"/proc/self/task/{os.getpid()}/children"
    return [int(number) for number in Path(task).read_text().split()]


def samples_of(images: list[np.ndarray]) -> list[Sample]:  # type: ignore[type-arg]
    return [Sample(f"{index}", "png", png(image)) for index, image in enumerate(images)]


def test_no_process_is_left_when_reading_ends_or_stops_early(tmp_path: Path) -> None:
    before = children()
    shards = list_shards([str(path) for path in write_shards(tmp_path, random_images(200, 4), 3)])
    reading = Reading(SPEC, 8, 3, skip=False, forked=True)
    reader = iter(BlockReader(shards, reading))
    next(reader)
    assert len(children()) == len(before) + 3
    reader.close()  # type: ignore[attr-defined]
    assert children() == before
    assert sum(len(block) for block, _ in BlockReader(shards, reading)) == 200
    assert children() == before


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_decoder_that_dies_is_said_with_what_it_was_at(how: signal.Signals) -> None:
    blocks = shared_blocks(1, (64, SPEC.size), "uint8")
    decoders = ForkedDecoders(SPEC, ANY_PICTURE, blocks, 2)
    try:
        for pid in decoders._pids:
            os.kill(pid, how)
        decoders.start(Batch("a.tar", samples_of(random_images(3, 4)), blocks[0][:3]))
        with pytest.raises(DecoderDiedError, match=rf"killed by signal {how:d} over .*'0' to '2' of a\.tar"):
            decoders.take()
    finally:
        decoders.close()


def test_decoders_end_with_the_process_that_asks() -> None:
    """Killed, it can tell them nothing: they see that nobody holds the other end of their pipes."""
    ours, theirs = os.pipe()
    asking = os.fork()
    if not asking:
        decoders = ForkedDecoders(SPEC, ANY_PICTURE, shared_blocks(1, (4, SPEC.size), "uint8"), 3)
        os.write(theirs, " ".join(map(str, decoders._pids)).encode())
        time.sleep(60)
        os._exit(0)
    decoding = [int(pid) for pid in os.read(ours, 100).split()]
    os.close(ours)
    os.close(theirs)
    os.kill(asking, signal.SIGKILL)
    os.waitpid(asking, 0)
    wait_until_ended(decoding)


def wait_until_ended(pids: list[int]) -> None:
    until = time.monotonic() + 30
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < until
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_ctrl_c_is_not_for_decoders() -> None:
    blocks = shared_blocks(1, (64, SPEC.size), "uint8")
    decoders = ForkedDecoders(SPEC, ANY_PICTURE, blocks, 1)
    try:
        os.kill(decoders._pids[0], signal.SIGINT)
        images = random_images(3, 4)
        decoders.start(Batch("a.tar", samples_of(images), blocks[0][5:8]))
        assert decoders.take().failed == []
        assert np.array_equal(blocks[0][5:8], rows_of(images))
    finally:
        decoders.close()


def test_a_process_that_forgets_its_children_ends_them_too(tmp_path: Path) -> None:
    """Some servers have the system reap all children at once: then nobody can be waited for."""
    shards = list_shards([str(path) for path in write_shards(tmp_path, random_images(20, 4), 1)])
    others, before = children(), signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        reader = iter(BlockReader(shards, Reading(SPEC, 8, 2, skip=False, forked=True)))
        read = len(next(reader)[0])
        decoders = [pid for pid in children() if pid not in others]
        assert len(decoders) == 2
        assert read + sum(len(rows) for rows, _ in reader) == 20
        wait_until_ended(decoders)  # the system lists a child for a moment after it says that there is none to wait for
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_what_has_no_room_in_the_shared_memory_is_decoded_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forks, "BATCH_BYTES", 100)
    images, blocks = random_images(30, 4), shared_blocks(2, (64, SPEC.size), "uint8")
    decoders = ForkedDecoders(SPEC, ANY_PICTURE, blocks, 2)
    try:
        samples = samples_of(images)
        for start, stop in ((0, 1), (1, 29), (29, 30)):
            decoders.start(Batch("a.tar", samples[start:stop], blocks[1][start:stop]))
            assert decoders.take().failed == []
        assert np.array_equal(blocks[1][:30], rows_of(images))
    finally:
        decoders.close()


def test_any_thread_may_fork(tmp_path: Path) -> None:
    """A worker of Dask runs tasks on threads of its own."""
    images = random_images(40, 4)
    shards = list_shards([str(path) for path in write_shards(tmp_path, images, 3)])
    found: list[int] = []

    def read() -> None:
        found.append(sum(len(block) for block, _ in BlockReader(shards, Reading(SPEC, 8, 2, skip=False, forked=True))))

    thread = threading.Thread(target=read)
    thread.start()
    thread.join()
    assert found == [40]


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("strategy", ["resident", "staged"])
def test_a_job_with_decoder_processes_has_the_digest_of_one_with_threads(
    tmp_path: Path, strategy: Any, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = tuple(str(path) for path in write_shards(tmp_path / "shards", random_images(90, 4), 4))
    job = {"shards": paths, "resolution": 4, "rank": 0, "decode_threads": 2, "strategy": strategy, "workers": workers}
    expected = run(Job(**job, out=str(tmp_path / "threads")))
    monkeypatch.setattr(costs, "FORK_SECONDS", 0.0)
    monkeypatch.setattr(costs, "MOSTLY", 2.0)  # else pictures that C decodes are left to threads
    manifest = run(Job(**job, out=str(tmp_path / "processes")))
    assert (expected["plan"]["forked"], manifest["plan"]["forked"]) == (False, True)
    assert manifest["moments_digest"] == expected["moments_digest"]


def test_threads_and_processes_find_the_same(tmp_path: Path) -> None:
    """Rows, failures and groups, in the order in which they were asked for."""
    spec = RowSpec(3, 4, ("png",), "uint8", 2**26, Grouping.parse("cls"))
    images = random_images(40, 4)
    samples = [Sample(f"{i}", "png", png(image), str(i % 3).encode()) for i, image in enumerate(images)]
    samples[7] = Sample("7", "png", b"damaged", b"1")
    samples[9] = Sample("9", "png", png(images[9]), None)
    samples[11] = Sample("11", "png", memoryview(png(images[11])), memoryview(b""))
    found = []
    for kind in (ThreadDecoders, ForkedDecoders):
        blocks = shared_blocks(1, (40, spec.size), "uint8")
        arguments = (2,) if kind is ThreadDecoders else (blocks, 2)
        decoders = kind(spec, ANY_PICTURE, *arguments)  # type: ignore[operator]
        answers = []
        try:
            for start in range(0, 40, 10):
                decoders.start(Batch("a.tar", samples[start : start + 10], blocks[0][start : start + 10]))
                if decoders.is_full:
                    answers.append(decoders.take())
            answers += [decoders.take() for _ in range(4 - len(answers))]
        finally:
            decoders.close()
        found.append((answers, blocks[0].copy()))
    assert found[0][0] == found[1][0]
    assert [len(answer.failed) for answer in found[0][0]] == [2, 1, 0, 0]
    assert np.array_equal(found[0][1], found[1][1])


def test_an_unexpected_error_of_a_decoder_is_raised_where_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(forks, "decode_batch", broken)
    shards = list_shards([str(write_tar(tmp_path / "a.tar", [("a.png", png(random_images(1, 4)[0]))]))])
    with pytest.raises(ZeroDivisionError, match="a bug"):
        list(BlockReader(shards, Reading(SPEC, 8, 2, skip=False, forked=True)))
