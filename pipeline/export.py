"""Spectrum to the four documented artifacts, streamed tile by tile."""

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from tilecov.storage.artifacts import TensorFile, write_tensor
from tilecov.storage.objects import Folder
from tilecov.storage.tiles import TileMatrix, copy

from .ahead import side_by_side

Float = npt.NDArray[np.float32]


def write_artifacts(
    folder: Folder,
    values: npt.NDArray[np.float64],
    vectors: TileMatrix,
    mean: npt.NDArray[np.float64],
    *,
    flush: bool = True,
) -> dict[str, str]:
    """Write U.pt (d, k), LA.pt (k), Vh.pt (k, d) and mean.pt (d), float32; return their SHA-256 by name.

    U and Vh are written side by side; of each a band of tiles is in memory at a time. Without ``flush`` it is the
    caller who sees to it that local files reach the disk.
    """
    size, rank = vectors.shape
    files: dict[str, tuple[tuple[int, ...], Iterable[Float]]] = {
        "U.pt": ((size, rank), _bands(vectors)),  # the two large ones first, since two are written at a time
        "Vh.pt": ((rank, size), _transposed_bands(vectors)),
        "LA.pt": ((rank,), [values.astype(np.float32)]),
        "mean.pt": ((size,), [mean.astype(np.float32)]),
    }

    def write(name: str) -> str:
        shape, slabs = files[name]
        return write_tensor(folder, name, shape, slabs, flush=flush)

    found = dict(zip(files, side_by_side(write, files), strict=True))
    return {name: found[name] for name in ("U.pt", "LA.pt", "Vh.pt", "mean.pt")}


def _bands(vectors: TileMatrix) -> Iterator[Float]:
    """Yield tile rows of U, each valid until the next."""
    band = np.empty((vectors.rows.tile, vectors.shape[1]), np.float32)
    for i in range(len(vectors.rows)):
        rows = band[: vectors.rows.width(i)]
        for j, columns in enumerate(vectors.columns.spans()):
            rows[:, columns] = vectors.read(i, j)
        yield rows


def _transposed_bands(vectors: TileMatrix) -> Iterator[Float]:
    """Yield tile rows of Vh, each valid until the next."""
    band = np.empty((vectors.columns.tile, vectors.shape[0]), np.float32)
    for j in range(len(vectors.columns)):
        rows = band[: vectors.columns.width(j)]
        for i, columns in enumerate(vectors.rows.spans()):
            copy(rows[:, columns], vectors.read(i, j).T)
        yield rows


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
