"""Artifacts: the four files hold the spectrum, and a wrong Vh does not go unseen."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from tilecov.pipeline.export import read_vector_file, transposes_differ, write_artifacts
from tilecov.storage.artifacts import TensorFile, write_tensor
from tilecov.storage.objects import Folder
from tilecov.storage.tiles import TileMatrix, open_group

Array = npt.NDArray[Any]

NAMES = {"U.pt", "LA.pt", "Vh.pt", "mean.pt"}
SHAPES = [(1, 1, 1), (6, 6, 6), (12, 12, 4), (10, 10, 4), (10, 3, 4), (9, 1, 2), (5, 4, 100)]
"""(d, k, tile): whole tiles and ragged ones, k < d and k = d."""


def export(folder: Path, U: Array, tile: int, seed: int = 0) -> tuple[dict[str, str], Array, Array]:
    """Write the artifacts of U by way of its tiles; return their checksums, the eigenvalues and the mean."""
    rng = np.random.default_rng(seed)
    group = open_group(Folder(str(folder / "statistics.zarr")), writable=True)
    tiles = TileMatrix.create(group, "eigenvectors", U.shape, (tile, tile), str(U.dtype))
    for i, rows in enumerate(tiles.rows.spans()):
        for j, columns in enumerate(tiles.columns.spans()):
            tiles.write(i, j, U[rows, columns])
    values, mean = np.sort(rng.random(U.shape[1]))[::-1], rng.standard_normal(len(U))
    return write_artifacts(Folder(str(folder / "artifacts")), values, tiles, mean), values, mean


def load(folder: Path, name: str, *, mmap: bool = False) -> Array:
    tensor = torch.load(folder / "artifacts" / name, weights_only=True, mmap=mmap)
    assert tensor.dtype == torch.float32
    assert tensor.is_contiguous()
    return tensor.clone().numpy()


def vectors(d: int, k: int, dtype: str = "float32") -> Array:
    return np.random.default_rng(d).standard_normal((d, k)).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("d", "k", "tile"), SHAPES)
def test_the_four_files_are_the_spectrum_in_float32(tmp_path: Path, d: int, k: int, tile: int, dtype: str) -> None:
    U = vectors(d, k, dtype)
    _, values, mean = export(tmp_path, U, tile)
    assert {path.name for path in (tmp_path / "artifacts").iterdir()} == NAMES
    for mmap in (False, True):
        assert np.array_equal(load(tmp_path, "U.pt", mmap=mmap), U.astype(np.float32))
        assert np.array_equal(load(tmp_path, "Vh.pt", mmap=mmap), U.T.astype(np.float32))
        assert np.array_equal(load(tmp_path, "LA.pt", mmap=mmap), values.astype(np.float32))
        assert np.array_equal(load(tmp_path, "mean.pt", mmap=mmap), mean.astype(np.float32))


def test_the_checksums_are_those_of_the_files(tmp_path: Path) -> None:
    checksums, *_ = export(tmp_path, vectors(10, 10), 4)
    assert checksums == {
        name: hashlib.sha256((tmp_path / "artifacts" / name).read_bytes()).hexdigest() for name in NAMES
    }


def test_equal_spectra_make_equal_files_whatever_the_tile(tmp_path: Path) -> None:
    first, *others = (export(tmp_path / str(tile), vectors(20, 13), tile)[0] for tile in (4, 7, 20, 64))
    assert all(other == first for other in others)


def test_the_files_can_be_written_again(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "artifacts"))
    export(tmp_path, vectors(6, 6), 4)
    (tmp_path / "artifacts" / "U.pt").write_bytes(b"cut")
    group = open_group(Folder(str(tmp_path / "statistics.zarr")))
    write_artifacts(folder, np.zeros(6), TileMatrix.open(group, "eigenvectors"), np.zeros(6))
    assert np.array_equal(load(tmp_path, "U.pt"), vectors(6, 6))
    assert not load(tmp_path, "LA.pt").any()


@pytest.mark.parametrize("size", [0, 1, 5, 2**20 + 3])
def test_vectors_are_read_whole(tmp_path: Path, size: int) -> None:
    folder, values = Folder(str(tmp_path)), np.arange(size, dtype=np.float32)
    write_tensor(folder, "LA.pt", (size,), [values])
    assert np.array_equal(read_vector_file(folder, "LA.pt"), values)


# Is Vh the transpose of U?


def difference(folder: Path, U: Array, Vh: Array, step: int = 7, seed: int = 0) -> float:
    target = Folder(str(folder))
    for name, values in (("U.pt", U), ("Vh.pt", Vh)):
        write_tensor(target, name, values.shape, [np.ascontiguousarray(values)])
    return transposes_differ(TensorFile.open(target, "U.pt"), TensorFile.open(target, "Vh.pt"), step, seed)


def orthonormal(d: int, k: int) -> Array:
    return np.linalg.qr(np.random.default_rng(0).standard_normal((d, d)))[0][:, :k].astype(np.float32)


@pytest.mark.parametrize("step", [1, 7, 1000])
@pytest.mark.parametrize(("d", "k"), [(1, 1), (60, 60), (60, 9)])
def test_a_transpose_does_not_differ(tmp_path: Path, d: int, k: int, step: int) -> None:
    U = orthonormal(d, k)
    assert difference(tmp_path, U, U.T, step) < 1e-14


@pytest.mark.parametrize("place", [(0, 0), (59, 8), (31, 4)])
@pytest.mark.parametrize("seed", range(3))
def test_a_single_changed_entry_is_seen(tmp_path: Path, place: tuple[int, int], seed: int) -> None:
    U = orthonormal(60, 9)
    for wrong in ("U", "Vh"):
        changed = {"U": U.copy(), "Vh": U.copy()}
        changed[wrong][place] += 1e-3
        found = difference(tmp_path, changed["U"], changed["Vh"].T, seed=seed)
        # four Gaussian probes of the one wrong entry, over the norm of all: about 1e-3 / sqrt(60), chi-distributed
        assert 1e-3 / 60**0.5 / 10 < found < 1e-3 / 60**0.5 * 10


WRONG = ["not transposed", "one sign", "columns swapped", "two entries swapped", "a slab of zeros", "not a number"]


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_transpose_is_seen(tmp_path: Path, wrong: str) -> None:
    U = orthonormal(40, 40)
    Vh = U.T.copy()
    if wrong == "not transposed":
        Vh = U.copy()
    elif wrong == "one sign":
        Vh[13] *= -1
    elif wrong == "columns swapped":
        Vh[[3, 4]] = Vh[[4, 3]]
    elif wrong == "two entries swapped":
        Vh[5, [0, 9]] = Vh[5, [9, 0]]
    elif wrong == "a slab of zeros":
        Vh[8:16] = 0
    else:
        Vh[1, 2] = np.nan
    assert not difference(tmp_path, U, Vh) <= 1e-3


def test_the_difference_is_as_large_as_the_wrong_part(tmp_path: Path) -> None:
    """On average over the probes, ||D X|| / ||X|| is ||D||_F / sqrt(d)."""
    U = orthonormal(50, 50)
    D = np.random.default_rng(1).standard_normal((50, 50)).astype(np.float32)
    found = [difference(tmp_path, U, U.T + D, seed=seed) for seed in range(5)]
    assert np.mean(found) == pytest.approx(float(np.linalg.norm(D)) / 50**0.5, rel=0.2)
