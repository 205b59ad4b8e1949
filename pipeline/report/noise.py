"""Images at several noise levels, and what the filter makes of them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .vectors import Eigenvectors

Array = npt.NDArray[Any]

SIGNAL_LEVELS = (0.95, 0.7, 0.3, 0.05)
"""alpha_bar of each level: x_t = sqrt(a) x_0 + sqrt(1 - a) noise, so x_t / sqrt(a) has noise sqrt((1 - a) / a)."""


@dataclass(frozen=True, slots=True)
class Level:
    """Images at one noise level.

    Parameters
    ----------
    alpha_bar : float
    sigma : float
        Standard deviation of the noise on x_0, in units of half the range of the values.
    noisy, estimates : array
        (n, d).
    noisy_error, error : float
        Mean squared error of a value, measured on these images, in squared half ranges.
    expected : float
        What the eigenvalues say that ``error`` is on average.
    """

    alpha_bar: float
    sigma: float
    noisy: Array
    estimates: Array
    noisy_error: float
    error: float
    expected: float


@dataclass(frozen=True)
class Gaussian:
    """A run's mean and spectrum, and how its values are measured.

    Parameters
    ----------
    mean : array
        (d,).
    values : array
        (k,) eigenvalues.
    vectors : Eigenvectors
    trace : float
        Of the covariance.
    half : float
        Half the range of the values: the unit of the noise.
    """

    mean: Array
    values: Array
    vectors: Eigenvectors
    trace: float
    half: float

    def draw(self, count: int, seed: int = 0) -> tuple[Array, list[Level]]:
        """Draw ``count`` images of this mean and spectrum; return them, (count, d), and the levels."""
        size, rank = self.vectors.shape
        rng = np.random.default_rng(seed)
        weights = np.sqrt(self.values)[:, None] * rng.standard_normal((rank, count))
        noise = rng.standard_normal((size, count), np.float32)
        centred, projected = self.vectors.both(weights.astype(np.float32), noise)
        return self._levels(centred, weights, noise, projected, 0.0)

    def take(self, images: Array, seed: int = 0) -> tuple[Array, list[Level]]:
        """Return ``images`` (n, d) and the levels."""
        noise = np.random.default_rng(seed).standard_normal(images.shape[::-1], np.float32)
        centred = (images - self.mean).T.astype(np.float32)
        both = self.vectors.both(np.empty((len(self.values), 0), np.float32), np.hstack([centred, noise]))[1]
        weights, projected = np.split(both, 2, axis=1)
        return self._levels(centred, weights, noise, projected, max(0.0, self.trace - float(self.values.sum())))

    def _levels(
        self, centred: Array, weights: Array, noise: Array, projected: Array, cut: float
    ) -> tuple[Array, list[Level]]:
        """Return images and levels, ``cut`` being the variance that they have outside of the eigenvectors kept."""
        sigmas = [((1 - a) / a) ** 0.5 for a in SIGNAL_LEVELS]
        shrinks = [self.values / (self.values + (sigma * self.half) ** 2) for sigma in sigmas]
        kept = [
            shrink[:, None] * (weights + sigma * self.half * projected)
            for sigma, shrink in zip(sigmas, shrinks, strict=True)
        ]
        estimates = np.split(self.vectors.times(np.hstack(kept).astype(np.float32)), len(sigmas), axis=1)
        levels = [
            self._level(a, sigma, centred, noise, found, cut)
            for a, sigma, found in zip(SIGNAL_LEVELS, sigmas, estimates, strict=True)
        ]
        return centred.T + self.mean, levels

    def _level(self, a: float, sigma: float, centred: Array, noise: Array, found: Array, cut: float) -> Level:
        noise_variance = (sigma * self.half) ** 2
        left = float((self.values * noise_variance / (self.values + noise_variance)).sum()) + cut
        noisy = centred + np.float32(sigma * self.half) * noise
        return Level(
            a, sigma, noisy.T + self.mean, found.T + self.mean,
            noisy_error=self._error(noisy - centred), error=self._error(found - centred),
            expected=left / len(self.mean) / self.half**2,
        )  # fmt: skip

    def _error(self, difference: Array) -> float:
        return float(np.mean(np.square(difference, dtype=np.float64))) / self.half**2
