"""Every method as a job: against LAPACK in float64, resumed after a crash at each write, by any number of workers."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import zarr
from conftest import random_images, rows_of, write_shards

from tilecov.pipeline import Job, WienerFilter, certificate, run, spectra
from tilecov.pipeline.cli import run_safely
from tilecov.pipeline.errors import CertificateError, DoesNotFitError
from tilecov.pipeline.merge import merge
from tilecov.pipeline.observer import Observer
from tilecov.pipeline.verify import verify
from tilecov.storage.objects import Folder
from tilecov.storage.runs import RunFolder

Float = npt.NDArray[np.float64]
IMAGES = random_images(150, 6)
SIZE = 108
METHODS = {
    "direct": {},
    "blocked": {},
    "randomized": {"rank": 30},
    "all by randomized": {"svd": "randomized", "rank": SIZE},
}


def job_of(shards: Path, out: Path, name: str, **changes: Any) -> Job:
    return Job(shards=(f"{shards}/*.tar",), resolution=6, out=str(out), **{"svd": name, **METHODS[name], **changes})


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder, IMAGES, 3)
    return folder


def spectrum_in(path: Path) -> tuple[Float, Float]:
    group = zarr.open_group(path / "statistics.zarr", mode="r")
    return np.asarray(group["eigenvalues"][:]), np.asarray(group["eigenvectors"][:], np.float64)  # type: ignore[index]


def covariance() -> Float:
    return np.cov(2 / 255 * rows_of(IMAGES).astype(np.float64), rowvar=False)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_agrees_with_lapack(tmp_path: Path, shards: Path, name: str, dtype: Any) -> None:
    manifest = run(job_of(shards, tmp_path / "run", name, dtype=dtype))
    values, vectors = spectrum_in(tmp_path / "run")
    matrix = covariance()
    wanted = np.linalg.eigvalsh(matrix)[::-1][: len(values)]
    close, residual, orthogonality = (2e-6, 3e-5, 1e-5) if dtype == "float32" else (1e-12, 1e-12, 1e-12)
    assert np.abs(values - wanted).max() <= close * wanted[0]
    assert np.linalg.norm(matrix @ vectors - vectors * values) <= residual * np.linalg.norm(matrix)
    gram = vectors.T @ vectors - np.eye(len(values))
    assert np.linalg.norm(gram) <= orthogonality * np.sqrt(len(values))
    assert (vectors[np.abs(vectors).argmax(axis=0), np.arange(len(values))] > 0).all()
    assert manifest["spectrum"]["method"] == manifest["plan"]["method"] == METHODS[name].get("svd", name)
    assert manifest["spectrum"]["rank"] == len(values) == METHODS[name].get("rank", SIZE)
    assert manifest["trace"] == pytest.approx(np.trace(matrix), rel=1e-6)
    assert verify(RunFolder(Folder(str(tmp_path / "run"))))[1] == []


def test_some_eigenvectors_of_the_blocked_method(tmp_path: Path, shards: Path) -> None:
    run(job_of(shards, tmp_path / "all", "blocked"))
    run(job_of(shards, tmp_path / "some", "blocked", rank=17))
    values, vectors = spectrum_in(tmp_path / "all")
    some, leading = spectrum_in(tmp_path / "some")
    assert np.array_equal(some, values[:17])
    assert np.abs(leading - vectors[:, :17]).max() <= 1e-5


@pytest.mark.parametrize(
    ("rank", "least"),
    [("energy=0.9", lambda values: int((values.cumsum() < 0.9 * values.sum()).sum()) + 1),
     ("noise=0.5", lambda values: int((values > 0.25).sum()))],
)  # fmt: skip
def test_the_spectrum_decides_the_rank(tmp_path: Path, shards: Path, rank: str, least: Any) -> None:
    manifest = run(job_of(shards, tmp_path / "run", "randomized", rank=rank))
    wanted = least(np.linalg.eigvalsh(covariance())[::-1])
    assert 0 < wanted < SIZE
    assert manifest["spectrum"]["rank"] == wanted
    assert (manifest["spectrum"]["denoising"] is not None) == rank.startswith("noise")
    assert WienerFilter.load(tmp_path / "run").U.shape == (SIZE, wanted)


def test_what_falls_short_in_float32_is_decomposed_again_in_float64(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit that LAPACK in float32 cannot keep, and in float64 keeps: the run ends well, and says what it did."""
    write_shards(tmp_path / "shards", random_images(1800, 23), 2)  # d = 1,587: from 1,536 on float32 is chosen
    monkeypatch.setattr(certificate, "RESIDUAL_LIMIT", 1e-6)
    job = {"shards": (f"{tmp_path}/shards/*.tar",), "resolution": 23, "svd": "direct", "out": str(tmp_path / "run")}
    notes: list[str] = []
    observer = Observer()
    monkeypatch.setattr(observer, "note", notes.append)
    manifest = run(Job(**job), observer)
    assert (manifest["plan"]["precision"], manifest["spectrum"]["precision"]) == ("float32", "float64")
    assert (manifest["state"], list(manifest["stages"])[-1]) == ("complete", "certificate")
    assert manifest["certificate"]["residual"] < 1e-6
    assert any("residual is" in note and "again in float64" in note for note in notes)
    assert verify(RunFolder(Folder(str(tmp_path / "run"))))[1] == []
    monkeypatch.setattr(spectra, "lapack_bytes", lambda size, width: 1 << 50)
    with pytest.raises(CertificateError, match="residual is"):  # where there is no memory for it
        run(Job(**{**job, "out": str(tmp_path / "tight")}))


@pytest.mark.slow
def test_workers_make_the_slabs_together(tmp_path: Path, shards: Path) -> None:
    images = random_images(40, 23)  # d = 1,587 is two tile columns
    write_shards(tmp_path / "shards", images, 2)
    job = {"shards": (f"{tmp_path}/shards/*.tar",), "resolution": 23, "svd": "blocked"}
    run(Job(**job, out=str(tmp_path / "one")))
    run(Job(**job, out=str(tmp_path / "two"), workers=2))
    for one, two in zip(spectrum_in(tmp_path / "one"), spectrum_in(tmp_path / "two"), strict=True):
        assert np.abs(one - two).max() <= 1e-5


class Crash(BaseException):
    """Stops a run where it stands, as kill -9 would: nothing catches it."""


@pytest.mark.parametrize("name", [pytest.param("blocked", marks=pytest.mark.slow), "randomized"])
def test_a_crash_at_every_write_of_the_spectrum(
    tmp_path: Path, shards: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The n-th write of the stages that decompose stops the run; then the same job goes on, to the same bits."""
    monkeypatch.setattr("tilecov.pipeline.spectra.CHECKPOINT_SECONDS", -1.0)
    monkeypatch.setattr("tilecov.pipeline.methods.WIDTH", 8)
    run(job_of(shards, tmp_path / "whole", name))
    wanted = spectrum_in(tmp_path / "whole")
    count, crashes = 0, 0
    stages = {"band", "tridiagonal", "vectors", "spectrum"}

    def crashing(write: Any) -> Any:
        def written(folder: RunFolder, stage: str, task: str, record: Any) -> Any:
            nonlocal count
            found = write(folder, stage, task, record)
            if stage in stages:
                count += 1
                raise Crash
            return found

        return written

    for way in ("commit", "renew"):
        monkeypatch.setattr(RunFolder, way, crashing(getattr(RunFolder, way)))
    while True:
        try:
            run(job_of(shards, tmp_path / "run", name))
        except Crash:
            crashes += 1
            continue
        break
    assert crashes == count >= 3
    for found, value in zip(spectrum_in(tmp_path / "run"), wanted, strict=True):
        assert np.array_equal(found, value)
    assert not (tmp_path / "run" / "work").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "rank"), [("direct", "1000"), ("blocked", "1000"), ("randomized", "1000"), ("dual", "full")]
)
def test_kill_9_in_the_middle(tmp_path: Path, name: str, rank: str) -> None:
    """A real process, killed while it decomposes, d = 1,728; the same command ends with the same bits."""
    write_shards(tmp_path / "shards", random_images(300, 24), 2)
    command = [sys.executable, "-m", "tilecov.pipeline.cli", "run", f"{tmp_path}/shards/*.tar", "--resolution", "24"]
    command += ["--svd", name, "--rank", rank]
    subprocess.run([*command, "--out", str(tmp_path / "whole")], check=True, capture_output=True)
    kills = 0
    for delay in (0.2, 0.7, 1.5):
        process = subprocess.Popen([*command, "--out", str(tmp_path / "run")], stderr=subprocess.DEVNULL)
        while process.poll() is None:
            manifest = tmp_path / "run" / "run.json"
            if manifest.exists() and "statistics" in json.loads(manifest.read_text())["stages"]:
                time.sleep(delay)
                break
            time.sleep(0.02)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
    subprocess.run([*command, "--out", str(tmp_path / "run")], check=True, capture_output=True)
    assert kills
    for found, value in zip(spectrum_in(tmp_path / "run"), spectrum_in(tmp_path / "whole"), strict=True):
        assert np.array_equal(found, value)


def test_what_cannot_be_is_refused(tmp_path: Path, shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["run", f"{shards}/*.tar", "--resolution", "6", "--out", str(tmp_path / "run")]
    assert run_safely([*command, "--rank", "energy=2"]) == 2
    assert "energy=E with 0 < E <= 1" in capsys.readouterr().err
    assert run_safely([*command, "--svd", "dual"]) == 1
    assert "fewer samples" in capsys.readouterr().err
    with pytest.raises(DoesNotFitError, match="direct"):
        run(job_of(shards, tmp_path / "run", "direct", memory="200MiB"))
    assert not (tmp_path / "run" / "run.json").exists()


def test_another_spectrum_of_the_same_moments(tmp_path: Path, shards: Path) -> None:
    run(job_of(shards, tmp_path / "run", "direct"))
    manifest = merge(
        [str(tmp_path / "run")], str(tmp_path / "cut"), changes={"svd": "randomized", "rank": "energy=0.8"}
    )
    assert manifest["plan"]["method"] == "randomized"
    assert 0 < manifest["spectrum"]["rank"] < SIZE
