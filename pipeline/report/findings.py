"""What a run found, read from its folder a tile at a time: what the page shows of it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from tilecov.storage.runs import STATISTICS, RunFolder
from tilecov.storage.tiles import TileMatrix, open_group, read_vector

from ..job import RANGES, Job
from .noise import Gaussian, Level
from .pictures import Look, Picture, show_diverging
from .plots import Plot, energy_plot, spectrum_plot
from .vectors import Eigenvectors

Array = npt.NDArray[Any]
Manifest = dict[str, Any]

EIGEN_IMAGES = 24
IMAGES = 6
"""Images that are shown noisy and denoised."""
_LEVELS_OF_FLOATS = 2.0  # standard deviations about the mean that are shown of rows that have no range


@dataclass(frozen=True, slots=True)
class NoiseRow:
    """A noise level as the page shows it.

    Parameters
    ----------
    level : Level
    noisy, estimates : sequence of Picture
    """

    level: Level
    noisy: Sequence[Picture]
    estimates: Sequence[Picture]


@dataclass
class Findings:
    """Pictures and plots of a run; what it has not come to, or never will, is empty."""

    moments: list[Picture] = field(default_factory=list)
    eigen: list[Picture] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
    covariance: list[Picture] = field(default_factory=list)
    pixel: tuple[int, int] = (0, 0)
    clean: list[Picture] = field(default_factory=list)
    noise: list[NoiseRow] = field(default_factory=list)
    are_drawn: bool = True


def find(run: RunFolder, manifest: Manifest, shards: Sequence[str] = ()) -> Findings:
    """Draw what the finished stages of a run have left.

    Parameters
    ----------
    run : RunFolder
    manifest : dict
    shards : sequence of str
        Where the images come from that are shown noisy and denoised; without any they are drawn from the Gaussian of
        the run's mean and spectrum.
    """
    found = Findings()
    if "statistics" not in manifest["stages"]:
        return found
    look = _Look.of(run, manifest)
    found.moments = look.moments()
    vectors = Eigenvectors(TileMatrix.open(look.group, "eigenvectors")) if "artifacts" in manifest["stages"] else None
    values = read_vector(look.group, "eigenvalues") if vectors else np.empty(0)
    columns = look.covariance_columns(values, vectors)
    if columns is not None:
        found.covariance, found.pixel = look.covariance(columns), look.pixel
    if vectors is not None and vectors.shape[1] and values[0] > 0:
        _find_spectrum(found, look, values, vectors, shards)
    return found


def _find_spectrum(found: Findings, look: "_Look", values: Array, vectors: Eigenvectors, shards: Sequence[str]) -> None:
    found.plots = [spectrum_plot(values), energy_plot(values, look.trace)]
    found.eigen = [
        look.show_signed(vector, f"eigen-image {at + 1}", f"{at + 1}: {values[at] / look.trace:.2%}")
        for at, vector in enumerate(vectors.leading(EIGEN_IMAGES))
    ]
    gaussian = Gaussian(look.mean, values, vectors, look.trace, look.half)
    found.are_drawn = not shards
    images, levels = gaussian.take(look.rows(shards)) if shards else gaussian.draw(IMAGES)
    found.clean = list(_strip(look, images, "image"))
    found.noise = [
        NoiseRow(level, list(_strip(look, level.noisy, "noisy image")), list(_strip(look, level.estimates, "estimate")))
        for level in levels
    ]


def _strip(look: "_Look", rows: Array, name: str) -> Iterator[Picture]:
    return (look.show(row, f"{name} {at + 1}") for at, row in enumerate(rows))


@dataclass(frozen=True)
class _Look(Look):
    """A run's statistics and how its rows are shown."""

    run: RunFolder
    manifest: Manifest
    group: zarr.Group
    mean: Array
    trace: float

    @classmethod
    def of(cls, run: RunFolder, manifest: Manifest) -> "_Look":
        group = open_group(run.folder(STATISTICS))
        mean = read_vector(group, "mean")
        job, trace = manifest["job"], float(manifest.get("trace", 0.0))
        shape = (job["channels"], job["resolution"], job["resolution"])
        if manifest["dataset"]["kind"] == "uint8":
            scale, low = RANGES[job["range"]]
            high = 255 * scale + low
        else:
            spread = _LEVELS_OF_FLOATS * max((trace / len(mean)) ** 0.5, float(mean.std()), 1e-30)
            low, high = float(mean.mean()) - spread, float(mean.mean()) + spread
        return cls(shape, low, high, run, manifest, group, mean, trace)

    def rows(self, shards: Sequence[str]) -> Array:
        from .taken import first_rows

        job = Job(**{**self.manifest["job"], "shards": tuple(shards)}, storage_options=dict(self.run.root.options))
        rows = first_rows(job, self.manifest["dataset"]["kind"], IMAGES)
        scale, offset = job.affine if rows.dtype == np.uint8 else (1.0, 0.0)
        return rows * np.float32(scale) + np.float32(offset)

    @property
    def pixel(self) -> tuple[int, int]:
        """Row and column of the pixel in the middle."""
        return self.shape[1] // 2, self.shape[2] // 2

    def moments(self) -> list[Picture]:
        found = [self.show(self.mean, "mean image", "mean")]
        if self._has_covariance:
            deviation = np.sqrt(np.maximum(self._diagonal(), 0))
            top = float(deviation.max()) or 1.0
            look = Look(self.shape, 0.0, top)
            found.append(look.show(deviation, "standard deviation", f"standard deviation (white: {top:.3g})"))
        return found

    @property
    def _has_covariance(self) -> bool:
        return bool(self.manifest["job"].get("covariance", True))

    @property
    def _tiles(self) -> TileMatrix:
        return TileMatrix.open(self.group, "covariance")

    def _diagonal(self) -> Array:
        tiles = self._tiles
        return np.concatenate([np.diagonal(tiles.read(i, i)).astype(np.float32) for i in range(len(tiles.rows))])

    def covariance_columns(self, values: Array, vectors: Eigenvectors | None) -> Array | None:
        """Return the covariance of the pixel's channels with everything, (d, C)."""
        row, column = self.pixel
        indices = [(channel * self.shape[1] + row) * self.shape[2] + column for channel in range(self.shape[0])]
        if not self._has_covariance:
            return None if vectors is None else vectors.times((vectors.rows(indices) * values).T.astype(np.float32))
        tiles = self._tiles
        found = np.empty((len(self.mean), len(indices)), np.float32)
        for i, span in enumerate(tiles.rows.spans()):
            for at, index in enumerate(indices):
                j, inside = divmod(index, tiles.columns.tile)
                found[span, at] = tiles.read(i, j)[:, inside]
        return found

    def covariance(self, columns: Array) -> list[Picture]:
        """Return pictures of the columns: of brightness, the mean of the channels, and of each channel by itself."""
        channels, *pixel = self.shape[0], *self.pixel
        maps = columns.reshape(channels, self.shape[1], self.shape[2], channels)
        found = [_relative(maps.mean(axis=(0, 3)), pixel, "brightness")] if channels > 1 else []
        names = ("red", "green", "blue") if channels > 1 else ("brightness",)
        return found + [_relative(maps[at, :, :, at], pixel, name) for at, name in enumerate(names)]


def _relative(plane: Array, pixel: Sequence[int], name: str) -> Picture:
    """Return a map of covariances relative to the variance of the pixel itself."""
    own = float(plane[pixel[0], pixel[1]])
    scaled = plane / own if own > 0 else np.zeros_like(plane)
    return show_diverging(scaled, f"covariance of {name} with that of one pixel", f"{name} (variance {own:.3g})")
