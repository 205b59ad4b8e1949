import io
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st

from tilecov.storage.shardwriter import Sample, lay_out, refuse_existing, write_shard


def _sample(key: str, data: bytes = b"data") -> dict[str, bytes | str]:
    return {"__key__": key, "png": data}


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _breaks_after(samples: Iterable[Sample]) -> Iterator[Sample]:
    yield from samples
    raise RuntimeError("the disc is full")


@pytest.fixture
def memory() -> Iterator[MemoryFileSystem]:
    fs = fsspec.filesystem("memory")
    yield fs
    if fs.exists("/shardwriter"):
        fs.rm("/shardwriter", recursive=True)


@given(shards=st.integers(1, 30), samples=st.integers(1, 200), per_shard=st.integers(1, 50))
def test_every_sample_is_in_one_shard(shards: int, samples: int, per_shard: int) -> None:
    layouts = [lay_out("x-%03d.tar", samples, per_shard), lay_out("x.tar", samples)]
    if samples >= shards:
        layouts.append(lay_out(f"x-{{1..{shards}}}.tar", samples))
        sizes = [len(numbers) for _, numbers in layouts[-1]]
        assert max(sizes) - min(sizes) <= 1
        assert len(sizes) == shards
    for layout in layouts:
        assert [number for _, numbers in layout for number in numbers] == list(range(samples))
        assert all(numbers for _, numbers in layout)
        assert len({url for url, _ in layout}) == len(layout)


@pytest.mark.parametrize(
    ("shards", "urls"),
    [
        ("s3://b/x.tar", ["s3://b/x.tar"]),
        ("x-{08..10}.tar", ["x-08.tar", "x-09.tar", "x-10.tar"]),
        ("{train,test}-{0..1}.tar", ["train-0.tar", "train-1.tar", "test-0.tar", "test-1.tar"]),
        ("a%20b/x-%02d.tar", ["a%20b/x-00.tar", "a%20b/x-01.tar"]),
        ("x-%d.tar", ["x-0.tar", "x-1.tar"]),
        ("a.tar::b.tar", ["a.tar", "b.tar"]),
    ],
)
def test_the_shards_that_a_pattern_names(shards: str, urls: list[str]) -> None:
    assert [url for url, _ in lay_out(shards, 4, per_shard=2)] == urls


@pytest.mark.parametrize(
    "shards",
    [
        *("x", "", "x.tar.gz", "out/", ".tar", "x-{0.3}.tar", "x-{0..3.tar", "x-*.tar", "pipe:cat > x.tar"),
        *("${NOT_SET}.tar", "x-{1,1}.tar", "x-%03d-%03d.tar", "x-{0..1}-%03d.tar"),
    ],
)
def test_what_names_no_shards_is_refused_with_the_way_out(shards: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WDS_NOT_SET", raising=False)
    with pytest.raises(ValueError, match=r"x-\{000\.\.007\}\.tar|name each shard once"):
        lay_out(shards, 100)


@pytest.mark.parametrize(("per_shard", "samples", "message"), [(0, 5, "not 0"), (-1, 5, "not -1")])
def test_shards_of_nothing_are_refused(per_shard: int, samples: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lay_out("x-%d.tar", samples, per_shard)


def test_the_same_samples_give_the_same_bytes_anywhere(tmp_path: Path, memory: MemoryFileSystem) -> None:
    samples: list[Sample] = [_sample("a") | {"json": b"{}"}, _sample("ü" * 200)]
    size = write_shard(f"{tmp_path}/deep/x.tar", samples)
    assert write_shard("memory://shardwriter/deep/x.tar", samples) == size
    data = (tmp_path / "deep" / "x.tar").read_bytes()
    assert len(data) == size
    assert memory.cat_file("/shardwriter/deep/x.tar") == data
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert tar.getnames() == ["a.json", "a.png", "ü" * 200 + ".png"]


def test_a_relative_path_lies_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_shard("x.tar", [_sample("a")])
    assert _names(tmp_path) == ["x.tar"]
    with pytest.raises(FileExistsError, match=r"^x\.tar exists"):
        refuse_existing(["y.tar", "x.tar"])
    refuse_existing(["y.tar", "deep/x.tar"])


def test_a_failure_while_a_local_shard_is_made_leaves_what_was_there(tmp_path: Path) -> None:
    url = f"{tmp_path}/x.tar"
    with pytest.raises(RuntimeError, match="full"):
        write_shard(url, _breaks_after([_sample("a")]))
    assert not _names(tmp_path)
    write_shard(url, [_sample("old")])
    with pytest.raises(RuntimeError, match="full"):
        write_shard(url, _breaks_after([_sample("new")]))
    assert _names(tmp_path) == ["x.tar"]
    with tarfile.open(url) as tar:
        assert tar.getnames() == ["old.png"]


def test_a_failure_while_a_shard_is_made_never_reaches_the_store(memory: MemoryFileSystem) -> None:
    with pytest.raises(RuntimeError, match="full"):
        write_shard("memory://shardwriter/x.tar", _breaks_after([_sample("a", bytes(2**20))]))
    assert not memory.exists("/shardwriter/x.tar")


@pytest.mark.parametrize("reached", [True, False])
@pytest.mark.parametrize("old", [None, b"old"])
def test_an_upload_that_breaks_off_leaves_no_half_a_shard(
    memory: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch, old: bytes | None, reached: bool
) -> None:
    if old:
        memory.pipe_file("/shardwriter/x.tar", old)

    def breaks_off(fs: MemoryFileSystem, source: str, target: str, **_options: Any) -> None:
        if reached:
            fs.pipe_file(target, b"half")
        raise ConnectionError("cable pulled")

    monkeypatch.setattr(MemoryFileSystem, "put_file", breaks_off)
    with pytest.raises(ConnectionError):
        write_shard("memory://shardwriter/x.tar", [_sample("a")])
    left = memory.cat_file("/shardwriter/x.tar") if memory.exists("/shardwriter/x.tar") else None
    assert left == (None if reached else old)
