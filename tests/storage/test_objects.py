"""Folder: the same promises on a disk, in memory and on a store that shows an object when its upload ends."""

import gc
import os
import pickle
import resource
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tilecov.storage.objects import Folder, absolute

SECRET = "AKIA-do-not-show-me"
OLD, NEW = b"old" * 50_000, b"new!" * 50_000  # several upload parts of Bucket each


class _Upload(AbstractBufferedFile):  # type: ignore[misc]  # fsspec has no types
    """Uploads in parts; the object is there when the last part is, as on S3, GCS and Azure."""

    DEFAULT_BLOCK_SIZE = 1 << 16

    def _initiate_upload(self) -> None:
        self.parts: list[bytes] = []

    def _upload_chunk(self, final: bool = False) -> bool:
        self.parts.append(self.buffer.getvalue())
        if final:
            self.fs.objects[self.path] = b"".join(self.parts)
        return True

    def _fetch_range(self, start: int, end: int) -> bytes:
        return bytes(self.fs.objects[self.path][start:end])


class Bucket(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """A small object store: no folders, no rename."""

    protocol = "bucket"
    objects: ClassVar[dict[str, bytes]] = {}
    refusals: ClassVar[list[OSError]] = []

    def ls(self, path: str, detail: bool = True, **_options: Any) -> list[Any]:
        if self.refusals:
            raise self.refusals.pop()
        prefix = self._strip_protocol(path).rstrip("/") + "/"
        rests = {name[len(prefix) :].split("/")[0] for name in self.objects if name.startswith(prefix)}
        infos = [self._describe(prefix + rest) for rest in sorted(rests)]
        if not infos and path in self.objects:
            infos = [self._describe(path)]
        if not infos:
            raise FileNotFoundError(path)
        return infos if detail else [info["name"] for info in infos]

    def _describe(self, name: str) -> dict[str, Any]:
        kind = "file" if name in self.objects else "directory"
        return {"name": name, "size": len(self.objects.get(name, b"")), "type": kind}

    def _open(self, path: str, mode: str = "rb", **_options: Any) -> Any:
        if mode == "xb" and path in self.objects:
            raise FileExistsError(path)
        return _Upload(self, path, mode.replace("x", "w"), block_size=1 << 16)

    def rm_file(self, path: str) -> None:
        self.objects.pop(path, None)


@pytest.fixture(params=["local", "memory", "bucket"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Folder]:
    memory = fsspec.filesystem("memory")
    fsspec.register_implementation("bucket", Bucket, clobber=True)
    yield Folder(str(tmp_path / "root/folder") if request.param == "local" else f"{request.param}://root/folder")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]
    Bucket.objects.clear()
    Bucket.refusals.clear()


@pytest.fixture
def local(tmp_path: Path) -> Folder:
    return Folder(str(tmp_path / "folder"))


@pytest.fixture
def small_disk() -> Iterator[None]:
    """Let no file grow past 64 KiB: what a full disk does to a writer."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def break_off(folder: Folder, name: str, data: bytes, error: BaseException) -> None:
    """Begin to write a file, and fail."""
    with folder.writing(name) as stream:
        stream.write(data)
        raise error


def everything(folder: Folder) -> list[str]:
    """Return every name in a local folder, hidden ones too."""
    return sorted(path.name for path in Path(folder.path()).rglob("*"))


# --- where a folder is


@pytest.mark.parametrize("url", ["s3://bucket/key", "memory://a/b", "gs://b/../c", "https://host/x?y=z"])
def test_a_url_is_absolute_already(url: str) -> None:
    assert absolute(url) == url


def test_a_path_means_the_same_from_every_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    here, home = absolute("a/b"), absolute("~/c")
    monkeypatch.chdir("/")
    assert here == str(tmp_path / "a/b")
    assert home == str(tmp_path / "home/c")
    assert absolute(here) == here
    assert absolute(f"file://{here}") == here


def test_a_relative_folder_stays_where_it_was_first_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Folder("run")
    folder.write("a", b"1")
    monkeypatch.chdir("/")
    assert folder.read("a") == b"1"
    assert (tmp_path / "run/a").read_bytes() == b"1"


@pytest.mark.parametrize("form", ["{}", "{}/", "file://{}"])
def test_local_folders_are_known_as_local(tmp_path: Path, form: str) -> None:
    folder = Folder(form.format(tmp_path))
    assert folder.is_local
    assert folder.absolute == str(tmp_path)
    assert folder.path("a/b") == str(tmp_path / "a/b")
    assert folder.folder("a").path("b") == str(tmp_path / "a/b")
    assert not Folder("memory://x").is_local


def test_names_in_the_root_folder() -> None:
    assert Folder("/").path("tmp") == "/tmp"


def test_folders_in_the_root_folder() -> None:
    assert Folder("/").folder("tmp").path() == "/tmp"


def test_a_folder_inside_is_the_same_as_a_longer_name(folder: Folder) -> None:
    folder.write("a/b/c", b"1")
    assert folder.folder("a").folder("b").read("c") == b"1"
    assert folder.folder("a/b").read("c") == b"1"
    assert Folder(folder.url + "/a/").read("b/c") == b"1"


# --- credentials


def test_options_are_never_shown() -> None:
    folder = Folder("s3://bucket/run", {"key": "id", "secret": SECRET, "client_kwargs": {"token": SECRET}})
    for shown in (
        repr(folder),
        str(folder),
        f"{folder}",
        repr([folder.folder("x")]),
        repr(folder.folder("x").folder("y")),
    ):
        assert SECRET not in shown
        assert "secret" not in shown
    assert "s3://bucket/run" in repr(folder)


def test_options_go_with_the_folder_and_into_its_folders() -> None:
    folder = Folder("memory://x", {"skip_instance_cache": True})
    assert folder.folder("y").folder("z").options == folder.options


def test_a_folder_is_a_value_that_travels(folder: Folder) -> None:
    folder.write("a", b"1")  # also after its file system was made
    again = pickle.loads(pickle.dumps(folder))
    assert again == folder
    assert hash(again) == hash(folder)
    assert again.read("a") == b"1"


# --- reading and writing


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=300), view=st.booleans())
def test_what_is_written_is_read(folder: Folder, data: bytes, view: bool) -> None:
    folder.write("deep/er/name.bin", memoryview(data) if view else data)
    assert folder.read("deep/er/name.bin") == data
    with folder.open("deep/er/name.bin") as stream:
        assert stream.read() == data


def test_a_view_of_numbers_is_written_as_its_bytes(folder: Folder) -> None:
    folder.write("a", memoryview(b"12345678").cast("Q"))
    assert folder.read("a") == b"12345678"


def test_what_is_streamed_is_read(folder: Folder) -> None:
    with folder.writing("a/b") as stream:
        for start in range(0, len(NEW), 7001):
            stream.write(NEW[start : start + 7001])
    assert folder.read("a/b") == NEW
    assert folder.names("a") == ["b"]


def test_a_missing_file_is_a_file_not_found_error(folder: Folder) -> None:
    folder.write("there", b"")
    with pytest.raises(FileNotFoundError):
        folder.read("missing")
    with pytest.raises(FileNotFoundError), folder.open("no/such/file"):
        pass


def test_exists_knows_files_and_folders(folder: Folder) -> None:
    assert not folder.exists("a")
    folder.write("a/b", b"")
    assert folder.exists("a")
    assert folder.exists("a/b")
    assert not folder.exists("a/c")
    assert not folder.exists("b")


def test_a_busy_store_does_not_make_a_file_missing() -> None:
    fsspec.register_implementation("bucket", Bucket, clobber=True)
    Bucket.objects["root/a"] = b"1"
    Bucket.refusals.append(OSError(16, "503 Slow Down"))
    try:
        assert Folder("bucket://root").exists("a")
    finally:
        Bucket.objects.clear()
        Bucket.refusals.clear()


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
def test_a_full_disk_leaves_no_part_of_a_file(
    local: Folder, write: Callable[[Folder, str, bytes], None], small_disk: None
) -> None:
    local.write("old", b"old")
    with pytest.raises(OSError, match="File too large"):
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


# --- listing and removing


def test_names_are_sorted_and_of_one_level(folder: Folder) -> None:
    for name in ("b", "a", "10", "9", "sub/x", "sub/y/z"):
        folder.write(name, b"")
    assert folder.names() == ["10", "9", "a", "b", "sub"]
    assert folder.names("sub") == ["x", "y"]
    assert folder.names("sub/y") == ["z"]


def test_a_missing_folder_has_no_names(folder: Folder) -> None:
    assert folder.names() == []
    assert folder.names("no/such") == []


def test_names_follow_what_another_wrote(folder: Folder) -> None:
    other = Folder(folder.url)
    folder.write("a", b"")
    assert other.names() == ["a"]
    folder.write("b", b"")
    assert other.names() == ["a", "b"]
    folder.remove("a")
    assert other.names() == ["b"]


def test_remove_takes_a_file_or_a_folder_and_no_neighbour(folder: Folder) -> None:
    for name in ("a/1", "a/b/2", "ab/3", "c"):
        folder.write(name, b"")
    folder.remove("a")
    assert folder.names() == ["ab", "c"]
    folder.remove("c")
    assert folder.names() == ["ab"]
    assert folder.names("ab") == ["3"]
    folder.folder("ab").remove()
    assert not folder.exists("ab/3")


def test_removing_what_is_not_there_does_nothing(folder: Folder) -> None:
    folder.remove("no/such")
    folder.remove()
    folder.write("a", b"1")
    folder.remove("b")
    assert folder.names() == ["a"]


@pytest.mark.parametrize("name", ["run[1]", "run*", "run?"])
def test_remove_takes_a_name_for_a_name_and_not_for_a_pattern(folder: Folder, name: str) -> None:
    folder.write(f"{name}/work/a", b"1")
    folder.write("run1/work/a", b"2")
    folder.folder(name).remove("work")
    assert folder.exists("run1/work/a")
    assert not folder.exists(f"{name}/work/a")


@pytest.mark.parametrize("name", ["run[1]", "run*", "run?"])
def test_a_name_that_looks_like_a_pattern_is_written_and_read(folder: Folder, name: str) -> None:
    folder.write("run1/a", b"other")
    with folder.folder(name).writing("a") as stream:
        stream.write(b"streamed")
    folder.folder(name).write("b", b"written")
    folder.folder(name).create("c", b"created")
    assert folder.folder(name).names() == ["a", "b", "c"]
    assert [folder.folder(name).read(file) for file in "abc"] == [b"streamed", b"written", b"created"]
    assert folder.names("run1") == ["a"]
    assert folder.read("run1/a") == b"other"


def test_unusual_names_are_names(folder: Folder) -> None:
    names = sorted([f"{uuid.uuid4()} with spaces", "%20", "#hash", "ünïcode-名", "a=b&c", "dots.in.name", ".hidden"])
    for name in names:
        folder.write(name, name.encode())
    assert folder.names() == names
    assert [folder.read(name).decode() for name in names] == names
