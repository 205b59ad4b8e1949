"""The dual method as a job: fewer samples than values, with the covariance and without."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import zarr
from conftest import npy, random_images, rows_of, write_shards, write_tar

from tilecov.pipeline import Job, WienerFilter, load_wiener_filter, run
from tilecov.pipeline.cli import run_safely
from tilecov.pipeline.errors import CertificateError, DoesNotFitError, OtherJobError
from tilecov.pipeline.merge import merge
from tilecov.pipeline.verify import verify
from tilecov.storage.objects import Folder
from tilecov.storage.runs import RunFolder

Float = npt.NDArray[np.float64]
IMAGES = random_images(40, 8)  # N = 40, d = 192
ROWS = 2 / 255 * rows_of(IMAGES).astype(np.float64)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder, IMAGES, 3)
    return f"{folder}/*.tar"


def job_of(shards: str, out: Path, **changes: Any) -> Job:
    return Job(shards=(shards,), resolution=8, out=str(out), **{"svd": "dual", **changes})


def spectrum_in(path: Path) -> tuple[Float, Float]:
    group = zarr.open_group(path / "statistics.zarr", mode="r")
    return np.asarray(group["eigenvalues"][:]), np.asarray(group["eigenvectors"][:], np.float64)  # type: ignore[index]


def found_by_verify(path: Path) -> tuple[dict[str, Any], list[str]]:
    return verify(RunFolder(Folder(str(path))))


@pytest.mark.parametrize("covariance", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_agrees_with_lapack(tmp_path: Path, shards: str, dtype: Any, covariance: bool) -> None:
    manifest = run(job_of(shards, tmp_path / "run", dtype=dtype, covariance=covariance))
    values, vectors = spectrum_in(tmp_path / "run")
    matrix = np.cov(ROWS, rowvar=False)
    assert len(values) == manifest["spectrum"]["rank"] == 39
    assert np.abs(values - np.linalg.eigvalsh(matrix)[::-1][:39]).max() <= 1e-12 * values[0]
    close = 1e-6 if dtype == "float32" else 1e-12
    assert np.linalg.norm(matrix @ vectors - vectors * values) <= close * np.linalg.norm(matrix)
    assert np.linalg.norm(vectors.T @ vectors - np.eye(39)) <= close * np.sqrt(39)
    assert manifest["trace"] == pytest.approx(np.trace(matrix), rel=1e-6)
    assert manifest["certificate"]["trace"] <= 1e-6
    assert found_by_verify(tmp_path / "run")[1] == []
    assert not (tmp_path / "run" / "work").exists()
    assert load_wiener_filter(tmp_path / "run" / "artifacts")[2].shape == (39, 192)
    assert ("covariance" in zarr.open_group(tmp_path / "run" / "statistics.zarr", mode="r")) == covariance
    assert ("moments_digest" in manifest) == covariance


def test_auto_takes_it_where_there_are_far_fewer_samples(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", random_images(30, 23), 1)
    manifest = run(Job(shards=(f"{tmp_path}/shards/*.tar",), resolution=23, out=str(tmp_path / "run")))
    assert (manifest["plan"]["method"], manifest["plan"]["strategy"]) == ("dual", "staged")
    assert manifest["spectrum"]["rank"] == 29
    assert WienerFilter.load(tmp_path / "run", tail="isotropic").tail == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("rank", "wanted"), [(7, 7), ("energy=0.5", None), ("full", 39)])
def test_ranks(tmp_path: Path, shards: str, rank: Any, wanted: int | None) -> None:
    values = np.linalg.eigvalsh(np.cov(ROWS, rowvar=False))[::-1]
    half = int((values.cumsum() < 0.5 * values.sum()).sum()) + 1
    manifest = run(job_of(shards, tmp_path / "run", rank=rank, covariance=False))
    assert manifest["spectrum"]["rank"] == (wanted or half)
    assert manifest["spectrum"]["complete"] == (rank == "full")


def test_float_rows(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(5, 1, (20, 48)).astype(np.float32)
    write_tar(tmp_path / "a.tar", [(f"{i}.npy", npy(row)) for i, row in enumerate(rows)])
    job = {"shards": (str(tmp_path / "a.tar"),), "resolution": 4, "svd": "dual", "dtype": "float64"}
    run(Job(**job, out=str(tmp_path / "run"), covariance=False))
    values, vectors = spectrum_in(tmp_path / "run")
    matrix = np.cov(rows.astype(np.float64), rowvar=False)
    assert np.linalg.norm(matrix @ vectors - vectors * values) <= 1e-12 * np.linalg.norm(matrix)
    assert found_by_verify(tmp_path / "run")[1] == []


def test_what_was_not_written_is_missed_by_name(
    tmp_path: Path, shards: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run(job_of(shards, tmp_path / "run", covariance=False))
    with pytest.raises(OtherJobError, match="--no-covariance"):
        merge([str(tmp_path / "run")], str(tmp_path / "merged"))
    assert run_safely(["export", str(tmp_path / "run"), "--to", str(tmp_path / "npz"), "--what", "npz"]) == 1
    assert run_safely(["export", str(tmp_path / "run"), "--to", str(tmp_path / "w"), "--what", "wiener"]) == 0
    assert run_safely(["export", str(tmp_path / "run"), "--to", str(tmp_path / "s"), "--what", "shrunk"]) == 1
    assert capsys.readouterr().err.count("--no-covariance") == 2
    assert run_safely(["verify", str(tmp_path / "run")]) == 0


@pytest.mark.parametrize("change", [{"strategy": "resident"}, {"augment": "hflip"}, {"extend": "other"}])
def test_what_does_not_go_together_is_refused(shards: str, tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="dual method works on the rows of one run"):
        job_of(shards, tmp_path / "run", **change)
    with pytest.raises(ValueError, match="without the covariance"):
        job_of(shards, tmp_path / "run", svd="direct", covariance=False)


def test_more_samples_than_memory_was_kept_for(tmp_path: Path, shards: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tilecov.pipeline.spectra.dual_bytes", lambda rows, size, rank: rows * 10**12)
    with pytest.raises(DoesNotFitError, match=r"40 samples, 39 were estimated.*--samples 40"):
        run(job_of(shards, tmp_path / "run", samples=39))


def test_a_crash_before_the_end_goes_on_with_the_rows(
    tmp_path: Path, shards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tilecov.pipeline.certificate.RESIDUAL_LIMIT", 0.0)
    with pytest.raises(CertificateError, match="residual"):
        run(job_of(shards, tmp_path / "run", covariance=False))
    assert json.loads((tmp_path / "run" / "run.json").read_text())["state"] == "failed"
    monkeypatch.undo()
    run(job_of(shards, tmp_path / "run", covariance=False))
    assert found_by_verify(tmp_path / "run")[1] == []


def test_verify_finds_eigenvectors_that_were_changed(tmp_path: Path, shards: str) -> None:
    run(job_of(shards, tmp_path / "run", covariance=False))
    path = tmp_path / "run" / "artifacts" / "U.pt"
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 4] = np.float32(9).tobytes()
    path.write_bytes(data)
    found = found_by_verify(tmp_path / "run")[1]
    assert any("checksum" in breach for breach in found)
    assert any("orthogonality" in breach for breach in found)
