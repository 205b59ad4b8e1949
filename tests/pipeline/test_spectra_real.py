"""Every method on real images, against float64 LAPACK: eigenvalues, residual and orthogonality."""

import io
import tarfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import zarr
from conftest import REAL
from PIL import Image

from tilecov.pipeline import Job, run

Float = npt.NDArray[np.float64]

pytestmark = pytest.mark.skipif(not REAL.is_dir(), reason="the real shards are not beside this checkout")

SMALL = [16, pytest.param(32, marks=pytest.mark.slow), pytest.param(45, marks=pytest.mark.slow)]
LARGE = [pytest.param(64, marks=pytest.mark.slow)]


@cache
def centred_rows(resolution: int) -> Float:
    """Return the images as centred rows in [-1, 1], (N, d), by tarfile and Pillow alone."""
    rows = []
    for shard in sorted(REAL.glob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                if not member.name.endswith(".png"):
                    continue
                stream = tar.extractfile(member)
                assert stream is not None
                image = Image.open(io.BytesIO(stream.read())).convert("RGB")
                if image.size != (resolution, resolution):
                    image = image.resize((resolution, resolution), Image.Resampling.BILINEAR)
                rows.append(np.asarray(image).transpose(2, 0, 1).reshape(-1))
    values = 2 / 255 * np.array(rows, np.float64)
    return np.asarray(values - values.mean(axis=0))


@cache
def eigenvalues(resolution: int) -> Float:
    """Return all d eigenvalues of the covariance, descending, from the smaller of its two Gram matrices."""
    rows = centred_rows(resolution)
    count, size = rows.shape
    gram = rows @ rows.T if count < size else rows.T @ rows
    found = np.linalg.eigvalsh(gram / (count - 1))[::-1]
    return np.concatenate([found, np.zeros(size)])[:size]


def check(tmp_path: Path, resolution: int, dtype: Any, **changes: Any) -> dict[str, Any]:
    manifest = run(
        Job(shards=(f"{REAL}/*.tar",), resolution=resolution, out=str(tmp_path / "run"), dtype=dtype, **changes)
    )
    group: Any = zarr.open_group(tmp_path / "run" / "statistics.zarr", mode="r")
    values, vectors = np.asarray(group["eigenvalues"][:]), np.asarray(group["eigenvectors"][:])
    wanted = eigenvalues(resolution)[: len(values)]
    close, residual, orthogonality = (2e-6, 3e-5, 1e-5) if dtype == "float32" else (1e-12, 1e-12, 1e-12)
    assert np.abs(values - wanted).max() <= close * wanted[0]
    rows = centred_rows(resolution)
    products = rows.T @ (rows @ vectors) / (len(rows) - 1)  # S U without S
    norm = np.linalg.norm(eigenvalues(resolution))
    assert np.linalg.norm(products - vectors * values) <= residual * norm
    gram = vectors.T.astype(np.float64) @ vectors - np.eye(len(values))
    assert np.linalg.norm(gram) <= orthogonality * np.sqrt(len(values))
    assert manifest["certificate"]["residual"] <= residual + 1e-6  # of the float32 artifacts
    return manifest


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("resolution", SMALL)
@pytest.mark.parametrize("svd", ["direct", "blocked", "randomized"])
def test_full_or_leading_spectrum(tmp_path: Path, svd: Any, resolution: int, dtype: Any) -> None:
    rank: Any = 200 if svd == "randomized" else "full"
    manifest = check(tmp_path, resolution, dtype, svd=svd, rank=rank)
    assert manifest["spectrum"]["method"] == svd


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("resolution", [pytest.param(45, marks=pytest.mark.slow), *LARGE])
def test_fewer_samples_than_values(tmp_path: Path, resolution: int, dtype: Any) -> None:
    manifest = check(tmp_path, resolution, dtype, svd="dual", covariance=False)
    assert 3700 < manifest["spectrum"]["rank"] <= 3785  # some emoji are the same picture


@pytest.mark.parametrize("resolution", LARGE)
@pytest.mark.parametrize(("svd", "rank"), [("blocked", 1000), ("randomized", 512)])
def test_leading_spectrum_of_large_images(tmp_path: Path, svd: Any, rank: int, resolution: int) -> None:
    # 1 GiB, and what the rows held by this module may take.
    check(tmp_path, resolution, "float32", svd=svd, rank=rank, memory="1.5GiB")
