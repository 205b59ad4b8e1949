"""Rows that lie ready in memory, and the proof that a covariance of them is right."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from trial import Proof

FACTORS = 64
SPREAD = 45.0
"""Standard deviation of the factors' part of a pixel; photographs have about 60 in all."""
NOISE = 40
BLOCK = 1024
SHOWN = 8

Rows = npt.NDArray[Any]


def rows_of(count: int, size: int) -> Rows:
    """Return uint8 rows, (count, size), of 64 factors whose variances fall as 1/k, and noise."""
    rng = np.random.default_rng(0)
    strengths = 1 / np.sqrt(np.arange(1, FACTORS + 1))
    basis = rng.standard_normal((FACTORS, size), np.float32) * (strengths / np.linalg.norm(strengths))[:, None]
    rows = np.empty((count, size), np.uint8)
    for start in range(0, count, BLOCK):
        part = rows[start : start + BLOCK]
        factors = rng.standard_normal((len(part), FACTORS), np.float32) @ basis.astype(np.float32)
        part[:] = np.clip(128 + SPREAD * factors + rng.integers(-NOISE, NOISE, part.shape, np.int8), 0, 255)
    return rows


def floats_of(count: int, size: int) -> npt.NDArray[np.float32]:
    """Return the same rows as float32 in [-1, 1], as the reference loads them."""
    rows = rows_of(count, size).astype(np.float32)
    rows *= np.float32(2 / 255)
    rows -= np.float32(1)
    return rows


def proof_of(count: int, size: int, scale: float = 1.0) -> Callable[[Any], Proof]:
    """Return what shows entries of a covariance, or of ``scale`` times less: those of the first rows and columns."""
    places = np.linspace(0, size - 1, SHOWN).astype(int)

    def proof(covariance: Any) -> Proof:
        shown = [covariance[min(i, j), max(i, j)] for i in places for j in places]
        return {"rows": [count], "entries": [float(value) * scale for value in shown]}

    return proof
