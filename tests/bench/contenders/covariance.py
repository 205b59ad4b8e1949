"""Rows that lie ready in memory to their covariance, d x d."""

import tempfile
from typing import Any

import numpy as np
from trial import Proof, Trial

from .inmemory import floats_of, proof_of, rows_of

BATCH = 4096
REFERENCE_BATCH = 256


def tilecov(count: int, size: int) -> Trial:
    """Sum exact integers of uint8 rows and finalise the upper tiles, float32."""
    import torch

    from tilecov.pipeline.device import kernel_of
    from tilecov.storage.tiling import Tiling

    from .ours import covariance_of

    kernel_of("cpu")  # the proof of the kernel is part of every job's start
    rows = torch.from_numpy(rows_of(count, size))

    def proof(tiles: dict[tuple[int, int], Any]) -> Proof:
        tiling = Tiling(size, next(iter(tiles.values())).shape[0])
        whole = np.zeros((size, size), np.float32)
        for (i, j), tile in tiles.items():
            whole[tiling.span(i), tiling.span(j)] = tile
        return proof_of(count, size)(whole)

    return Trial(count, lambda: covariance_of(rows, BATCH)[1], proof)


def reference(count: int, size: int) -> Trial:
    """Add up ``centred.T @ centred`` in batches of 256, as the reference does; the mean is known."""
    import torch

    rows = torch.from_numpy(floats_of(count, size))
    mean = rows.mean(dim=0)

    def work() -> Any:
        covariance = torch.zeros((size, size))
        for start in range(0, count, REFERENCE_BATCH):
            centred = rows[start : start + REFERENCE_BATCH] - mean
            covariance += centred.T @ centred
        return covariance.div_(count - 1)

    return Trial(count, work, proof_of(count, size))


def syrk(count: int, size: int) -> Trial:
    """Multiply one triangle by BLAS, nothing else: rows that are centred already, and no division."""
    from scipy.linalg.blas import ssyrk

    rows = floats_of(count, size)
    rows -= rows.mean(axis=0)

    def work() -> Any:
        total = np.zeros((size, size), np.float32, order="F")
        for start in range(0, count, BATCH):
            ssyrk(1.0, rows[start : start + BATCH].T, beta=1.0, c=total, overwrite_c=True)
        return total

    return Trial(count, work, proof_of(count, size, 1 / (count - 1)))


def intelex(count: int, size: int) -> Trial:
    """Fit scikit-learn-intelex' incremental covariance, which divides by N."""
    from sklearnex.covariance import IncrementalEmpiricalCovariance

    rows = floats_of(count, size)

    def work() -> Any:
        model = IncrementalEmpiricalCovariance(copy=False)
        for start in range(0, count, BATCH):
            model.partial_fit(rows[start : start + BATCH])
        return model.covariance_

    return Trial(count, work, proof_of(count, size, count / (count - 1)))


def dask_array(count: int, size: int) -> Trial:
    """Compute ``X.T @ X`` of centred rows by dask.array into Zarr, chunk by chunk."""
    import dask.array as da
    import zarr

    centred = floats_of(count, size)
    centred -= centred.mean(axis=0)
    rows = da.from_array(centred, chunks=(BATCH, min(size, 2048)))
    folder = tempfile.TemporaryDirectory()

    def work() -> str:
        path = f"{folder.name}/gram.zarr"
        (rows.T @ rows).to_zarr(path)
        return path

    return Trial(count, work, lambda path: proof_of(count, size, 1 / (count - 1))(zarr.open_array(path)[:]))


def torchmetrics(count: int, size: int) -> Trial:
    """Sum features as torchmetrics' FID does, in float64, the pixels being the features."""
    import torch
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Pixels(torch.nn.Module):
        num_features = size

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1)

    side = int((size // 3) ** 0.5)
    images = torch.from_numpy(floats_of(count, size)).reshape(count, 3, side, side)
    metric = FrechetInceptionDistance(feature=Pixels(), input_img_size=(3, side, side), normalize=False)

    def work() -> Any:
        for start in range(0, count, BATCH):
            metric.update(images[start : start + BATCH], real=True)
        return metric

    def proof(found: Any) -> Proof:
        sums = found.real_features_sum
        return proof_of(count, size, 1 / (count - 1))(found.real_features_cov_sum - torch.outer(sums, sums) / count)

    return Trial(count, work, proof)
