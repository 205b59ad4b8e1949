import os
import re
import tarfile
import warnings
from collections import Counter
from pathlib import Path
from typing import IO, cast

import numpy as np
import pytest
import webdataset as wds
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from webdataset.tariterators import base_plus_ext

from tilecov.pipeline.pack import PackReport, key_of, pack


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with images of every kind, two of which have companions, and three files that are no images."""
    inside = tmp_path / "in"
    (inside / "b" / "deep").mkdir(parents=True)
    Image.new("RGB", (2, 2), (1, 2, 3)).save(inside / "z.png")
    Image.new("L", (2, 2), 9).save(inside / "b" / "y.JPG", "JPEG")
    Image.new("RGB", (2, 2)).save(inside / "b" / "deep" / "x.v1.WebP", "WEBP")
    np.save(inside / "b" / "w.npy", np.arange(3, dtype=np.float32))
    (inside / "a.jpeg").write_bytes(b"not decoded here")
    (inside / "z.txt").write_text("a caption")
    (inside / "z.json").write_text("{}")
    (inside / "b" / "deep" / "x.v1.cls").write_text("4")
    (inside / "z.v1.txt").write_text("of no image")
    (inside / "README.md").write_text("")
    (inside / ".hidden.png").write_bytes(b"")
    return inside


def _put(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def _files(*urls: str) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for url in urls:
        with tarfile.open(url) as tar:
            files |= {member.name: cast("IO[bytes]", tar.extractfile(member)).read() for member in tar}
    return files


def _webdataset(shards: str) -> list[tuple[str, set[str]]]:
    """Return key and extensions of each sample as WebDataset reads them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # webdataset leaves shards to the garbage collector to close
        samples = wds.WebDataset(shards, shardshuffle=False)
        return [(sample["__key__"], {name for name in sample if name[0] != "_"}) for sample in samples]


def test_images_go_in_unchanged_with_what_lies_beside_them(folder: Path, tmp_path: Path) -> None:
    url = f"{tmp_path}/out/x.tar"
    report = pack(str(folder), url)
    assert report == PackReport((url,), samples=5, bytes=Path(url).stat().st_size, passed_over=3)
    assert _files(url) == {
        "a.jpeg": (folder / "a.jpeg").read_bytes(),
        "b/deep/x_v1.cls": b"4",
        "b/deep/x_v1.webp": (folder / "b/deep/x.v1.WebP").read_bytes(),
        "b/w.npy": (folder / "b/w.npy").read_bytes(),
        "b/y.jpg": (folder / "b/y.JPG").read_bytes(),
        "z.json": b"{}",
        "z.png": (folder / "z.png").read_bytes(),
        "z.txt": b"a caption",
    }


def test_webdataset_reads_the_samples_back(folder: Path, tmp_path: Path) -> None:
    pack(str(folder), f"{tmp_path}/x-{{0..1}}.tar")
    assert _webdataset(f"{tmp_path}/x-{{0..1}}.tar") == [
        ("a", {"jpeg"}),
        ("b/deep/x_v1", {"webp", "cls"}),
        ("b/w", {"npy"}),
        ("b/y", {"jpg"}),
        ("z", {"png", "txt", "json"}),
    ]


def test_the_same_folder_gives_the_same_bytes_in_any_place_and_order(tmp_path: Path) -> None:
    names = ["b/1.png", "a.png", "b/0.png", "a0.png"]
    _put(tmp_path / "one", *names)
    _put(tmp_path / "two", *reversed(names))
    one, two = (pack(f"{tmp_path}/{where}", f"{tmp_path}/{where}-%03d.tar", per_shard=3) for where in ("one", "two"))
    assert [Path(url).name for url in one.urls] == ["one-000.tar", "one-001.tar"]
    assert [Path(url).read_bytes() for url in one.urls] == [Path(url).read_bytes() for url in two.urls]


def test_only_the_folder_itself(folder: Path, tmp_path: Path) -> None:
    report = pack(str(folder), f"{tmp_path}/x.tar", recursive=False)
    assert (report.samples, report.passed_over) == (2, 3)
    assert set(_files(*report.urls)) == {"a.jpeg", "z.png", "z.txt", "z.json"}


def test_progress_counts_images(folder: Path, tmp_path: Path) -> None:
    done: list[int] = []
    pack(str(folder), f"{tmp_path}/x.tar", progress=done.append)
    assert sum(done) == 5


def test_any_fsspec_url(folder: Path) -> None:
    report = pack(str(folder), "memory://pack/x-{0..1}.tar")
    assert report.urls == ("memory://pack/x-0.tar", "memory://pack/x-1.tar")
    with pytest.raises(FileExistsError, match=r"memory://pack/x-0\.tar exists already, and 1 more"):
        pack(str(folder), "memory://pack/x-{0..1}.tar")


def test_names_of_any_length_and_alphabet(tmp_path: Path) -> None:
    long = "/".join(["d" * 60] * 5)
    _put(tmp_path / "in", f"{long}/bild.png", "käse/写真.png")
    report = pack(f"{tmp_path}/in", f"{tmp_path}/x.tar")
    assert set(_files(*report.urls)) == {f"{long}/bild.png", "käse/写真.png"}
    assert _webdataset(report.urls[0]) == [(f"{long}/bild", {"png"}), ("käse/写真", {"png"})]


@pytest.mark.parametrize(
    ("one", "other", "role"),
    [
        ("a.png", "a.jpg", "sample 'a'"),
        ("a.b.png", "a_b.png", "sample 'a_b'"),
        ("v1.0/x.png", "v1_0/x.png", "sample 'v1_0/x'"),
        ("a.PNG", "a.png", "sample 'a'"),
        ("a.txt", "a.TXT", "the .txt file of 'a'"),
    ],
)
def test_two_files_of_one_name_are_refused_with_both_named(tmp_path: Path, one: str, other: str, role: str) -> None:
    _put(tmp_path / "in", one, other, "good.png")
    with pytest.raises(ValueError, match=re.escape(role)) as refused:
        pack(f"{tmp_path}/in", f"{tmp_path}/x.tar")
    assert one in str(refused.value)
    assert other in str(refused.value)
    assert not (tmp_path / "x.tar").exists()


def test_a_folder_without_images_is_told_by_what_it_holds(tmp_path: Path) -> None:
    _put(tmp_path / "in", "a.gif", "b.GIF", "c.txt", "LICENSE")
    with pytest.raises(ValueError, match=r"no image: 4 files \(2 \.gif, 1 without an extension, 1 \.txt\)"):
        pack(f"{tmp_path}/in", f"{tmp_path}/x.tar")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no image: 0 files; images are \.jpeg, \.jpg, \.npy, \.png, \.webp files"):
        pack(f"{tmp_path}/empty", f"{tmp_path}/x.tar")


@pytest.mark.parametrize(("name", "error"), [("missing", FileNotFoundError), ("file", NotADirectoryError)])
def test_what_is_no_folder_is_refused(tmp_path: Path, name: str, error: type[OSError]) -> None:
    _put(tmp_path, "file")
    with pytest.raises(error, match=name):
        pack(f"{tmp_path}/{name}", f"{tmp_path}/x.tar")


def test_an_existing_shard_is_not_touched_unless_allowed(folder: Path, tmp_path: Path) -> None:
    old = tmp_path / "x.tar"
    old.write_bytes(b"precious")
    with pytest.raises(FileExistsError, match=r"x\.tar exists"):
        pack(str(folder), str(old))
    assert old.read_bytes() == b"precious"
    assert pack(str(folder), str(old), overwrite=True).bytes == old.stat().st_size > 8


def test_a_file_that_vanishes_leaves_no_half_a_shard(tmp_path: Path) -> None:
    _put(tmp_path / "in", "a.png", "b.png")

    def remove_b(_count: int) -> None:
        (tmp_path / "in" / "b.png").unlink(missing_ok=True)

    with pytest.raises(FileNotFoundError, match=r"b\.png"):
        pack(f"{tmp_path}/in", f"{tmp_path}/x.tar", progress=remove_b)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_links_are_followed_once_and_loops_end(tmp_path: Path) -> None:
    _put(tmp_path / "in", "a/x.png", "b/y.png")
    _put(tmp_path / "elsewhere", "z.png")
    for link, target in [("a/up", ".."), ("b/a", "../a"), ("self", "self"), ("more", "../elsewhere")]:
        (tmp_path / "in" / link).symlink_to(target)
    (tmp_path / "in" / "more.png").symlink_to("../elsewhere/z.png")
    (tmp_path / "in" / "gone.png").symlink_to("nowhere.png")
    report = pack(f"{tmp_path}/in", f"{tmp_path}/x.tar")
    assert _files(*report.urls) == {
        "a/x.png": b"a/x.png",
        "b/y.png": b"b/y.png",
        "more.png": b"z.png",
        "more/z.png": b"z.png",
    }
    assert report.passed_over == 2  # gone.png and self


def test_pipes_and_hidden_folders_are_passed_over(tmp_path: Path) -> None:
    _put(tmp_path / "in", "a.png", ".cache/b.png")
    os.mkfifo(tmp_path / "in" / "c.png")
    report = pack(f"{tmp_path}/in", f"{tmp_path}/x.tar")
    assert (set(_files(*report.urls)), report.passed_over) == ({"a.png"}, 1)


_name = st.text(st.characters(blacklist_characters="/\0"), min_size=1, max_size=8)
_stem = st.lists(_name | st.sampled_from(["__x__", "___x__", "____", "..x..", "a.b"]), min_size=1, max_size=3).map(
    "/".join
)


@given(stem=_stem)
def test_keys_are_read_back_by_webdataset_as_they_were_written(stem: str) -> None:
    key = key_of(stem)
    assert base_plus_ext(f"{key}.png") == (key, "png")
    assert not re.match(r"__[^/]*__($|/)", f"{key}.png")  # what WebDataset skips as metadata
    assert key_of(key) == key
    assert key.count("/") == stem.count("/")
    assert key.isprintable()


@given(stem=st.from_regex(r"[a-zA-Z0-9 _-]{1,8}(/[a-zA-Z0-9 _-]{1,8})?", fullmatch=True))
def test_keys_of_ordinary_names_are_the_names(stem: str) -> None:
    assert key_of(stem) == stem or re.match(r"__+[^/]*__/", stem)


def test_many_images_lose_none(tmp_path: Path) -> None:
    names = [f"c{i % 7}/{i}.png" for i in range(300)]
    _put(tmp_path / "in", *names)
    report = pack(f"{tmp_path}/in", f"{tmp_path}/x-{{00..06}}.tar")
    assert Counter(len(_files(url)) for url in report.urls) == {42: 1, 43: 6}
    assert set(_files(*report.urls)) == set(names)
