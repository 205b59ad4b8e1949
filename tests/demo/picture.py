"""Draws what a run found: mean image, leading eigen-images, spectrum, and one noisy image beside its Wiener estimate.

Usage: picture.py RUN SHARD PICTURE.png
"""

import json
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch

from tilecov.pipeline import WienerFilter
from tilecov.pipeline.images import decode
from tilecov.pipeline.shards import Sample, samples

mpl.use("Agg")
from matplotlib import pyplot as plt

EIGEN_IMAGES = 8
ALPHA_BAR = 0.7  # noise of variance 0.3 on a signal scaled by the root of 0.7
CHOSEN = 3  # which sample of the shard is made noisy


def main(run: str, shard: str, picture: str) -> None:
    """Draw ``picture`` and name it on the last line."""
    manifest = json.loads((Path(run) / "run.json").read_text(encoding="utf-8"))
    shape = (manifest["job"]["channels"], *(manifest["job"]["resolution"],) * 2)
    wiener = WienerFilter.load(run)
    figure, axes = plt.subplots(3, 4, figsize=(11, 8.6), layout="constrained")
    figure.suptitle(
        f"{manifest['dataset']['used']:,} images of {shape[1]} x {shape[2]}, d = {len(wiener.mean):,}; "
        f"residual {manifest['certificate']['residual']:.1e}"
    )
    show(axes[0, 0], wiener.mean, shape, "mean")
    for index in range(EIGEN_IMAGES - 1):
        axis = axes.flat[index + 1]
        vector = wiener.U[:, index]
        show(axis, vector / vector.abs().max(), shape, f"eigen-image {index + 1}")
    draw_spectrum(axes[2, 0], wiener.LA)
    clean = torch.from_numpy(first_image(shard, CHOSEN, shape)).to(torch.float32) * 2 / 255 - 1
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    noisy = ALPHA_BAR**0.5 * clean + (1 - ALPHA_BAR) ** 0.5 * noise
    estimate = wiener.denoise(noisy, ALPHA_BAR)
    show(axes[2, 1], clean, shape, "an image")
    show(axes[2, 2], noisy / ALPHA_BAR**0.5, shape, f"noisy, mse {error(noisy / ALPHA_BAR**0.5, clean):.3f}")
    show(axes[2, 3], estimate, shape, f"Wiener estimate, mse {error(estimate, clean):.3f}")
    figure.savefig(picture, dpi=100)
    sys.stdout.write(f"picture: {picture}\n")


def show(axis: Any, row: torch.Tensor, shape: tuple[int, ...], title: str) -> None:
    """Show a row of values in [-1, 1] as an image."""
    image = ((row.reshape(shape).permute(1, 2, 0) + 1) / 2).clamp(0, 1).numpy()
    axis.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axis.set_title(title, fontsize=10)
    axis.axis("off")


def draw_spectrum(axis: Any, values: torch.Tensor) -> None:
    """Draw the eigenvalues against their rank, both logarithmic."""
    positive = values[values > 0].numpy()
    axis.loglog(np.arange(1, len(positive) + 1), positive, color="tab:blue")
    axis.set_title("eigenvalues", fontsize=10)
    axis.set_xlabel("rank")
    axis.grid(visible=True, alpha=0.3)


def first_image(shard: str, index: int, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Return the CHW row of sample ``index`` of ``shard``, uint8."""
    with Path(shard).open("rb") as stream:
        found = (item for item in samples(stream, ("png",), max_bytes=1 << 28) if isinstance(item, Sample))
        sample = next(islice(found, index, None))
        return decode(sample.data, shape[0]).transpose(2, 0, 1).reshape(-1).copy()


def error(left: torch.Tensor, right: torch.Tensor) -> float:
    """Return the mean squared error."""
    return float(((left - right) ** 2).mean())


if __name__ == "__main__":
    main(*sys.argv[1:])
