"""Folder: a file is there whole or not at all, once created and when synced, on every kind of store."""

import ctypes
import gc
import os
import resource
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from buckets import NEW, OLD, folder_anywhere  # noqa: F401  (the fixture `folder`)

from tilecov.storage.artifacts import write_tensor
from tilecov.storage.objects import Folder
from tilecov.storage.tiles import TileMatrix, open_group


@pytest.fixture
def local(tmp_path: Path) -> Folder:
    return Folder(str(tmp_path / "folder"))


@contextmanager
def small_disk() -> Iterator[None]:
    """Let no file grow past 64 KiB: what a full disk does to a writer.

    For the writer alone, and not a fixture: pytest reports before it tears down, and its own output may be a file too.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def break_off(folder: Folder, name: str, data: bytes, error: BaseException) -> None:
    """Begin to write a file, and fail."""
    with folder.writing(name) as stream:
        stream.write(data)
        raise error


def everything(folder: Folder) -> list[str]:
    """Return every name in a local folder, hidden ones too."""
    return sorted(path.name for path in Path(folder.path()).rglob("*"))


# --- all at once or not at all


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, GeneratorExit])
@pytest.mark.parametrize("size", [0, 10, len(NEW)])
def test_a_failed_write_leaves_nothing(folder: Folder, error: type[BaseException], size: int) -> None:
    folder.write("beside", b"1")
    with pytest.raises(error):
        break_off(folder, "a", NEW[:size], error())
    gc.collect()  # a dropped upload may not complete itself either
    assert not folder.exists("a")
    assert folder.names() == ["beside"]


@pytest.mark.parametrize("size", [0, 10, len(NEW)])
def test_a_failed_write_leaves_the_old_content(folder: Folder, size: int) -> None:
    folder.write("a", OLD)
    with pytest.raises(RuntimeError, match=r"^the network is down$"):
        break_off(folder, "a", NEW[:size], RuntimeError("the network is down"))
    assert folder.read("a") == OLD
    assert folder.names() == ["a"]


def test_a_file_appears_when_the_block_ends(folder: Folder) -> None:
    folder.write("a", OLD)
    with folder.writing("a") as changed, folder.writing("b") as fresh:
        changed.write(NEW)
        fresh.write(NEW)
        assert folder.read("a") == OLD
        assert not folder.exists("b")
    assert folder.read("a") == folder.read("b") == NEW
    assert folder.names() == ["a", "b"]


def test_a_failed_local_write_leaves_no_hidden_file(local: Folder) -> None:
    local.write("a", OLD)
    with pytest.raises(KeyboardInterrupt):
        break_off(local, "a", NEW, KeyboardInterrupt())
    with pytest.raises(TypeError):
        local.write("a", "not bytes")  # type: ignore[arg-type]
    assert everything(local) == ["a"]
    assert local.read("a") == OLD


@pytest.mark.parametrize("write", [Folder.write, pytest.param(Folder.create)])  # fmt: skip
def test_a_full_disk_leaves_no_part_of_a_file(local: Folder, write: Callable[[Folder, str, bytes], None]) -> None:
    local.write("old", b"old")
    with small_disk(), pytest.raises(OSError, match="File too large"):
        write(local, "new", OLD)
    assert everything(local) == ["old"]


def test_a_file_in_the_place_of_a_folder_is_an_error(local: Folder) -> None:
    local.write("a/b", b"1")
    for write in (local.write, local.create):
        with pytest.raises(OSError, match=r"directory|exists"):
            write("a", b"2")
        with pytest.raises(OSError, match=r"directory|exists"):
            write("a/b/c", b"2")
    assert everything(local) == ["a", "b"]


def test_readers_see_one_content_whole_while_writers_race(local: Folder) -> None:
    contents = {bytes([65 + writer]) * 200_000 for writer in range(4)}
    local.write("a", min(contents))
    stop, seen = threading.Event(), set()

    def look() -> None:
        while not stop.is_set():
            seen.add(local.read("a"))

    with ThreadPoolExecutor() as pool:
        reading = pool.submit(look)
        writing = [pool.submit(local.write, "a", content) for content in sorted(contents) * 5]
        errors = [future.exception() for future in writing]
        stop.set()
        reading.result()
    assert errors == [None] * 20
    assert seen <= contents
    assert local.read("a") in contents
    assert everything(local) == ["a"]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="names of open files are read from /proc")
def test_sync_reaches_every_file_and_folder(local: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b/c", "b/d/e"):
        local.write(name, b"1")
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(str(Path(f"/proc/self/fd/{handle}").readlink())))
    local.sync()
    root = Path(local.path())
    assert {str(path) for path in (root, *root.rglob("*"))} <= set(synced)


@pytest.mark.parametrize("flush", [True, False])
def test_a_file_can_be_left_to_sync(local: Folder, monkeypatch: pytest.MonkeyPatch, *, flush: bool) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    with local.writing("a", flush=flush) as stream:
        stream.write(b"1")
        assert not local.exists("a")
    assert local.read("a") == b"1"
    assert bool(synced) == flush


def test_sync_goes_past_what_another_writer_has_moved_to_its_place(
    local: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    local.write("a", b"1")
    listed = [(local.path(), [], ["0.123.partial", "a"])]
    monkeypatch.setattr(os, "walk", lambda _: iter(listed))
    flushed: list[int] = []
    monkeypatch.setattr(os, "fsync", flushed.append)
    local.sync()
    assert len(flushed) == 2  # the file that is there, and the folder


def test_tiles_and_tensors_begin_to_reach_the_disk_when_they_are_written(
    local: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    if sys.platform == "linux":
        assert ctypes.CDLL(None).sync_file_range  # else what is tested here would never be called
    begun: list[int] = []
    library = SimpleNamespace(sync_file_range=lambda handle, *_: begun.append(os.fstat(handle).st_size))
    monkeypatch.setattr(ctypes, "CDLL", lambda _: library)
    matrix = TileMatrix.create(open_group(local, writable=True), "m", (4, 4), (4, 4), "float64")
    matrix.write(0, 0, np.ones((4, 4)))
    assert begun == [4 * 4 * 8]
    write_tensor(local, "U.pt", (4, 4), [np.ones((2, 4), np.float32)] * 2)
    assert len(begun) == 3
    matrix = TileMatrix.create(open_group(Folder("memory://m.zarr"), writable=True), "m", (4, 4), (4, 4), "float64")
    matrix.write(0, 0, np.ones((4, 4)))
    assert len(begun) == 3
    Folder("memory://m.zarr").remove()


def test_sync_changes_nothing(folder: Folder) -> None:
    folder.folder("missing").sync()
    folder.write("a/b", NEW)
    folder.sync()
    assert folder.read("a/b") == NEW
    assert folder.names() == ["a"]


# --- create


def test_create_writes_once(folder: Folder) -> None:
    folder.create("deep/a", b"first")
    with pytest.raises(FileExistsError):
        folder.create("deep/a", b"second")
    assert folder.read("deep/a") == b"first"
    assert folder.names("deep") == ["a"]
    folder.remove("deep/a")
    folder.create("deep/a", b"third")
    assert folder.read("deep/a") == b"third"


def test_create_respects_what_write_wrote(folder: Folder) -> None:
    folder.write("a", b"")
    with pytest.raises(FileExistsError):
        folder.create("a", b"second")
    assert folder.read("a") == b""


def test_what_another_creator_removed_again_was_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store refuses, and what it refused for is gone before it can be looked at."""
    folder = Folder("memory://removed-again")
    folder.write("a", b"first")
    refuse = folder.fs.pipe_file

    def refused(path: str, data: bytes, **how: Any) -> None:
        try:
            refuse(path, data, **how)
        finally:
            folder.remove("a")

    monkeypatch.setattr(folder.fs, "pipe_file", refused)
    with pytest.raises(FileExistsError, match="is there already"):
        folder.create("a", b"second")


def test_one_of_eight_creators_wins(local: Folder) -> None:
    start = threading.Barrier(8)

    def attempt(round_: int, writer: int) -> int | None:
        start.wait()
        try:
            local.create(f"lock-{round_}", str(writer).encode() * 10_000)
        except FileExistsError:
            return None
        return writer

    with ThreadPoolExecutor(8) as pool:
        for round_ in range(25):
            outcomes = list(pool.map(attempt, [round_] * 8, range(8)))
            winners = [writer for writer in outcomes if writer is not None]
            assert len(winners) == 1
            assert local.read(f"lock-{round_}") == str(winners[0]).encode() * 10_000
    assert everything(local) == sorted(f"lock-{round_}" for round_ in range(25))
