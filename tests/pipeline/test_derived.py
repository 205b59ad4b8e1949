"""What is derived from a run: each file against the run's own rows, by independent arithmetic."""

import gc
import hashlib
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from conftest import npy, random_images, rows_of, write_shards, write_tar

from tilecov.pipeline import Job, WienerFilter, costs, derived, load_wiener_filter, run
from tilecov.pipeline.cli import run_safely
from tilecov.pipeline.derived import derive, trace_of
from tilecov.storage.objects import Folder
from tilecov.storage.runs import RunFolder
from tilecov.storage.tiles import open_group, write_vector

Float = npt.NDArray[np.float64]
FILES = ["U.pt", "LA.pt", "Vh.pt", "mean.pt"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    """Return a folder of runs of all kinds, each with its rows beside it; tiles have 256 columns at the most."""
    root = tmp_path_factory.mktemp("runs")
    gc.freeze()  # every stage collects garbage, which takes longer than the stage with all that pytest holds
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(costs, "TILE", 256)
        patch.setattr(costs, "WHOLE", 256)
        images, small = random_images(500, 10), random_images(60, 4)
        make(root, "full", images, dtype="float64")
        make(root, "cut", images, rank=30, dtype="float64")
        make(root, "few", small[:20])
        make(root, "augmented", small, np.concatenate([small, small[:, :, ::-1]]), augment="hflip")
    values = (np.random.default_rng(0).standard_normal((90, 12)) + 3).astype(np.float32)
    np.save(root / "floats.npy", values)
    shard = write_tar(root / "floats.tar", ((f"{i}.npy", npy(row)) for i, row in enumerate(values)))
    run(Job(shards=(str(shard),), resolution=2, out=str(root / "floats")))
    gc.unfreeze()
    return root


def make(root: Path, name: str, images: npt.NDArray[np.uint8], counted: Any = None, **job: Any) -> None:
    shards = tuple(map(str, write_shards(root / f"{name}-shards", images, 2)))
    run(Job(shards=shards, resolution=images.shape[1], out=str(root / name), **job))
    np.save(root / f"{name}.npy", rows_of(images if counted is None else counted) * (2 / 255) - 1)


KINDS = ["full", "cut", "few", "augmented", "floats"]
"""full and cut have d = 300, in tiles of 256 and 44; the others are a single tile."""


def statistics(runs: Path, name: str) -> tuple[Float, Float]:
    """Return mean and covariance of the rows, by NumPy, in two passes."""
    rows = np.load(runs / f"{name}.npy").astype(np.float64)
    mean = rows.mean(axis=0)
    return mean, (rows - mean).T @ (rows - mean) / (len(rows) - 1)


def export(runs: Path, name: str, to: Path, what: Any, **options: Any) -> list[str]:
    """Export and return the names written, each checked against what was said of it."""
    files = list(derive(RunFolder(Folder(str(runs / name))), Folder(str(to)), what, **options))
    for file in files:
        content = Path(file.path).read_bytes()
        assert (file.size, file.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert not [path for path in to.iterdir() if path.name.endswith(".tmp")]
    return [Path(file.path).name for file in files]


def tensor(path: Path) -> Float:
    found = torch.load(path, weights_only=True)
    assert found.dtype == torch.float32
    return np.asarray(found.double().numpy())


# wiener


@pytest.mark.parametrize("name", ["full", "cut", "few", "floats"])
def test_the_four_files_are_copied_to_the_bit(runs: Path, tmp_path: Path, name: str) -> None:
    assert sorted(export(runs, name, tmp_path, "wiener")) == sorted(FILES)
    for file in FILES:
        assert (tmp_path / file).read_bytes() == (runs / name / "artifacts" / file).read_bytes()
    for found, wanted in zip(load_wiener_filter(tmp_path), load_wiener_filter(runs / name / "artifacts"), strict=True):
        assert torch.equal(found, wanted)


def test_to_and_from_any_url(runs: Path) -> None:
    memory = Folder("memory://derived/run")
    for path in (path for path in (runs / "few").rglob("*") if path.is_file()):
        memory.write(str(path.relative_to(runs / "few")), path.read_bytes())
    target = Folder("memory://derived/out")
    for what in ("wiener", "npz", "shrunk"):
        for file in derive(RunFolder(memory), target, what):  # type: ignore[arg-type]
            content = target.read(Path(file.path).name)
            assert (file.size, file.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert target.read("U.pt") == (runs / "few/artifacts/U.pt").read_bytes()


@pytest.mark.parametrize("damage", ["changed", "cut", "missing"])
def test_a_damaged_artifact_is_not_handed_on(runs: Path, tmp_path: Path, damage: str) -> None:
    shutil.copytree(runs / "few", tmp_path / "run")
    place = tmp_path / "run/artifacts/Vh.pt"
    content = bytearray(place.read_bytes())
    content[len(content) // 2] ^= 1
    place.unlink() if damage == "missing" else place.write_bytes(content if damage == "changed" else content[:-9])
    error = FileNotFoundError if damage == "missing" else ValueError
    with pytest.raises(error, match=r"Vh\.pt (is missing|has checksum .* says).*tilecov merge"):
        export(tmp_path, "run", tmp_path / "out", "wiener")
    assert not (tmp_path / "out/Vh.pt").exists()


# npz


@pytest.mark.parametrize("name", KINDS)
def test_npz_holds_mean_and_covariance_in_float64(runs: Path, tmp_path: Path, name: str) -> None:
    assert export(runs, name, tmp_path, "npz") == ["statistics.npz"]
    mean, covariance = statistics(runs, name)
    with np.load(tmp_path / "statistics.npz", allow_pickle=False) as found:
        assert sorted(found) == ["mu", "sigma"]
        mu, sigma = found["mu"][:], found["sigma"][:]
    assert (mu.dtype, sigma.dtype) == (np.float64, np.float64)
    loose = 2e-6 if name == "floats" else 1e-12  # products of float rows are summed from float32
    assert np.abs(mu - mean).max() <= 1e-12
    assert np.abs(sigma - covariance).max() <= loose * np.abs(covariance).max()
    assert np.array_equal(sigma, sigma.T)


def test_npz_is_not_compressed_and_does_not_depend_on_the_time(runs: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        export(runs, "few", tmp_path / name, "npz")
    assert (tmp_path / "a/statistics.npz").read_bytes() == (tmp_path / "b/statistics.npz").read_bytes()
    with zipfile.ZipFile(tmp_path / "a/statistics.npz") as archive:
        assert archive.testzip() is None
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}


# zca


@pytest.mark.parametrize("bands", [1, 1 << 30])
def test_whitened_rows_have_the_identity_for_covariance(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bands: int
) -> None:
    monkeypatch.setattr(derived, "_BAND_BYTES", bands)
    assert export(runs, "full", tmp_path, "zca") == ["W_zca.pt", "W_pca.pt", "mean.pt"]
    zca, pca, (_, S) = tensor(tmp_path / "W_zca.pt"), tensor(tmp_path / "W_pca.pt"), statistics(runs, "full")
    assert zca.shape == pca.shape == (300, 300)
    assert np.abs(zca @ S @ zca.T - np.eye(300)).max() <= 1e-4
    assert np.abs(pca @ S @ pca.T - np.eye(300)).max() <= 1e-4
    assert np.abs(zca - zca.T).max() <= 1e-6 * np.abs(zca).max()
    assert np.linalg.eigvalsh(zca)[0] > 0
    assert (tmp_path / "mean.pt").read_bytes() == (runs / "full/artifacts/mean.pt").read_bytes()


@pytest.mark.parametrize("regularization", [1e-4, 3.0])
@pytest.mark.parametrize("name", ["full", "few", "augmented", "floats"])
def test_regularised_whitening_is_the_inverse_root(
    runs: Path, tmp_path: Path, name: str, regularization: float
) -> None:
    export(runs, name, tmp_path, "zca", regularization=regularization)
    _, S = statistics(runs, name)
    values, vectors = np.linalg.eigh(S)
    wanted = vectors / np.sqrt(np.maximum(values, 0) + regularization * np.trace(S) / len(S)) @ vectors.T
    found, pca = tensor(tmp_path / "W_zca.pt"), tensor(tmp_path / "W_pca.pt")
    # An eigenvalue's error counts against what was added to it: float32 LAPACK errs by 1e-6 of the largest.
    assert np.abs(found - wanted).max() <= 1e-3 * np.abs(wanted).max()
    assert np.abs(pca.T @ pca - wanted @ wanted).max() <= 2e-3 * np.abs(wanted @ wanted).max()


def test_with_few_components_whitening_leaves_the_others_out(runs: Path, tmp_path: Path) -> None:
    export(runs, "cut", tmp_path, "zca")
    zca, pca, (_, S) = tensor(tmp_path / "W_zca.pt"), tensor(tmp_path / "W_pca.pt"), statistics(runs, "cut")
    assert (zca.shape, pca.shape) == ((300, 300), (30, 300))
    assert np.abs(pca @ S @ pca.T - np.eye(30)).max() <= 1e-4
    assert np.linalg.matrix_rank(zca, tol=1e-4 * np.abs(zca).max()) == 30


@pytest.mark.parametrize("regularization", [0.0, 1e-12])
def test_a_rank_deficient_spectrum_is_refused_with_numbers(runs: Path, tmp_path: Path, regularization: float) -> None:
    with pytest.raises(ValueError, match=r"29 of 48 eigenvalues .* to 0 and are known.* --rank 19") as caught:
        export(runs, "few", tmp_path, "zca", regularization=regularization)
    assert list(tmp_path.iterdir()) == []
    advice = float(str(caught.value).split("--regularization ")[1].split()[0])
    export(runs, "few", tmp_path, "zca", regularization=advice)
    assert np.isfinite(tensor(tmp_path / "W_zca.pt")).all()


def test_what_never_varies_cannot_be_whitened(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "few", tmp_path / "flat")
    write_vector(open_group(Folder(str(tmp_path / "flat/statistics.zarr")), writable=True), "eigenvalues", np.zeros(48))
    with pytest.raises(ValueError, match=r"largest eigenvalue of .* is 0"):
        export(tmp_path, "flat", tmp_path / "out", "zca", regularization=1.0)


@pytest.mark.parametrize("fraction", [-0.1, float("nan"), float("inf")])
def test_what_is_no_fraction_is_an_error(runs: Path, tmp_path: Path, fraction: float) -> None:
    with pytest.raises(ValueError, match="regularization"):
        export(runs, "full", tmp_path, "zca", regularization=fraction)


# shrunk


def reference(rows: Float, estimator: str) -> tuple[float, Float]:
    """Return coefficient and shrunk covariance as scikit-learn computes them from the rows."""
    x = rows - rows.mean(axis=0)
    n, d = x.shape
    S = x.T @ x / n
    trace, squares = float(np.trace(S)), float((S**2).sum())
    if estimator == "oas":
        s = min(1.0, (squares + trace**2) / ((n + 1) * (squares - trace**2 / d)))
    else:
        beta, delta = (((x**2).sum(axis=1) ** 2).sum() / n - squares) / n, squares - trace**2 / d
        s = min(beta, delta) / delta
    return s, (1 - s) * S + s * trace / d * np.eye(d)


@pytest.mark.parametrize("estimator", ["oas", "ledoit-wolf"])
@pytest.mark.parametrize("name", ["full", "few", "augmented", "floats"])
def test_a_shrunk_filter_is_that_of_scikit_learns_covariance(
    runs: Path, tmp_path: Path, name: str, estimator: Any
) -> None:
    if (name, estimator) == ("floats", "ledoit-wolf"):
        pytest.skip("float rows have no sums of norms")
    assert export(runs, name, tmp_path, "shrunk", estimator=estimator) == [*FILES, "shrinkage.json"]
    s, wanted = reference(np.load(runs / f"{name}.npy").astype(np.float64), estimator)
    facts = json.loads((tmp_path / "shrinkage.json").read_text())
    rel = 1e-6 if name == "floats" else 1e-10
    assert facts["coefficient"] == pytest.approx(s, rel=rel)
    assert facts["mu"] == pytest.approx(np.trace(wanted) / len(wanted), rel=rel)
    assert (facts["estimator"], facts["tail"]) == (estimator, None)
    U, LA, Vh, mean = (part.double().numpy() for part in load_wiener_filter(tmp_path))
    assert np.abs(U * LA @ Vh - wanted).max() <= 3e-6 * np.abs(wanted).max()
    assert (LA > 0).all()
    assert np.abs(mean - statistics(runs, name)[0]).max() <= 1e-6


def test_with_few_components_the_rest_is_isotropic(runs: Path, tmp_path: Path) -> None:
    export(runs, "cut", tmp_path, "shrunk")
    s, wanted = reference(np.load(runs / "cut.npy"), "oas")
    values = np.linalg.eigvalsh(wanted)[::-1]
    loaded = WienerFilter.load(tmp_path, tail="isotropic")
    assert loaded.tail == pytest.approx(values[30:].mean(), rel=1e-9)
    assert np.abs(loaded.LA.numpy() - values[:30]).max() <= 1e-6 * values[0]
    total = float(loaded.LA.sum(dtype=torch.float64)) + 270 * float(loaded.tail or 0)
    assert total == pytest.approx(np.trace(wanted), rel=1e-6)
    assert 0 < s < 1


def test_ledoit_wolf_says_what_is_missing(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no sums of norms .*ledoit-wolf .*--estimator oas"):
        export(runs, "floats", tmp_path, "shrunk", estimator="ledoit-wolf")
    assert list(tmp_path.iterdir()) == []


def test_a_plain_filter_after_a_shrunk_one_is_not_taken_for_it(runs: Path, tmp_path: Path) -> None:
    export(runs, "cut", tmp_path, "shrunk")
    export(runs, "cut", tmp_path, "wiener")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)


# The tail of a run


@pytest.mark.parametrize("noted", [False, True])
def test_the_tail_of_a_run_is_the_mean_of_the_cut_eigenvalues(runs: Path, tmp_path: Path, noted: bool) -> None:
    shutil.copytree(runs / "cut", tmp_path / "run")
    manifest = json.loads((tmp_path / "run/run.json").read_text())
    manifest.pop("trace", None)
    _, S = statistics(runs, "cut")
    place = RunFolder(Folder(str(tmp_path / "run")))
    place.save(manifest | {"trace": 1000.0} if noted else manifest)
    assert trace_of(place) == pytest.approx(1000.0 if noted else np.trace(S), rel=1e-12)
    cut = 1000.0 - np.linalg.eigvalsh(S)[::-1][:30].sum() if noted else np.linalg.eigvalsh(S)[:-30].sum()
    assert WienerFilter.load(tmp_path / "run", tail="isotropic").tail == pytest.approx(cut / 270, rel=1e-4)


def test_with_all_components_the_tail_changes_nothing(runs: Path, tmp_path: Path) -> None:
    export(runs, "full", tmp_path, "wiener")
    x = torch.randn(3, 300, generator=torch.Generator().manual_seed(0))
    plain = WienerFilter.load(runs / "full").denoise(x, 0.3)
    for path in (runs / "full", tmp_path):
        assert torch.equal(WienerFilter.load(path, tail="isotropic").denoise(x, 0.3), plain)


def test_a_bare_folder_does_not_know_its_tail(runs: Path, tmp_path: Path) -> None:
    export(runs, "cut", tmp_path, "wiener")
    with pytest.raises(ValueError, match=r"30 of 300 components.*tail=variance"):
        WienerFilter.load(tmp_path, tail="isotropic")


# Refused


@pytest.mark.parametrize("what", ["wiener", "zca", "shrunk"])
def test_a_run_without_a_spectrum_is_refused(runs: Path, tmp_path: Path, what: str) -> None:
    shutil.copytree(runs / "few", tmp_path / "none")
    place = RunFolder(Folder(str(tmp_path / "none")))
    manifest = place.load() or {}
    del manifest["artifacts"], manifest["certificate"]
    place.save(manifest)
    with pytest.raises(ValueError, match=r"--rank 0.*tilecov merge"):
        export(tmp_path, "none", tmp_path / "out", what)


@pytest.mark.parametrize("to", ["few", "few/artifacts", "few/new", "few/../few", "cut"])
def test_a_run_keeps_its_files(runs: Path, to: str) -> None:
    before = (runs / "few/artifacts/LA.pt").read_bytes()
    with pytest.raises(ValueError, match="lies in the folder of a run"):
        export(runs, "few", runs / to, "shrunk")
    assert (runs / "few/artifacts/LA.pt").read_bytes() == before


@pytest.mark.parametrize("state", [None, "running", "failed"])
def test_only_complete_runs_are_exported(runs: Path, tmp_path: Path, state: str | None) -> None:
    if state:
        manifest = RunFolder(Folder(str(runs / "few"))).load() or {}
        RunFolder(Folder(str(tmp_path / "run"))).save(manifest | {"state": state})
    with pytest.raises(FileNotFoundError, match="no run at" if state is None else f"{state}, not complete"):
        export(tmp_path, "run", tmp_path / "out", "npz")


# The command


def test_the_command_prints_a_line_a_file(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--to", str(tmp_path / "out")]
    for what, count in (("wiener", 4), ("npz", 1), ("zca", 3), ("shrunk", 5)):
        assert run_safely(["export", str(runs / "full"), *where, "--what", what]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == count
        for path, digest in ((line.split()[0], line.split()[-1]) for line in lines):
            assert hashlib.sha256(Path(path).read_bytes()).hexdigest() == digest
    options = ["--what", "zca", "--regularization", "0.1"]
    assert run_safely(["export", str(runs / "few"), *where, *options]) == 0
    assert run_safely(["export", str(runs / "few"), *where, "--what", "shrunk", "--estimator", "oas"]) == 0


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        (["--what", "zca"], 1, "29 of 48 eigenvalues"),
        (["--what", "wiener", "--regularization", "1"], 2, "--what zca"),
        (["--what", "zca", "--estimator", "oas"], 2, "--what shrunk"),
        (["--what", "svd"], 2, "svd"),
        ([], 2, "--what"),
    ],
)
def test_the_command_says_what_is_wrong(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], status: int, words: str
) -> None:
    assert run_safely(["export", str(runs / "few"), "--to", str(tmp_path / "out"), *options]) == status
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_no_matrix_of_d_by_d_is_held(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of a whitening band are those of a tile row where the budget allows no more."""
    monkeypatch.setattr(derived, "_BAND_BYTES", 1)
    heights: list[int] = []
    write = derived.write_tensor

    def spy(folder: Folder, name: str, shape: tuple[int, ...], slabs: Any) -> str:
        held = list(slabs)
        heights.extend(map(len, held))
        return write(folder, name, shape, held)

    monkeypatch.setattr(derived, "write_tensor", spy)
    export(runs, "full", tmp_path, "zca")
    assert heights == [256, 44, 256, 44]
