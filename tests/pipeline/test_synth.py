import io
import os
import tarfile
import warnings
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import fsspec
import numpy as np
import numpy.typing as npt
import pytest
import webdataset as wds
from PIL import Image

from tilecov.pipeline import synth as module
from tilecov.pipeline.deadleaves import dead_leaves
from tilecov.pipeline.synth import synth


def _samples(urls: Iterable[str | Path]) -> dict[str, bytes]:
    """Return the files of all shards by name, in order, read by Python's tarfile."""
    files: dict[str, bytes] = {}
    for url in urls:
        with tarfile.open(url) as tar:
            files |= {member.name: cast("io.BufferedReader", tar.extractfile(member)).read() for member in tar}
    return files


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _pixels(data: bytes) -> npt.NDArray[np.uint8]:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


def test_image_i_is_the_one_of_its_seed_and_number(tmp_path: Path) -> None:
    files = _samples(synth(f"{tmp_path}/x.tar", count=3, resolution=9, seed=5))
    assert list(files) == ["000000000.png", "000000001.png", "000000002.png"]
    for i, data in enumerate(files.values()):
        rng = np.random.default_rng(np.random.SeedSequence([5, i]))
        assert np.array_equal(_pixels(data), dead_leaves(rng, 9))


@pytest.mark.parametrize(
    ("shards", "names"),
    [
        ("x.tar", ["x.tar"]),
        ("deep/er/x-{00..02}.tar", ["deep/er/x-00.tar", "deep/er/x-01.tar", "deep/er/x-02.tar"]),
        ("x-%06d.tar", ["x-000000.tar", "x-000001.tar", "x-000002.tar", "x-000003.tar"]),
    ],
)
def test_the_content_does_not_depend_on_the_shards(tmp_path: Path, shards: str, names: list[str]) -> None:
    urls = synth(f"{tmp_path}/{shards}", count=10, resolution=4, per_shard=3, workers=1)
    assert urls == [f"{tmp_path}/{name}" for name in names]
    assert _samples(urls) == _samples(synth(f"{tmp_path}/all.tar", count=10, resolution=4))


def test_a_smaller_data_set_is_the_start_of_a_larger_one(tmp_path: Path) -> None:
    few, many = (_samples(synth(f"{tmp_path}/{n}.tar", count=n, resolution=4)) for n in (3, 8))
    assert few == dict(list(many.items())[:3])


def test_the_same_bytes_for_any_number_of_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_IMAGES", 4)  # eight batches: both processes get some
    monkeypatch.setattr(module, "_WORTH_A_PROCESS", 1)
    done: dict[int, list[int]] = {1: [], 2: []}
    one, two = (
        synth(f"{tmp_path}/{w}-{{0..2}}.tar", count=31, resolution=4, workers=w, progress=done[w].append) for w in done
    )
    assert [Path(url).read_bytes() for url in one] == [Path(url).read_bytes() for url in two]
    assert sum(done[1]) == sum(done[2]) == 31


def test_headers_hold_nothing_of_this_machine_or_moment(tmp_path: Path) -> None:
    (url,) = synth(f"{tmp_path}/x.tar", count=2, resolution=2)
    with tarfile.open(url) as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
            assert member.mode == 0o444
            assert not member.pax_headers


def test_seeds_differ(tmp_path: Path) -> None:
    zero, one = (_samples(synth(f"{tmp_path}/{s}.tar", count=4, resolution=8, seed=s)) for s in (0, 1))
    assert zero.keys() == one.keys()
    assert all(zero[name] != one[name] for name in zero)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("extension", "tolerance"), [("png", 0), ("webp", 0), ("jpg", 30)])
def test_every_format_holds_the_image(tmp_path: Path, extension: str, tolerance: float, channels: int) -> None:
    (url,) = synth(f"{tmp_path}/x.tar", count=2, resolution=16, channels=channels, extension=extension)
    files = _samples([url])
    assert list(files) == [f"000000000.{extension}", f"000000001.{extension}"]
    drawn = dead_leaves(np.random.default_rng(np.random.SeedSequence([0, 1])), 16, channels).astype(int)
    read = _pixels(files[f"000000001.{extension}"])
    if extension != "webp":  # which has no gray
        assert read.ndim == (3 if channels == 3 else 2)
    assert np.abs(read.reshape(16, 16, -1) - drawn).mean() <= tolerance


def test_webdataset_reads_the_shards(tmp_path: Path) -> None:
    synth(f"{tmp_path}/x-{{0..2}}.tar", count=7, resolution=6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # webdataset leaves shards to the garbage collector to close
        dataset = wds.WebDataset(f"{tmp_path}/x-{{0..2}}.tar", shardshuffle=False).decode("rgb8")
        read = [(sample["__key__"], sample["png"].shape) for sample in dataset]
    assert read == [(f"{i:09d}", (6, 6, 3)) for i in range(7)]


def test_any_fsspec_url() -> None:
    urls = synth("memory://synth/deep/x-{0..1}.tar", count=3, resolution=2, storage_options={})
    sizes = []
    for url in urls:
        with fsspec.open(url) as stream, tarfile.open(fileobj=stream) as tar:
            sizes.append(len(tar.getnames()))
    assert sizes == [1, 2]


def test_an_existing_shard_is_not_touched_unless_allowed(tmp_path: Path) -> None:
    old = tmp_path / "x-1.tar"
    old.write_bytes(b"precious")
    with pytest.raises(FileExistsError, match=r"x-1\.tar exists"):
        synth(f"{tmp_path}/x-{{0..2}}.tar", count=5, resolution=2)
    assert _names(tmp_path) == ["x-1.tar"]
    assert old.read_bytes() == b"precious"
    synth(f"{tmp_path}/x-{{0..2}}.tar", count=5, resolution=2, overwrite=True)
    assert len(_samples([old])) == 2


def test_a_failure_leaves_whole_shards_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = module._Look.image

    def fails_at_seven(look: module._Look, index: int) -> bytes:
        if index == 7:
            raise MemoryError("no room")
        return whole(look, index)

    monkeypatch.setattr(module._Look, "image", fails_at_seven)
    monkeypatch.setattr(module, "_IMAGES", 1)  # so what comes before the failure is written
    with pytest.raises(MemoryError):
        synth(f"{tmp_path}/x-{{0..1}}.tar", count=10, resolution=2, workers=1)
    assert _names(tmp_path) == ["x-0.tar"]
    assert len(_samples([tmp_path / "x-0.tar"])) == 5


def test_a_process_that_dies_is_told_with_the_way_out() -> None:
    deadly = SimpleNamespace(batch=os._exit)
    with pytest.raises(RuntimeError, match=r"drawing process died.*__main__"):
        list(module._draw_in_processes(cast("module._Look", deadly), cast("list[range]", [3, 3]), 1))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"count": 0}, "count 0"),
        ({"resolution": 0}, "resolution 0"),
        ({"seed": -1}, "seed -1"),
        ({"workers": 0}, "workers 0"),
        ({"channels": 2}, "1 or 3 channels, not 2"),
        ({"extension": "gif"}, "png, jpg, webp, not as 'gif'"),
        ({"shards": "x"}, "no shard that can be written"),
        ({"shards": "x-{0..9}.tar"}, "4 samples cannot fill 10 shards"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_written(
    tmp_path: Path, wrong: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked: dict[str, Any] = {"shards": "x.tar", "count": 4, "resolution": 2} | wrong
    with pytest.raises(ValueError, match=message):
        synth(asked.pop("shards"), **asked)
    assert not _names(tmp_path)
