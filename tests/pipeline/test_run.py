"""The whole job, against independent arithmetic."""

import json
import zlib
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from conftest import npy, random_images, rows_of, write_shards, write_tar

from tilecov.pipeline import Job, Moments, WienerFilter, load_wiener_filter, run
from tilecov.pipeline.errors import OtherJobError
from tilecov.pipeline.verify import verify
from tilecov.storage.objects import Folder
from tilecov.storage.runs import RunFolder

Shards = Callable[..., list[str]]


def two_pass(rows: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return mean and covariance of rows in float64, by two passes."""
    values = rows.astype(np.float64)
    mean = values.sum(axis=0) / len(values)
    centred = values - mean
    return mean, centred.T @ centred / (len(values) - 1)


def statistics(out: Path) -> Any:
    return zarr.open_group(out / "statistics.zarr", mode="r")


@pytest.mark.parametrize(
    ("channels", "resolution", "count"), [(3, 8, 400), (1, 8, 100), (3, 4, 7), (1, 1, 5), (3, 8, 3)]
)
def test_equals_two_passes_in_float64(tmp_path: Path, channels: int, resolution: int, count: int) -> None:
    images = random_images(count, resolution, channels)
    paths = write_shards(tmp_path / "shards", images, 3)
    job = Job(
        shards=tuple(map(str, paths)),
        resolution=resolution,
        channels=channels,
        out=str(tmp_path / "run"),
        dtype="float64",
    )
    manifest = run(job)
    mean, covariance = two_pass(rows_of(images) * (2 / 255) - 1)
    found = statistics(tmp_path / "run")
    assert np.abs(found["mean"][:] - mean).max() <= 1e-12
    assert np.abs(found["covariance"][:] - covariance).max() <= 1e-12 * np.abs(covariance).max()
    expected = torch.linalg.svd(torch.from_numpy(covariance)).S.numpy()
    assert np.abs(found["eigenvalues"][:] - expected).max() <= 1e-12 * expected[0]
    U, LA, Vh, artifact_mean = load_wiener_filter(tmp_path / "run" / "artifacts")
    assert np.abs(LA.numpy() - expected).max() <= 1e-6 * expected[0]
    assert np.abs((U * LA @ Vh).numpy() - covariance).max() <= 2e-6 * np.abs(covariance).max()
    assert np.abs(artifact_mean.numpy() - mean).max() <= 1e-6
    assert torch.equal(Vh, U.T)
    if count <= channels * resolution**2:
        assert (LA[count - 1 :] == 0).all()
    assert manifest["state"] == "complete"
    assert manifest["dataset"]["used"] == count
    assert verify(RunFolder(Folder(str(tmp_path / "run"))))[1] == []


@pytest.mark.parametrize(
    ("name", "scale", "offset"), [("unit", 1 / 255, 0), ("byte", 1, 0), ("symmetric", 2 / 255, -1)]
)
def test_ranges(tmp_path: Path, name: Any, scale: float, offset: float) -> None:
    images = random_images(50, 4)
    (path,) = write_shards(tmp_path / "shards", images, 1)
    run(Job(shards=(str(path),), resolution=4, out=str(tmp_path / "run"), range=name, dtype="float64"))
    mean, covariance = two_pass(rows_of(images) * scale + offset)
    found = statistics(tmp_path / "run")
    assert np.allclose(found["mean"][:], mean, rtol=0, atol=1e-12 * 255)
    assert np.abs(found["covariance"][:] - covariance).max() <= 1e-12 * np.abs(covariance).max()
    assert found.attrs["range"] == name


def test_digest_is_the_same_however_the_work_is_done(tmp_path: Path) -> None:
    images = random_images(60, 6)
    paths = [str(path) for path in write_shards(tmp_path / "shards", images, 3)]
    expected = Moments.empty(108).update(rows_of(images)).digest()
    orders = list(permutations(paths))
    ways: list[dict[str, Any]] = [{"block_rows": rows} for rows in (1, 7, 256, 4096)]
    ways += [{"decode_threads": threads} for threads in (1, 2, 8)]
    ways += [{"shards": order} for order in orders[1:]]
    for number, way in enumerate(ways):
        job = Job(**{"shards": tuple(paths), "resolution": 6, "rank": 0, "out": str(tmp_path / f"run{number}"), **way})
        assert run(job)["moments_digest"] == expected, way


def test_two_dask_workers_give_the_same_digest(tmp_path: Path, shards: Shards) -> None:
    paths = shards(count=30, resolution=4)
    alone = run(Job(shards=tuple(paths), resolution=4, rank=0, out=str(tmp_path / "one")))
    both = run(Job(shards=tuple(paths), resolution=4, rank=0, out=str(tmp_path / "two"), workers=2, memory="2GiB"))
    assert both["moments_digest"] == alone["moments_digest"]


def test_rank_keeps_the_leading_part(tmp_path: Path, shards: Shards) -> None:
    paths = tuple(shards(count=80, resolution=4))
    run(Job(shards=paths, resolution=4, out=str(tmp_path / "full")))
    run(Job(shards=paths, resolution=4, out=str(tmp_path / "part"), rank=5))
    full, part = (WienerFilter.load(tmp_path / name) for name in ("full", "part"))
    assert part.U.shape == (48, 5)
    assert part.Vh.shape == (5, 48)
    assert torch.equal(part.U, full.U[:, :5])
    assert torch.equal(part.LA, full.LA[:5])
    assert verify(RunFolder(Folder(str(tmp_path / "part"))))[1] == []


def test_what_is_freed_is_kept_from_the_merge_on_and_given_back_at_the_end(
    tmp_path: Path, shards: Shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[bool] = []
    monkeypatch.setattr("tilecov.pipeline.machine.keep_freed", lambda *, keep: kept.append(keep))
    job = Job(shards=tuple(shards(count=300, resolution=8)), resolution=8, out=str(tmp_path / "roomy"))
    stages = run(job)["stages"]
    keeping = {"merge", "statistics", "artifacts", "certificate"}
    planned = [name in keeping for name in stages for _ in range(1 + (name == "moments"))]  # a task begins anew
    assert kept == [*planned, False]
    kept.clear()
    monkeypatch.setattr("tilecov.pipeline.costs.SPARE", 1 << 60)  # as where it is resumed with less memory
    manifest = run(job.model_copy(update={"out": str(tmp_path / "tight")}))
    assert any(stage["keeps_freed"] for stage in manifest["plan"]["stages"])
    assert not any(kept)


def test_a_complete_run_is_left_alone(tmp_path: Path, shards: Shards) -> None:
    job = Job(shards=tuple(shards()), resolution=4, out=str(tmp_path / "run"))
    first = run(job)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    assert run(job) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before


def test_the_ledger_has_a_line_a_shard(tmp_path: Path) -> None:
    images = [(f"{i}.npy", npy(np.full(12, i, np.uint8))) for i in range(4)]
    good = write_tar(tmp_path / "a.tar", images[:2])
    mixed = write_tar(tmp_path / "b.tar", [*images[2:], ("readme.txt", b"hello"), ("broken.npy", b"no array")])
    job = Job(
        shards=(str(good), str(mixed)),
        resolution=2,
        out=str(tmp_path / "run"),
        on_error="skip",
        max_skipped=0.5,
        rank=0,
    )
    manifest = run(job)
    lines = [json.loads(line) for line in (tmp_path / "run" / "ledger.jsonl").read_text().splitlines()]
    assert [(line["url"], line["size"], line["crc32"]) for line in lines] == [
        (str(path), path.stat().st_size, zlib.crc32(path.read_bytes())) for path in (good, mixed)
    ]
    assert [(line["samples"], line["used"], line["passed_over"]) for line in lines] == [(2, 2, 0), (4, 2, 1)]
    assert [item["key"] for item in lines[1]["skipped"]] == ["broken"]
    totals = {"samples": 6, "used": 4, "passed_over": 1, "skipped": 1}
    assert {name: manifest["dataset"][name] for name in totals} == totals


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_float_rows_take_two_passes(tmp_path: Path, dtype: str) -> None:
    rng = np.random.default_rng(0)
    rows = (rng.normal(size=(300, 12)) @ rng.normal(size=(12, 12)) + 50).astype(dtype)
    paths = [
        write_tar(tmp_path / f"{part}.tar", ((f"{part}-{i}.npy", npy(row)) for i, row in enumerate(rows[part::2])))
        for part in range(2)
    ]
    job = Job(shards=tuple(map(str, paths)), resolution=2, out=str(tmp_path / "run"), dtype="float64")
    manifest = run(job)
    mean, covariance = two_pass(rows)
    found = statistics(tmp_path / "run")
    assert np.allclose(found["mean"][:], mean, rtol=1e-12)
    assert np.abs(found["covariance"][:] - covariance).max() <= 1e-6 * np.abs(covariance).max()
    assert manifest["dataset"]["kind"] == ("float64" if dtype == "float64" else "float32")
    assert verify(RunFolder(Folder(str(tmp_path / "run"))))[1] == []


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"resolution": 5}, "resolution"),
        ({"channels": 1}, "channels"),
        ({"rank": 3}, "rank"),
        ({"range": "unit"}, "range"),
    ],
)
def test_another_job_is_refused_by_the_field(
    tmp_path: Path, shards: Shards, change: dict[str, Any], names: str
) -> None:
    job = {"shards": tuple(shards()), "resolution": 4, "out": str(tmp_path / "run")}
    run(Job(**job))
    with pytest.raises(OtherJobError, match=names):
        run(Job(**{**job, **change}))


def test_a_folder_with_other_things_in_it_is_refused(tmp_path: Path, shards: Shards) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("years of work")
    with pytest.raises(OtherJobError, match="not empty"):
        run(Job(shards=tuple(shards()), resolution=4, out=str(tmp_path / "run")))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda out: flip_byte(out / "artifacts" / "U.pt", 2000), "checksum"),
        (lambda out: flip_byte(out / "artifacts" / "Vh.pt", 2000), "Vh.pt"),
        (lambda out: flip_byte(out / "moments.zarr" / "gram" / "c" / "0" / "0", 40), "digest"),
        (lambda out: flip_byte(out / "statistics.zarr" / "covariance" / "c" / "0" / "0", 43), "covariance"),
        (lambda out: flip_byte(out / "statistics.zarr" / "mean" / "c" / "0", 46), "mean"),
        (lambda out: flip_byte(out / "statistics.zarr" / "eigenvalues" / "c" / "0", 6), "eigenvalues"),
        (lambda out: flip_byte(out / "statistics.zarr" / "eigenvectors" / "c" / "0" / "0", 43), "rows 0 to 192 of"),
        (lambda out: (out / "artifacts" / "LA.pt").unlink(), "missing"),
    ],
)
def test_verify_sees_damage(tmp_path: Path, shards: Shards, damage: Callable[[Path], None], says: str) -> None:
    run(Job(shards=tuple(shards(count=80)), resolution=8, out=str(tmp_path / "run")))
    damage(tmp_path / "run")
    _, breaches = verify(RunFolder(Folder(str(tmp_path / "run"))))
    assert any(says in breach for breach in breaches), breaches


@pytest.mark.parametrize(
    ("damaged", "says"),
    [
        ("moments.zarr/groups/0/gram/c/0/0", "moments.zarr/groups/0 has digest"),
        ("statistics.zarr/groups/1/mean/c/0", "the mean in statistics.zarr/groups/1"),
        ("statistics.zarr/groups/1/covariance/c/0/0", "covariance in statistics.zarr/groups/1"),
    ],
)
def test_verify_sees_damage_in_groups(tmp_path: Path, shards: Shards, damaged: str, says: str) -> None:
    run(Job(shards=tuple(shards()), resolution=4, out=str(tmp_path / "run"), group_by=r"(\d)$", rank=0))
    folder = RunFolder(Folder(str(tmp_path / "run")))
    assert verify(folder)[1] == []
    flip_byte(tmp_path / "run" / damaged, 46)
    assert any(says in breach for breach in verify(folder)[1])


def flip_byte(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 0x40
    path.write_bytes(content)


@pytest.mark.parametrize("resolution", [16, pytest.param(32, marks=pytest.mark.slow)])
def test_real_images(tmp_path: Path, real_shards: list[str], resolution: int) -> None:
    check_real_images(tmp_path, real_shards, resolution)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_real_images_at_their_own_size(tmp_path: Path, real_shards: list[str]) -> None:
    check_real_images(tmp_path, real_shards, 64, memory="4GiB")  # so the decomposition is in float32, twice as fast


def check_real_images(tmp_path: Path, shards: list[str], resolution: int, **how: Any) -> None:
    """Hold a run against rows read by tarfile and Pillow, two passes in float64, and torch's SVD."""
    job = Job(shards=tuple(shards), resolution=resolution, out=str(tmp_path / "run"), dtype="float64", **how)
    manifest = run(job)
    assert manifest["dataset"]["used"] == 3786
    rows = read_with_pillow(shards, resolution)
    mean, covariance = two_pass(rows * (2 / 255) - 1)
    found = statistics(tmp_path / "run")
    largest = np.abs(covariance).max()
    assert np.abs(found["mean"][:] - mean).max() <= 1e-12
    assert np.abs(found["covariance"][:] - covariance).max() <= 1e-12 * largest
    _, LA, _, artifact_mean = load_wiener_filter(tmp_path / "run" / "artifacts")
    assert np.abs(artifact_mean.numpy() - mean).max() <= 1e-6
    del rows
    expected = singular_values(covariance)
    assert np.abs(LA.numpy() - expected).max() <= 1e-5 * expected[0]
    assert verify(RunFolder(Folder(str(tmp_path / "run"))))[1] == []


def singular_values(covariance: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the singular values by torch.linalg.svd up to 3,072 columns, and by its symmetric twin above (hours)."""
    matrix = torch.from_numpy(covariance)
    if len(covariance) <= 3072:
        return torch.linalg.svd(matrix).S.numpy()
    return torch.linalg.eigvalsh(matrix).flip(0).clamp(min=0).numpy()


def read_with_pillow(shards: list[str], resolution: int) -> np.ndarray[Any, Any]:
    """Return the rows of all images, read with none of our code."""
    import io
    import tarfile

    from PIL import Image

    rows = []
    for shard in shards:
        with tarfile.open(shard) as archive:
            for member in archive:
                image = Image.open(io.BytesIO(archive.extractfile(member).read())).convert("RGB")  # type: ignore[union-attr]
                image = image.resize((resolution, resolution), Image.Resampling.BILINEAR)
                rows.append(np.asarray(image).transpose(2, 0, 1).reshape(-1))
    return np.stack(rows)
