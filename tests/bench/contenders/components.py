"""Rows that lie ready in memory to principal components: eigenvalues and eigenvectors of their covariance."""

from typing import Any

from trial import Trial

from .inmemory import floats_of, rows_of

BATCH = 4096
COMPARED = 8
PANELS = 1 << 30
"""Bytes that the randomized method may take."""


def tilecov(count: int, size: int, rank: int) -> Trial:
    """Sum the exact covariance, then decompose it: all of it where ``rank`` is d, else its leading part."""
    import torch

    from tilecov.pipeline.device import kernel_of
    from tilecov.pipeline.svd.direct import decompose
    from tilecov.pipeline.svd.randomized import leading
    from tilecov.pipeline.svd.ranks import Target

    from .ours import Covariance, covariance_of

    kernel_of("cpu")
    rows = torch.from_numpy(rows_of(count, size))

    def work() -> Any:
        matrix = Covariance(*covariance_of(rows, BATCH))
        if rank == size:
            return decompose(matrix, torch.float32, torch.device("cpu"))[0]
        how: dict[str, Any] = {"dtype": torch.float32, "device": torch.device("cpu"), "budget": PANELS}
        return leading(matrix, Target(rank=rank), tolerance=1e-5, **how)[0]

    return _trial(count, work)


def incremental_pca(count: int, size: int, rank: int, batch: int) -> Trial:
    """Fit scikit-learn's IncrementalPCA: leading directions without a covariance, approximately."""
    from sklearn.decomposition import IncrementalPCA

    rows = floats_of(count, size)
    return _trial(count, lambda: IncrementalPCA(rank, batch_size=batch).fit(rows).explained_variance_)


def pca(count: int, size: int) -> Trial:
    """Fit scikit-learn's PCA by the covariance's eigendecomposition."""
    from sklearn.decomposition import PCA

    rows = floats_of(count, size)
    return _trial(count, lambda: PCA(svd_solver="covariance_eigh").fit(rows).explained_variance_)


def dask_svd(count: int, size: int, rank: int, chunk: int) -> Trial:
    """Compute components by dask.array's randomized SVD of the centred rows, approximately."""
    import dask
    import dask.array as da

    rows = da.from_array(floats_of(count, size), chunks=(chunk, size))

    def work() -> Any:
        _, values, directions = da.linalg.svd_compressed(rows - rows.mean(axis=0), rank, n_power_iter=2, seed=0)
        return dask.compute(values**2 / (count - 1), directions)[0]

    return _trial(count, work)


def _trial(count: int, work: Any) -> Trial:
    return Trial(count, work, lambda values: {"rows": [count], "values": [float(v) for v in values[:COMPARED]]})
