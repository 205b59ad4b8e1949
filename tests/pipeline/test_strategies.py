"""Staged rows, groups, symmetries, merging and extending: each equal to the plain run over the same rows."""

import json
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from conftest import npy, png, random_images, rows_of, write_shards, write_tar

from tilecov.pipeline import Job, Moments, run
from tilecov.pipeline.cli import run_safely
from tilecov.pipeline.errors import BusyError, DoesNotFitError, OtherJobError, TooManyGroupsError
from tilecov.pipeline.merge import merge
from tilecov.pipeline.symmetry import GENERATORS, permutation
from tilecov.pipeline.tasks import TilesTask
from tilecov.pipeline.verify import verify
from tilecov.storage.lease import lease
from tilecov.storage.objects import Folder
from tilecov.storage.partials import DamagedTileError
from tilecov.storage.runs import RunFolder

Shards = Callable[..., list[str]]


def digest_of(images: np.ndarray[Any, Any]) -> str:
    rows = rows_of(images)
    return Moments.empty(rows.shape[1]).update(rows).digest()


def breaches(path: Path) -> list[str]:
    return verify(RunFolder(Folder(str(path))))[1]


@pytest.mark.parametrize("block_rows", [1, 7, 64])
def test_staged_equals_resident(tmp_path: Path, block_rows: int) -> None:
    images = random_images(60, 8)
    paths = tuple(str(path) for path in write_shards(tmp_path / "shards", images, 3))
    job = {"shards": paths, "resolution": 8, "block_rows": block_rows}
    staged = run(Job(**job, out=str(tmp_path / "staged"), strategy="staged"))
    resident = run(Job(**job, out=str(tmp_path / "resident"), strategy="resident"))
    assert staged["plan"]["strategy"] == "staged"
    assert staged["moments_digest"] == resident["moments_digest"] == digest_of(images)
    assert breaches(tmp_path / "staged") == []
    assert not (tmp_path / "staged" / "work").exists()
    for name in ("covariance", "mean", "eigenvalues", "eigenvectors"):
        left, right = (zarr.open_group(tmp_path / run / "statistics.zarr", mode="r") for run in ("staged", "resident"))
        assert np.array_equal(left[name][:], right[name][:])  # type: ignore[index]


def test_staged_in_many_tile_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """d = 2,187 is three tiles; groups of one tile by a memory that allows no more."""
    monkeypatch.setattr("tilecov.pipeline.costs.Costs.tiles_memory", lambda self, side, rows: 10**15 * (side > 1))
    images = random_images(50, 27)
    paths = tuple(str(path) for path in write_shards(tmp_path / "shards", images, 3))
    manifest = run(Job(shards=paths, resolution=27, rank=0, out=str(tmp_path / "run"), strategy="staged"))
    assert len(manifest["plan"]["tile_groups"]) == 6
    assert manifest["moments_digest"] == digest_of(images)
    assert breaches(tmp_path / "run") == []


def test_more_rows_than_int32_holds_where_fewer_were_estimated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan counted int32 tiles in one group; int64 tiles in groups of half the side take no more memory."""
    monkeypatch.setattr("tilecov.pipeline.context.INT32_ROWS", 49)
    wide: list[bool] = []
    accumulator = TilesTask.accumulator

    def spy(task: TilesTask, *args: Any, **options: Any) -> Any:
        wide.append(options["wide"])
        return accumulator(task, *args, **options)

    monkeypatch.setattr(TilesTask, "accumulator", spy)
    images = random_images(50, 27)
    paths = tuple(str(path) for path in write_shards(tmp_path / "shards", images, 3))
    manifest = run(Job(shards=paths, resolution=27, rank=0, out=str(tmp_path / "run"), strategy="staged"))
    assert len(manifest["plan"]["tile_groups"]) == 1
    assert wide == [True] * 6
    assert manifest["moments_digest"] == digest_of(images)


def test_rows_are_kept_when_asked(tmp_path: Path, shards: Shards) -> None:
    paths = tuple(shards(count=20, resolution=4))
    run(Job(shards=paths, resolution=4, rank=0, out=str(tmp_path / "run"), strategy="staged", keep_rows=True))
    assert list((tmp_path / "run" / "work" / "rows").rglob("rows/zarr.json"))


@pytest.mark.parametrize("strategy", ["resident", "staged"])
def test_float_rows_by_either_strategy(tmp_path: Path, strategy: Any) -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(100, 1, (200, 12)).astype(np.float32)
    path = write_tar(tmp_path / "a.tar", ((f"{i}.npy", npy(row)) for i, row in enumerate(rows)))
    run(Job(shards=(str(path),), resolution=2, rank=0, out=str(tmp_path / "run"), strategy=strategy, dtype="float64"))
    found = zarr.open_group(tmp_path / "run" / "statistics.zarr", mode="r")
    expected = np.cov(rows.astype(np.float64).T)
    assert np.abs(found["covariance"][:] - expected).max() <= 1e-6 * np.abs(expected).max()  # type: ignore[index]


def test_merge_subtract_and_extend_give_the_digest_of_one_run(tmp_path: Path) -> None:
    images = random_images(90, 6)
    paths = [str(path) for path in write_shards(tmp_path / "shards", images, 3)]
    whole = run(Job(shards=tuple(paths), resolution=6, out=str(tmp_path / "whole")))
    parts = [str(tmp_path / f"part{index}") for index in range(3)]
    for path, out in zip(paths, parts, strict=True):
        run(Job(shards=(path,), resolution=6, out=out))
    for number, order in enumerate(permutations(parts)):
        merged = merge(order, str(tmp_path / f"merged{number}"))
        assert merged["moments_digest"] == whole["moments_digest"]
    assert breaches(tmp_path / "merged0") == []
    assert merge(parts, str(tmp_path / "merged0")) == json.loads((tmp_path / "merged0" / "run.json").read_text())
    less = merge([str(tmp_path / "whole")], str(tmp_path / "less"), subtract=[parts[1]])
    pair = merge([parts[0], parts[2]], str(tmp_path / "pair"))
    assert less["moments_digest"] == pair["moments_digest"]
    for strategy in ("resident", "staged"):
        job = Job(
            shards=tuple(paths),
            resolution=6,
            out=str(tmp_path / f"extended-{strategy}"),
            extend=parts[0],
            strategy=strategy,
        )
        extended = run(job)
        assert extended["moments_digest"] == whole["moments_digest"]
        assert breaches(tmp_path / f"extended-{strategy}") == []
        assert run(job) == extended
    ledgers = [
        (tmp_path / name / "ledger.jsonl").read_text().splitlines() for name in ("whole", "merged0", "extended-staged")
    ]
    assert len({tuple(sorted(lines)) for lines in ledgers}) == 1
    nothing_new = run(Job(shards=(paths[0],), resolution=6, out=str(tmp_path / "same"), extend=parts[0]))
    assert nothing_new["moments_digest"] == json.loads((Path(parts[0]) / "run.json").read_text())["moments_digest"]


def test_what_may_not_be_merged(tmp_path: Path) -> None:
    images = random_images(60, 6)
    paths = [str(path) for path in write_shards(tmp_path / "shards", images, 2)]
    one, two, small = (str(tmp_path / name) for name in ("one", "two", "small"))
    run(Job(shards=(paths[0],), resolution=6, out=one, rank=0))
    run(Job(shards=tuple(paths), resolution=6, out=two, rank=0))
    run(Job(shards=(paths[1],), resolution=4, out=small, rank=0))
    with pytest.raises(OtherJobError, match="count twice"):
        merge([one, two], str(tmp_path / "a"))
    twice = merge([one, two], str(tmp_path / "b"), allow_duplicates=True)
    assert twice["moments_digest"] == digest_of(np.concatenate([images[: len(images) // 2], images]))
    with pytest.raises(OtherJobError, match="not among"):
        merge([one], str(tmp_path / "c"), subtract=[two])
    with pytest.raises(OtherJobError, match="resolution"):
        merge([one, small], str(tmp_path / "d"))
    with pytest.raises(FileNotFoundError, match=r"no (complete )?run at"):
        merge([one, str(tmp_path / "nowhere")], str(tmp_path / "e"))


def test_floats_are_merged_about_different_means(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(5, 1, (200, 12)) + np.arange(200)[:, None] / 50
    runs = []
    for part in range(2):
        files = ((f"{part}-{i}.npy", npy(row)) for i, row in enumerate(rows[part * 100 : (part + 1) * 100]))
        path = write_tar(tmp_path / f"{part}.tar", files)
        runs.append(str(tmp_path / f"run{part}"))
        run(Job(shards=(str(path),), resolution=2, rank=0, out=runs[-1], dtype="float64"))
    merge(runs, str(tmp_path / "merged"))
    found = zarr.open_group(tmp_path / "merged" / "statistics.zarr", mode="r")
    expected = np.cov(rows.T)
    assert np.allclose(found["mean"][:], rows.mean(axis=0), rtol=1e-12)  # type: ignore[index]
    assert np.abs(found["covariance"][:] - expected).max() <= 1e-6 * np.abs(expected).max()  # type: ignore[index]


def flipped(images: np.ndarray[Any, Any], name: str) -> np.ndarray[Any, Any]:
    """Return the images with all their images under the symmetry group."""
    quarter = [np.rot90(images, turns, axes=(1, 2)) for turns in range(4)]
    groups = {
        "hflip": [images, images[:, :, ::-1]],
        "vflip": [images, images[:, ::-1]],
        "rot90": quarter,
        "d4": [*quarter, *(turned[:, :, ::-1] for turned in quarter)],
    }
    return np.concatenate(groups[name])


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize(("channels", "resolution"), [(3, 5), (1, 4), (3, 24)])
def test_symmetries_equal_a_run_over_the_flipped_images(
    tmp_path: Path, name: Any, channels: int, resolution: int
) -> None:
    images = random_images(12, resolution, channels)
    paths = tuple(str(path) for path in write_shards(tmp_path / "shards", images, 2))
    job = Job(shards=paths, resolution=resolution, channels=channels, rank=0, out=str(tmp_path / "run"), augment=name)
    manifest = run(job)
    assert manifest["augmented_digest"] == digest_of(flipped(images, name))
    assert manifest["moments_digest"] == digest_of(images)
    assert breaches(tmp_path / "run") == []
    names = set(zarr.open_group(tmp_path / "run" / "moments.zarr", mode="r"))
    assert names == {"sum", "origin", "gram", "third", "augmented"}


def test_symmetries_of_float_rows(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.normal(np.arange(12).reshape(3, 2, 2), 1, (100, 3, 2, 2))
    path = write_tar(tmp_path / "a.tar", ((f"{i}.npy", npy(image)) for i, image in enumerate(images)))
    run(Job(shards=(str(path),), resolution=2, rank=0, out=str(tmp_path / "run"), augment="d4", dtype="float64"))
    found = zarr.open_group(tmp_path / "run" / "statistics.zarr", mode="r")
    rows = flipped(images.transpose(0, 2, 3, 1), "d4").transpose(0, 3, 1, 2).reshape(800, 12)
    expected = np.cov(rows.T)
    assert np.allclose(found["mean"][:], rows.mean(axis=0), rtol=1e-9)  # type: ignore[index]
    assert np.abs(found["covariance"][:] - expected).max() <= 1e-6 * np.abs(expected).max()  # type: ignore[index]


@pytest.mark.parametrize("name", ["hflip", "vflip", "rot90", "rot180"])
def test_permutations_turn_rows(name: str) -> None:
    image = np.arange(3 * 4 * 4).reshape(3, 4, 4)
    turns = {
        "hflip": image[:, :, ::-1],
        "vflip": image[:, ::-1],
        "rot90": np.rot90(image, axes=(1, 2)),
        "rot180": np.rot90(image, 2, axes=(1, 2)),
    }
    assert np.array_equal(image.reshape(-1)[permutation(name, (3, 4, 4))], turns[name].reshape(-1))


GROUPINGS = {"cls": "cls", "json": "json:label", "key": r"^([a-z]+)/"}


@pytest.mark.parametrize("way", GROUPINGS)
def test_groups_have_moments_of_their_own(tmp_path: Path, way: str) -> None:
    images = random_images(30, 4)
    labels = [("cat", "dog", "ant")[i % 3] for i in range(30)]
    files = []
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        key = f"{label}/{i:03d}" if way == "key" else f"{i:03d}"
        beside = {"cls": (f"{key}.cls", label.encode()), "json": (f"{key}.json", json.dumps({"label": label}).encode())}
        files += [(f"{key}.png", png(image)), *([beside[way]] if way in beside else [])]
    path = write_tar(tmp_path / "a.tar", files)
    manifest = run(Job(shards=(str(path),), resolution=4, out=str(tmp_path / "run"), group_by=GROUPINGS[way]))
    assert manifest["groups"] == {"ant": 10, "cat": 10, "dog": 10}
    assert manifest["moments_digest"] == digest_of(images)
    moments = zarr.open_group(tmp_path / "run" / "moments.zarr", mode="r")
    found = zarr.open_group(tmp_path / "run" / "statistics.zarr", mode="r")
    for label in manifest["groups"]:
        own = images[[found == label for found in labels]]
        assert moments[f"groups/{label}"].attrs["digest"] == digest_of(own)
        expected = np.cov(rows_of(own).T / 127.5)
        assert np.abs(found[f"groups/{label}/covariance"][:] - expected).max() <= 1e-6 * expected.max()  # type: ignore[index]


def test_too_many_groups_and_samples_without_one(tmp_path: Path) -> None:
    files = [(f"{i}.png", png(image)) for i, image in enumerate(random_images(6, 4))]
    path = write_tar(tmp_path / "a.tar", files)
    with pytest.raises(TooManyGroupsError, match="--max-groups"):
        run(Job(shards=(str(path),), resolution=4, out=str(tmp_path / "a"), group_by=".*", max_groups=3))
    assert (
        run_safely(["run", str(path), "--resolution", "4", "--out", str(tmp_path / "b"), "--group-by", "cls", "-q"])
        == 1
    )
    assert (
        run_safely(["run", str(path), "--resolution", "4", "--out", str(tmp_path / "c"), "--group-by", "(", "-q"]) == 2
    )


def test_a_second_process_is_refused(tmp_path: Path, shards: Shards) -> None:
    job = Job(shards=tuple(shards()), resolution=4, rank=0, out=str(tmp_path / "run"))
    with lease(Folder(str(tmp_path / "run"))), pytest.raises(BusyError, match="works on"):
        run(job)
    assert run(job)["state"] == "complete"


def test_what_does_not_fit_is_refused_with_both_sizes(tmp_path: Path, shards: Shards) -> None:
    with pytest.raises(DoesNotFitError, match=r"MiB and 20\.0 MiB are allowed; raise --memory"):
        run(Job(shards=tuple(shards()), resolution=4, memory="20MiB", out=str(tmp_path / "run")))
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize("strategy", ["resident", "staged"])
def test_a_damaged_run_is_not_extended(tmp_path: Path, strategy: Any) -> None:
    paths = [str(path) for path in write_shards(tmp_path / "shards", random_images(60, 6), 2)]
    run(Job(shards=(paths[0],), resolution=6, rank=0, out=str(tmp_path / "one")))
    chunk = tmp_path / "one" / "moments.zarr" / "gram" / "c" / "0" / "0"
    content = bytearray(chunk.read_bytes())
    content[40] ^= 1
    chunk.write_bytes(content)
    job = Job(
        shards=tuple(paths),
        resolution=6,
        rank=0,
        out=str(tmp_path / "two"),
        extend=str(tmp_path / "one"),
        strategy=strategy,
    )
    with pytest.raises(DamagedTileError, match="digest"):
        run(job)
