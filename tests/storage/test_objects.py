"""Folder: names, reading, writing, listing and removing, the same on a disk, in memory and on an object store."""

import errno
import pickle
import re
import uuid
from pathlib import Path

import fsspec
import pytest
from buckets import NEW, Bucket, folder_anywhere  # noqa: F401  (the fixture `folder`)
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tilecov.storage.listing import list_shards
from tilecov.storage.objects import Folder, absolute

SECRET = "AKIA-do-not-show-me"


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


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
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


# --- what a store refuses


def refusing(*_: object, **__: object) -> None:
    raise PermissionError("Forbidden")


def test_a_refusal_names_the_folder_and_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemoryFileSystem, "cat_file", refusing)
    said = re.escape(
        "memory://refused: the store refuses access (Forbidden); check the credentials in --storage-options"
    )
    with pytest.raises(PermissionError, match=said):
        Folder("memory://refused").read("a")


def test_a_refused_shard_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemoryFileSystem, "info", refusing)
    with pytest.raises(PermissionError, match=r"memory://refused/a\.tar: the store refuses access \(Forbidden\)"):
        list_shards(["memory://refused/a.tar"])


def test_a_file_that_this_machine_refuses_is_said_by_the_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "/a")

    monkeypatch.setattr(LocalFileSystem, "cat_file", refuse)
    with pytest.raises(PermissionError, match="Permission denied: '/a'"):
        Folder(str(tmp_path)).read("a")
