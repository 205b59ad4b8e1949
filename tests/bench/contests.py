"""The contests: who does what, with which data, in full and in a quick run."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from turns import Contest, Entry

ALONE = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
"""One thread for each product: what Dask asks for where its own threads share the cores."""
APPROXIMATE = 0.05


@dataclass(frozen=True)
class Scale:
    """Sizes of a run.

    Parameters
    ----------
    data : Path
        Where shards are made, and kept from run to run.
    quick : bool
        Tiny sizes: shows that all of it runs, and measures nothing.
    part : float
        Of the usual number of images.
    side : int
        Of the images that usually have 64.
    """

    data: Path
    quick: bool
    part: float = 1.0
    side: int = 64

    def images(self, usual: int) -> int:
        """Return the images of a table that usually has so many."""
        return max(2, round(self.part * usual))

    def shards(self, count: int, side: int, channels: int, kind: str = "png") -> list[str]:
        """Return shards of up to a thousand dead-leaves images each; made where they are not there."""
        folder = self.data / f"{kind}-{side}-{channels}-{count}"
        if not folder.exists():
            part = folder.with_name(f"{folder.name}-part")
            command = [sys.executable, "-m", "tilecov.pipeline.cli", "synth", f"{part}/x-%06d.tar", "--quiet"]
            command += ["--count", str(count), "--resolution", str(side), "--channels", str(channels)]
            subprocess.run([*command, "--format", kind, "--overwrite", "--workers", "2"], check=True)
            part.rename(folder)
        return sorted(map(str, folder.glob("*.tar")))


def repeated(shards: list[str], times: int) -> list[str]:
    """Return these shards so many times, under other names: hard links, which take no room."""
    folder = Path(shards[0]).parent / f"times-{times}"
    folder.mkdir(exist_ok=True)
    found = [folder / f"{number:03d}-{Path(shard).name}" for number in range(times) for shard in shards]
    for path, shard in zip(found, shards * times, strict=True):
        if not path.exists():
            path.hardlink_to(shard)
    return [str(path) for path in found]


def contests(scale: Scale) -> list[Contest]:
    """Return all of them, the quickest first."""
    return [
        reading(scale, "png"),
        reading(scale, "jpg"),
        components(scale, full=True),
        components(scale, full=False),
        job(scale, "job-28", 28, 1, 60_000),
        job(scale, "job-32", 32, 3, 50_000),
        workers(scale),
        covariance(scale),
        job(scale, "job-64", scale.side, 3, 15_000),
    ]


def reading(scale: Scale, kind: str) -> Contest:
    """Return the contest of reading and decoding."""
    images, times = (130, 1) if scale.quick else (scale.images(15_000), 4)
    count, side = images * times, scale.side

    def entries() -> list[Entry]:
        shards = repeated(scale.shards(images, side, 3, kind), times)
        same = {"shards": shards, "count": count}
        checked = {**same, "processes": 2, "check": True}
        return [
            Entry("tilecov, 2 decoders", "reading.tilecov", {**same, "threads": 2, "check": True}, 0),
            Entry("WebDataset, 2 processes", "reading.webdataset", checked, 0),
            Entry("WebDataset, 1 process", "reading.webdataset", {**checked, "processes": 1}, 0),
            Entry("litdata, 2 processes", "reading.litdata", {**checked, "folder": str(Path(shards[0]).parent)}, 0),
            Entry("tarfile, nothing decoded", "reading.tarfile_alone", same, 0),
        ]

    note = (
        "Local files to uint8 pixels, CHW, in batches of 64 (tilecov: blocks of 4,096, decoded by 2 threads). "
        "WebDataset: `decode`, `batched` and `WebLoader`; litdata: the same encoded images in its own format, decoded "
        f"by Pillow. Sums of each pixel over all images are equal. The {images:,} images lie there {times} times, so "
        "that starting processes does not decide."
    )
    return Contest(
        f"reading-{kind}", f"Read and decode: {count:,} {kind.upper()} of {side} x {side} x 3", note, entries
    )


def covariance(scale: Scale) -> Contest:
    """Return the contest of the covariance."""
    side, count = (8, 600) if scale.quick else (scale.side, scale.images(8_192))
    size = 3 * side**2

    def entries() -> list[Entry]:
        same = {"count": count, "size": size}
        return [
            Entry("tilecov, exact", "covariance.tilecov", same),
            Entry("reference's loop", "covariance.reference", same),
            Entry("scikit-learn-intelex", "covariance.intelex", same),
            Entry("bare syrk (SciPy)", "covariance.syrk", same),
            Entry("dask.array to Zarr", "covariance.dask_array", same, environment=ALONE),
            Entry("torchmetrics, FID sums", "covariance.torchmetrics", same),
        ]

    note = (
        "Rows lie ready in memory, uint8 for tilecov, float32 for the others, and count in the peak. tilecov: exact "
        "integer sums, finalised in float64. The reference's loop (batches of 256) and torchmetrics (float64; batches "
        "of 4,096) multiply both triangles; syrk and dask.array are given centred rows, and syrk only multiplies. "
        "scikit-learn-intelex: IncrementalEmpiricalCovariance. 64 entries of each covariance are equal to 1e-3 of the "
        "largest."
    )
    return Contest("covariance", f"Covariance: {count:,} rows in memory, d = {size:,}", note, entries, 3)


def components(scale: Scale, *, full: bool) -> Contest:
    """Return the contest of covariance and eigenvectors: all, or the leading 64."""
    side, count = (8, 600) if scale.quick else (32, scale.images(8_192))
    size = 3 * side**2
    rank = size if full else 64
    same = {"count": count, "size": size}
    ours = Entry("tilecov", "components.tilecov", {**same, "rank": rank})
    peers = [Entry("PCA(covariance_eigh)", "components.pca", same)]
    if not full:
        batch, chunk = (300, 300) if scale.quick else (512, 4096)
        ranked = {**same, "rank": rank}
        peers = [
            Entry("IncrementalPCA", "components.incremental_pca", {**ranked, "batch": batch}, APPROXIMATE),
            Entry("dask svd_compressed", "components.dask_svd", {**ranked, "chunk": chunk}, APPROXIMATE, ALONE),
        ]
    note = (
        "Rows lie ready in memory. Exact covariance, then LAPACK, against scikit-learn's `PCA`; the 8 leading "
        "eigenvalues are equal to 1e-3."
        if full
        else "Rows lie ready in memory. tilecov sums the exact covariance and takes its leading eigenpairs to a "
        "residual of 1e-5; IncrementalPCA (batches of 512) and dask.array (2 power iterations) approximate them: the 8 "
        "leading eigenvalues are equal to 5 %."
    )
    title = f"Principal components: {count:,} rows in memory, d = {size:,}, {'all' if full else f'the leading {rank}'}"
    return Contest(f"components-{'all' if full else rank}", title, note, lambda: [ours, *peers], 3)


def job(scale: Scale, name: str, side: int, channels: int, usual: int) -> Contest:
    """Return the contest of whole jobs."""
    small, images, part = (8, 300, 16) if scale.quick else (side, scale.images(usual), min(1024, channels * side**2))

    def entries() -> list[Entry]:
        shards = scale.shards(images, small, channels)
        same = {
            "shards": shards, "count": images, "resolution": small, "channels": channels,
            "folder": str(Path(shards[0]).parent),
        }  # fmt: skip
        full = Entry("tilecov, full rank", "jobs.tilecov", same)
        leading = Entry(f"tilecov, rank {part:,}", "jobs.tilecov", {**same, "rank": part}, 1e-2)
        reference = Entry("reference, full rank", "jobs.reference", same)
        return [full, *([leading] if name == "job-64" else []), reference]

    note = (
        "From shards to the four artifacts on disk; tilecov checks them too. The reference reads the same PNG as "
        "files: two passes of a DataLoader with 2 workers and Pillow, then `torch.linalg.svd`. Eigenvalues, mean, and "
        "the product of the covariance with a vector are equal to 1e-3 (rank 1,024: 1e-2)."
    )
    return Contest(name, f"Whole job: {images:,} images of {small} x {small} x {channels}", note, entries, 3)


def workers(scale: Scale) -> Contest:
    """Return the contest of two workers and one, a thread each."""
    side, images, times = (8, 300, 2) if scale.quick else (scale.side, scale.images(15_000), 32)
    count = images * times

    def entries() -> list[Entry]:
        shards = repeated(scale.shards(images, side, 3), times)
        same: dict[str, Any] = {
            "shards": shards, "count": count, "resolution": side, "channels": 3, "rank": 0,
            "folder": str(Path(shards[0]).parent),
        }  # fmt: skip
        one = {"environment": ALONE, "tolerance": 0.0}
        return [
            Entry("tilecov, 2 workers", "jobs.tilecov", {**same, "workers": 2}, **one),  # type: ignore[arg-type]
            Entry("tilecov, 1 worker", "jobs.tilecov", {**same, "threads": 1, "pinned": True}, **one),  # type: ignore[arg-type]
        ]

    note = (
        f"Shards to mean and covariance, one thread for each worker and one processor for the one, whose reader and "
        f"decoder would share two; digests are equal. The {images:,} images lie there {times} times, so that starting "
        "two processes (2 to 3 s) does not decide."
    )
    return Contest("workers", f"Two workers and one: {count:,} images of {side} x {side} x 3", note, entries, 3)
