"""Spectrum to the four documented artifacts, streamed tile by tile."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from tilecov.storage.artifacts import TensorFile, write_tensor
from tilecov.storage.objects import Folder
from tilecov.storage.tiles import TileMatrix

from .costs import EXPORT_PIECE

Float = npt.NDArray[np.float32]


def write_artifacts(
    folder: Folder, values: npt.NDArray[np.float64], vectors: TileMatrix, mean: npt.NDArray[np.float64]
) -> dict[str, str]:
    """Write U.pt (d, k), LA.pt (k), Vh.pt (k, d) and mean.pt (d), float32; return their SHA-256 by name.

    No more than two tile rows of U are in memory at a time.
    """
    size, rank = vectors.shape
    return {
        "U.pt": write_tensor(folder, "U.pt", (size, rank), _bands(vectors)),
        "LA.pt": write_tensor(folder, "LA.pt", (rank,), [values.astype(np.float32)]),
        "Vh.pt": write_tensor(folder, "Vh.pt", (rank, size), _transposed_bands(vectors)),
        "mean.pt": write_tensor(folder, "mean.pt", (size,), [mean.astype(np.float32)]),
    }


def _bands(vectors: TileMatrix) -> Iterator[Float]:
    for i in range(len(vectors.rows)):
        yield vectors.read_band(i).astype(np.float32, copy=False)


def _transposed_bands(vectors: TileMatrix) -> Iterator[Float]:
    for j in range(len(vectors.columns)):
        band = np.empty((vectors.columns.width(j), vectors.shape[0]), np.float32)
        for i, rows in enumerate(vectors.rows.spans()):
            band[:, rows] = vectors.read(i, j).T
        for piece in np.array_split(band, -(-band.nbytes // EXPORT_PIECE)):
            yield piece.copy()  # a view would keep the whole band while the next one is made
        del band, piece


def read_vector_file(folder: Folder, name: str) -> Float:
    """Return the vector in a tensor file, (n,)."""
    file = TensorFile.open(folder, name)
    return np.concatenate([values for _, values in file.rows(1 << 20)] or [np.empty(0, np.float32)])


def transposes_differ(u: TensorFile, vh: TensorFile, step: int, seed: int = 0) -> float:
    """Return ``||Vh X - U^T X||_F / ||X||_F`` for seeded Gaussian X (d, 4): how far Vh is from U^T.

    For any fixed difference D, E ||D X||^2 = 4 ||D||_F^2, so a wrong entry does not hide, and both files are read once,
    in order.
    """
    size, rank = u.shape
    probe = np.random.default_rng(seed).standard_normal((size, 4))
    expected = np.zeros((rank, 4))
    for rows, slab in u.rows(step):
        expected += slab.T.astype(np.float64) @ probe[rows]
    squares = sum(
        float(np.sum((slab.astype(np.float64) @ probe - expected[rows]) ** 2)) for rows, slab in vh.rows(step)
    )
    return float(np.sqrt(squares) / np.linalg.norm(probe))
