"""Ranges that are read ahead, over the ends of shards; nobody waits for a store once nobody wants its bytes."""

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import ClassVar

import fsspec
import numpy as np
import pytest

from tilecov.storage.listing import Shard, list_shards
from tilecov.storage.readahead import ReadAhead
from tilecov.storage.sources import Sink, Source
from tilecov.storage.streams import ShardStreams

MIB = 1 << 20


class Hanging(Source):
    """A store that takes requests and answers none."""

    def __init__(self) -> None:
        super().__init__(None, "memory://shard.tar", 1 << 30, "1")
        self.asked, self.ended = threading.Event(), threading.Event()

    def fetch(self, start: int, end: int, sink: Sink) -> None:
        self.asked.set()
        self.ended.wait()


def test_a_store_that_hangs_is_not_waited_for_once_nobody_wants_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tilecov.storage.sources.shown_url", lambda fs, path: path)  # there is no file system
    source, stopped = Hanging(), threading.Event()

    def stop() -> None:
        source.asked.wait()
        stopped.set()

    threading.Thread(target=stop).start()
    with pytest.raises(InterruptedError, match="closed"):
        ReadAhead(source, stopped).read(0, 1)
    source.ended.set()


class Recorded(Source):
    """Files in memory; what is asked for is noted."""

    asked: ClassVar[list[tuple[str, int]]] = []

    def fetch(self, start: int, end: int, sink: Sink) -> None:
        self.asked.append((self.path, start))
        super().fetch(start, end, sink)


@pytest.fixture
def put(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[list[int]], list[Shard]]]:
    """Put files of these sizes into memory, from where they are read in ranges of 2 MiB."""
    monkeypatch.setattr("tilecov.storage.sources._kind", lambda fs, protocols: Recorded)
    monkeypatch.setattr(Recorded, "asked", [])
    fs = fsspec.filesystem("memory")

    def put_all(sizes: list[int]) -> list[Shard]:
        for index, size in enumerate(sizes):
            fs.pipe(f"/ahead/{index:02d}.tar", content_of(index, size))
        return list_shards(["memory://ahead/*.tar"], {})

    yield put_all
    fs.rm("/ahead", recursive=True)


def content_of(index: int, size: int) -> bytes:
    return np.random.default_rng(index).bytes(size)


def read_all(streams: ShardStreams, count: int) -> Iterator[bytes]:
    for _ in range(count):
        with streams.open_next() as stream:
            yield b"".join(iter(partial(stream.read, MIB), b""))


@pytest.mark.parametrize(
    "sizes", [[MIB] * 20, [5 * MIB] * 6, [30 * MIB, 100, 0, 9 * MIB, 1, 1, 30 * MIB, MIB], [40 * MIB], [0, 0, MIB]]
)
def test_shards_come_whole_and_in_order_from_one_window(put: Callable[..., list[Shard]], sizes: list[int]) -> None:
    with ShardStreams(put(sizes), {}) as streams:
        room = streams._window.left
        for index, data in enumerate(read_all(streams, len(sizes))):
            assert data == content_of(index, sizes[index])
            assert streams._window.left >= -1  # the one that is read may have one more
        assert streams._window.left == room  # all were given back
    assert sorted(Recorded.asked) == sorted(set(Recorded.asked))  # and nothing was asked for twice


def test_the_next_shards_are_asked_for_while_one_is_read(put: Callable[..., list[Shard]]) -> None:
    shards = put([MIB] * 12)
    with ShardStreams(shards, {}) as streams, streams.open_next() as stream:
        asked = 0
        while asked < 7 and stream.read(1 << 12):
            asked = sum(begun._ahead is not None and begun._ahead.is_asked_for for begun in streams._begun)
            time.sleep(0.01)  # they are opened beside this
        assert asked == 7


@pytest.mark.parametrize("how", ["hangs", "fails"])
def test_a_shard_that_does_not_open_keeps_nobody_from_the_one_before(
    put: Callable[..., list[Shard]], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    shards, opened, ended = put([MIB] * 3), list[str](), threading.Event()

    def check(source: Source) -> None:
        opened.append(source.path)
        if source.path.endswith("01.tar"):
            assert how == "fails" or ended.wait()
            raise PermissionError(source.path)

    monkeypatch.setattr(Recorded, "check", check)
    stopped = threading.Event()
    with ShardStreams(shards, {}, stopped) as streams:
        assert [len(data) for data in read_all(streams, 1)] == [MIB]
        if how == "hangs":
            threading.Timer(0.2, stopped.set).start()
        with pytest.raises(InterruptedError if how == "hangs" else PermissionError):
            next(read_all(streams, 1))
    ended.set()
    assert opened.count("/ahead/01.tar") == 1  # what was tried ahead is not tried again


def test_a_store_that_hangs_at_the_end_is_not_waited_for(
    put: Callable[..., list[Shard]], monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped, ended = threading.Event(), threading.Event()

    def check_end(source: Source) -> None:
        stopped.set()
        ended.wait()

    monkeypatch.setattr(Recorded, "check_end", check_end)
    with ShardStreams(put([100]), {}, stopped) as streams, pytest.raises(InterruptedError):
        next(read_all(streams, 1))
    ended.set()


def test_what_is_wrong_with_a_shard_is_said_when_it_is_read(put: Callable[..., list[Shard]]) -> None:
    shards = put([MIB] * 4)
    fsspec.filesystem("memory").rm("/ahead/02.tar")
    with ShardStreams(shards, {}) as streams:
        assert [len(data) for data in read_all(streams, 2)] == [MIB, MIB]
        with pytest.raises(FileNotFoundError, match=r"02\.tar"):
            next(read_all(streams, 1))
        assert [len(data) for data in read_all(streams, 1)] == [MIB]
