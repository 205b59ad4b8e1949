"""From shards, or from files, to the four artifacts on disk."""

import os
import shutil
import tarfile
import time
from pathlib import Path
from typing import Any

from trial import Proof, Trial

COMPARED = 8


def tilecov(
    shards: list[str], count: int, resolution: int, channels: int, folder: str, rank: int | str = "full",
    workers: int = 1, threads: int | None = None, svd: str = "auto", pinned: bool = False,
) -> Trial:  # fmt: skip
    """Run the job: shards to artifacts and certificate; ``pinned`` to a single processor."""
    import jinja2  # noqa: F401  (imports are not timed, here as in the reference)
    import numpy.ma
    import numpy.random  # noqa: F401
    import torch  # noqa: F401

    from tilecov.pipeline import Job, facts, run, spectra, stages  # noqa: F401
    from tilecov.pipeline.report import findings, tables  # noqa: F401

    if pinned:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    out = Path(folder) / f"run-{time.time_ns()}"
    how: dict[str, Any] = {"channels": channels, "rank": rank, "workers": workers, "svd": svd}
    job = Job(shards=tuple(shards), resolution=resolution, out=str(out), decode_threads=threads, **how)

    def proof(manifest: dict[str, Any]) -> Proof:
        digest = int(manifest["moments_digest"].rpartition(":")[2][:12], 16)
        shown = _shown(out / "artifacts") if rank else {"digest": [digest]}
        shutil.rmtree(out)
        return {"rows": [manifest["dataset"]["used"]], **shown}

    def detail(manifest: dict[str, Any]) -> dict[str, float]:
        return {name: stage["seconds"] for name, stage in manifest["stages"].items()}

    return Trial(count, lambda: run(job), proof, detail)


def reference(shards: list[str], count: int, resolution: int, channels: int, folder: str) -> Trial:
    """Do what the reference does: two passes of a DataLoader with two workers and Pillow, then torch.linalg.svd."""
    import torch
    from PIL import PngImagePlugin  # noqa: F401  (before workers are forked: imports are not timed)

    files = _unpack(shards, Path(folder) / "files")
    loader = torch.utils.data.DataLoader(_Pictures(files, resolution, channels), batch_size=256, num_workers=2)
    out = Path(folder) / f"reference-{time.time_ns()}"
    seconds: dict[str, float] = {}

    def work() -> int:
        size, seen, started = channels * resolution**2, 0, time.perf_counter()
        total = torch.zeros(size)
        for batch in loader:
            total += batch.flatten(1).sum(dim=0)
            seen += len(batch)
        mean, covariance = total / seen, torch.zeros((size, size))
        seconds["first pass"] = time.perf_counter() - started
        for batch in loader:
            centred = batch.flatten(1) - mean
            covariance += centred.T @ centred
        seconds["second pass"] = time.perf_counter() - started - seconds["first pass"]
        u, values, vh = torch.linalg.svd(covariance / (seen - 1))
        out.mkdir()
        for name, tensor in {"U": u, "LA": values, "Vh": vh, "mean": mean}.items():
            torch.save(tensor, out / f"{name}.pt")
        seconds["SVD and files"] = time.perf_counter() - started - seconds["first pass"] - seconds["second pass"]
        return seen

    def proof(seen: int) -> Proof:
        found = {"rows": [seen], **_shown(out)}
        shutil.rmtree(out)
        return found

    return Trial(count, work, proof, lambda _: seconds)


def _shown(folder: Path) -> Proof:
    """Return leading eigenvalues, values of the mean, and of U diag(LA) Vh times a vector, whatever the signs in U."""
    import torch

    u, values, vh, mean = (
        torch.load(folder / f"{name}.pt", weights_only=True) for name in ("U", "LA", "Vh", "mean")
    )  # fmt: skip
    ramp = torch.linspace(0, 1, len(mean))
    places = torch.linspace(0, len(mean) - 1, COMPARED).long()
    applied = u @ (values * (vh @ ramp))
    return {
        "values": values[:COMPARED].tolist(),
        "mean": mean[places].tolist(),
        "covariance times a ramp": applied[places].tolist(),
    }


class _Pictures:
    """Files as the reference's transforms make them: float32 in [-1, 1], CHW."""

    def __init__(self, files: list[Path], resolution: int, channels: int) -> None:
        self._files, self._resolution, self._mode = files, resolution, "L" if channels == 1 else "RGB"

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Any:
        import numpy as np
        import torch
        from PIL import Image

        with Image.open(self._files[index]) as picture:
            pixels = np.array(picture.convert(self._mode).resize((self._resolution,) * 2))
        values = torch.from_numpy(pixels.reshape(self._resolution, self._resolution, -1)).permute(2, 0, 1)
        return values.contiguous().float().div(255).sub_(0.5).div_(0.5)


def _unpack(shards: list[str], folder: Path) -> list[Path]:
    """Write the images as files, once; not timed."""
    if not folder.exists():
        part = folder.with_name(f"{folder.name}-part")
        for number, shard in enumerate(shards):
            with tarfile.open(shard) as archive:
                archive.extractall(part / f"{number:05d}", filter="data")
        part.rename(folder)
    return sorted(path for path in folder.rglob("*") if path.is_file())
