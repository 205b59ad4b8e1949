"""list_shards: every way of naming shards gives the same shards, in order, once, with few requests."""

import os
import posixpath
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from countingstore import TOKEN, Bucket
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tilecov.storage.listing import Shard, list_shards

MANY = 40  # more than are asked for one by one


@pytest.fixture
def bucket() -> Iterator[type[Bucket]]:
    for protocol in Bucket.protocol:
        fsspec.register_implementation(protocol, Bucket, clobber=True)
    Bucket.objects.update({f"b/data/x-{i:03d}.tar": 1000 + i for i in range(MANY)})
    Bucket.objects.update({"b/data/readme.txt": 1, "b/data/deeper/y.tar": 2, "b/c/z.tar": 3})
    yield Bucket
    Bucket.objects.clear()
    Bucket.requests.clear()
    Bucket.refusals.clear()
    Bucket.listable[0] = True


@pytest.fixture(params=["local", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Return a folder's URL; what belongs to it is gone afterwards."""
    memory = fsspec.filesystem("memory")
    yield str(tmp_path / "root") if request.param == "local" else "memory://root"
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]


def put(url: str, size: int = 10) -> str:
    fs, path = fsspec.core.url_to_fs(url)
    fs.makedirs(fs._parent(path), exist_ok=True)
    fs.pipe_file(path, bytes(size))
    return url


def names(shards: list[Shard]) -> list[str]:
    return [posixpath.basename(shard.url) for shard in shards]


def ways(folder: str, stem: str) -> dict[str, list[str]]:
    """Return four ways to name the only shard of a folder."""
    path = f"{folder}/{stem}.tar"
    return {"path": [path], "folder": [folder], "slash": [f"{folder}/"], "glob": [f"{folder}/*.tar"]}


# --- the ways of naming


def test_a_path_a_folder_and_a_glob_give_the_same_shard(root: str) -> None:
    put(f"{root}/a.tar", 7)
    found = {way: list_shards(urls) for way, urls in ways(root, "a").items()}
    assert found["path"][0].size == 7
    assert all(shards == found["path"] for shards in found.values())


def test_a_shard_has_its_size_and_a_url_that_opens(root: str) -> None:
    urls = [put(f"{root}/x-{size}.tar", size) for size in (0, 1, 12345)]
    shards = list_shards(urls)
    assert [shard.size for shard in shards] == [0, 1, 12345]
    for shard in shards:
        with fsspec.open(shard.url, "rb") as stream:
            assert len(stream.read()) == shard.size
    assert list_shards([shard.url for shard in shards]) == shards


def test_a_folder_stands_for_its_own_tar_files_by_name(root: str) -> None:
    for name in ("b.tar", "a.tar", "c.TAR", "c.tar.gz", "notes.txt", "tar", "deeper/d.tar", "folder.tar/e.txt"):
        put(f"{root}/{name}")
    assert names(list_shards([root])) == ["a.tar", "b.tar"]


def test_a_glob_matches_files_by_name(root: str) -> None:
    for name in ("p-2.tar", "p-10.tar", "p-1.tar", "q-1.tar", "p-3.tar/inside.txt", "deeper/p-4.tar"):
        put(f"{root}/{name}")
    assert names(list_shards([f"{root}/p-*.tar"])) == ["p-1.tar", "p-10.tar", "p-2.tar"]
    assert names(list_shards([f"{root}/[pq]-1.tar"])) == ["p-1.tar", "q-1.tar"]
    assert names(list_shards([f"{root}/?-2.tar"])) == ["p-2.tar"]
    assert names(list_shards([f"{root}/*/p-4.tar"])) == ["p-4.tar"]


def test_the_order_given_is_kept(root: str) -> None:
    for name in ("z.tar", "a.tar", "m/2.tar", "m/1.tar", "g/y.tar", "g/x.tar"):
        put(f"{root}/{name}")
    urls = [f"{root}/z.tar", f"{root}/m", f"{root}/a.tar", f"{root}/g/*.tar"]
    assert names(list_shards(urls)) == ["z.tar", "1.tar", "2.tar", "a.tar", "x.tar", "y.tar"]


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(MANY)), count=st.integers(1, MANY))
def test_the_order_given_is_kept_for_any_number(tmp_path: Path, order: list[int], count: int) -> None:
    if not (tmp_path / "000.tar").exists():
        for i in range(MANY):
            put(str(tmp_path / f"{i:03d}.tar"), i)
    shards = list_shards([str(tmp_path / f"{i:03d}.tar") for i in order[:count]])
    assert [shard.size for shard in shards] == order[:count]


def test_a_file_url_is_its_path(tmp_path: Path) -> None:
    path = put(str(tmp_path / "with space#1%20.tar"))
    for url in (f"file://{path}", f"file://{tmp_path}", f"file://{tmp_path}/*.tar"):
        assert list_shards([url]) == list_shards([path])
    assert list_shards([path])[0].url == path


def test_a_relative_path_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(str(tmp_path / "data/a.tar"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for url in ("data/a.tar", "./data/a.tar", "data", "data/*.tar", "~/data/a.tar"):
        assert [shard.url for shard in list_shards([url])] == [str(tmp_path / "data/a.tar")]


def test_nothing_named_is_nothing_listed() -> None:
    assert list_shards([]) == []


def test_a_shard_is_told_as_json_takes_it() -> None:
    assert Shard("s3://b/k.tar", 5, "abc").as_dict() == {"url": "s3://b/k.tar", "size": 5, "tag": "abc"}


def test_a_linked_shard_is_a_shard(tmp_path: Path) -> None:
    """Hugging Face's cache and DVC give folders of links."""
    put(str(tmp_path / "blobs/123"), 77)
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot/a.tar").symlink_to(tmp_path / "blobs/123")
    os.utime(tmp_path / "blobs/123", (1000, 1000))
    [shard] = list_shards([str(tmp_path / "snapshot/a.tar")])
    assert (shard.url, shard.size) == (str(tmp_path / "snapshot/a.tar"), 77)
    os.utime(tmp_path / "blobs/123", (2000, 2000))
    assert list_shards([shard.url])[0].tag != shard.tag
    (tmp_path / "entry").symlink_to(tmp_path / "blobs")
    put(str(tmp_path / "blobs/b.tar"), 5)
    assert names(list_shards([str(tmp_path / "entry")])) == ["b.tar"]


@pytest.mark.parametrize("way", ["folder", "glob", "many"])
def test_a_folder_of_links_is_a_folder_of_shards(tmp_path: Path, way: str) -> None:
    (tmp_path / "snapshot").mkdir()
    for i in range(MANY):
        (tmp_path / f"snapshot/{i:03d}.tar").symlink_to(put(str(tmp_path / f"blobs/{i}"), i))
    paths = [str(tmp_path / f"snapshot/{i:03d}.tar") for i in range(MANY)]
    one_by_one = [list_shards([path])[0] for path in paths]
    urls = {"folder": [str(tmp_path / "snapshot")], "glob": [str(tmp_path / "snapshot/*.tar")], "many": paths}[way]
    assert list_shards(urls) == one_by_one


# --- what is not there


@pytest.mark.parametrize("name", ["missing.tar", "no/such.tar", "*.tgz", "no/*.tar", "there.ta?x"])
def test_what_is_not_there_is_named(root: str, name: str) -> None:
    put(f"{root}/there.tar")
    with pytest.raises(FileNotFoundError, match="check") as refusal:
        list_shards([f"{root}/there.tar", f"{root}/{name}"])
    assert f"{root}/{name}" in str(refusal.value)


def test_a_name_below_a_shard_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="check"):
        list_shards([put(str(tmp_path / "a.tar")), str(tmp_path / "a.tar/b.tar")])


def test_a_folder_without_shards_says_so(root: str) -> None:
    put(f"{root}/folder/image.png")
    for url in (f"{root}/folder", f"{root}/folder/"):
        with pytest.raises(FileNotFoundError, match=r"no \.tar file.*tilecov pack"):
            list_shards([url])


def test_a_link_to_nothing_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "a.tar").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"a\.tar"):
        list_shards([str(tmp_path / "a.tar")])


@pytest.mark.parametrize("missing", [0, 20, MANY - 1])
def test_one_of_many_that_is_missing_is_named(root: str, missing: int) -> None:
    urls = [f"{root}/{i:03d}.tar" for i in range(MANY)]
    for i, url in enumerate(urls):
        if i != missing:
            put(url)
    with pytest.raises(FileNotFoundError, match=rf"{missing:03d}\.tar.*check"):
        list_shards(urls)


def test_many_in_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no shard at .*000\.tar.*check"):
        list_shards([str(tmp_path / f"no/{i:03d}.tar") for i in range(MANY)])


def test_a_missing_bucket_is_named(bucket: type[Bucket]) -> None:
    for url in ("bucket://none/x.tar", "bucket://none/*.tar", "bucket://none", "bucket://b/data/y.tar"):
        with pytest.raises(FileNotFoundError, match="check") as refusal:
            list_shards([url], TOKEN)
        assert url in str(refusal.value)


def test_a_busy_store_does_not_hide_shards_from_a_glob(bucket: type[Bucket]) -> None:
    found = list_shards(["bucket://b/*/*.tar"], TOKEN)
    bucket.refusals["b/data"] = OSError(16, "503 Slow Down")
    assert list_shards(["bucket://b/*/*.tar"], TOKEN) == found
    assert not bucket.refusals


# --- many at once


@pytest.mark.parametrize("count", [1, 15, 16, 17, MANY])
def test_many_are_the_same_as_one_by_one(root: str, count: int) -> None:
    urls = [put(f"{root}/{i:03d}.tar", i) for i in range(count)]
    put(f"{root}/not-asked-for.tar")
    assert list_shards(urls) == [list_shards([url])[0] for url in urls]


@pytest.mark.parametrize(
    "protocol",
    [
        "bucket",
        pytest.param("bkt"),
    ],
)
def test_many_in_one_folder_take_one_request(bucket: type[Bucket], protocol: str) -> None:
    shards = list_shards([f"{protocol}://b/data/x-{i:03d}.tar" for i in range(MANY)], TOKEN)
    assert [shard.size for shard in shards] == [1000 + i for i in range(MANY)]
    assert {shard.tag for shard in shards} == {f"{1000 + i:x}-etag" for i in range(MANY)}
    assert len(bucket.requests) <= 2


def test_a_folder_and_a_glob_take_few_requests(bucket: type[Bucket]) -> None:
    for url in ("bucket://b/data", "bucket://b/data/*.tar"):
        bucket.requests.clear()
        assert len(list_shards([url], TOKEN)) == MANY
        assert len(bucket.requests) <= 4


def test_many_on_a_store_that_lists_nothing(bucket: type[Bucket]) -> None:
    bucket.listable[0] = False
    urls = [f"bucket://b/data/x-{i:03d}.tar" for i in range(MANY)]
    assert len(list_shards(urls[:5], TOKEN)) == 5
    assert len(list_shards(urls, TOKEN)) == MANY


def test_many_folders(tmp_path: Path) -> None:
    folders = [str(tmp_path / f"class-{i:03d}") for i in range(MANY)]
    for i, folder in enumerate(folders):
        put(f"{folder}/a.tar", i)
    assert [shard.size for shard in list_shards(folders)] == list(range(MANY))


# --- versions


def test_the_etag_is_the_tag(bucket: type[Bucket]) -> None:
    bucket.objects["b/c/z.tar"] = 255
    for urls in ways("bucket://b/c", "z").values():
        assert list_shards(urls, TOKEN) == [Shard("bucket://b/c/z.tar", 255, "ff-etag")]


@pytest.mark.parametrize("step", [1.0, 0.001, -3600.0])
def test_the_tag_changes_when_the_file_does(tmp_path: Path, step: float) -> None:
    path = put(str(tmp_path / "a.tar"))
    os.utime(path, (1_700_000_000, 1_700_000_000))
    for urls in ways(str(tmp_path), "a").values():
        [before], [again] = list_shards(urls), list_shards(urls)
        assert before == again
        os.utime(path, (1_700_000_000, 1_700_000_000 + step))
        [after] = list_shards(urls)
        assert (after.url, after.size) == (before.url, before.size)
        assert after.tag != before.tag
        os.utime(path, (1_700_000_000, 1_700_000_000))
        assert list_shards(urls) == [before]


def test_a_shard_in_memory_has_another_tag_when_written_again() -> None:
    url = put("memory://versions/a.tar")
    [before] = list_shards([url])
    fs = fsspec.filesystem("memory")
    put(url)
    [after] = list_shards([url])
    fs.rm("/versions", recursive=True)
    assert before.tag
    assert after.tag
    assert after.tag != before.tag


# --- twice


def test_a_shard_named_twice_is_refused_in_every_spelling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(str(tmp_path / "data/a.tar"))
    put(str(tmp_path / "data/b.tar"))
    monkeypatch.chdir(tmp_path)
    for other in (path, f"file://{path}", "data/a.tar", "./data//a.tar", "data", "data/*.tar", f"{tmp_path}/*/a.tar"):
        for urls in ([path, other], [other, path]):
            with pytest.raises(ValueError, match=r"a\.tar.*once"):
                list_shards(urls)


@pytest.mark.parametrize("other", ["data/../data/a.tar", "data/../data", "data/../data/*.tar"])
def test_a_shard_named_twice_through_its_parent_is_refused(tmp_path: Path, other: str) -> None:
    path = put(str(tmp_path / "data/a.tar"))
    with pytest.raises(ValueError, match="once"):
        list_shards([path, str(tmp_path / other)])


def test_a_shard_in_memory_named_twice_is_refused(root: str) -> None:
    url = put(f"{root}/a.tar")
    for other in (url, root, f"{root}/*.tar", *([url.replace("://", ":///")] if "://" in url else [])):
        with pytest.raises(ValueError, match=r"a\.tar.*once"):
            list_shards([url, other])


def test_one_twice_among_many_is_refused(tmp_path: Path) -> None:
    urls = [put(str(tmp_path / f"{i:03d}.tar")) for i in range(MANY)]
    with pytest.raises(ValueError, match=r"017\.tar.*once"):
        list_shards([*urls, urls[17]])


@pytest.mark.parametrize("times", [2, 3])
def test_the_refusal_says_how_often(tmp_path: Path, times: int) -> None:
    path = put(str(tmp_path / "a.tar"))
    with pytest.raises(ValueError, match=rf"named {times} times"):
        list_shards([path] * times)


# --- many


@pytest.mark.parametrize("named", ["bucket://b/many/x-{00000..19999}.tar", "bucket://b/many", "bucket://b/many/*.tar"])
def test_twenty_thousand_shards_are_one_listing_and_little_memory(named: str, bucket: type[Bucket]) -> None:
    bucket.objects.update({f"b/many/x-{i:05d}.tar": i for i in range(20_000)})
    tracemalloc.start()
    try:
        shards = list_shards(named, TOKEN)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [shard.size for shard in shards] == list(range(20_000))
    assert [request for request in bucket.requests if request.startswith("list")] == ["list b/many"]
    assert len(bucket.requests) <= 2
    assert peak < 100 << 20


# --- options


def test_options_reach_the_file_system(bucket: type[Bucket]) -> None:
    urls = [f"bucket://b/data/x-{i:03d}.tar" for i in range(MANY)]
    for named in (urls[:1], urls, ["bucket://b/data"], ["bucket://b/data/*.tar"]):
        assert list_shards(named, TOKEN)
        for options in (None, {}, {"token": "wrong"}):
            with pytest.raises(PermissionError):
                list_shards(named, options)
    assert TOKEN == {"token": "letmein"}
