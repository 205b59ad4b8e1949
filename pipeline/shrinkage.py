"""How far a sample covariance is drawn towards a multiple of the identity: Ledoit-Wolf and OAS, from sums alone."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tilecov.storage.tiling import Tiling

from .svd.direct import SymmetricTiles

Array = npt.NDArray[Any]
Tiles = Callable[[int, int], Array]
"""Returns upper tile (i, j) of the gram."""

_LIMB = 16
"""Bits of a limb of a sum. A limb times 32 bits of the gram, added up over a tile of 2**15 columns, stays in int64."""


def trace_and_squares(matrix: SymmetricTiles) -> tuple[float, float]:
    """Return the trace of a symmetric matrix and its squared Frobenius norm, in float64, from its upper tiles."""
    trace = squares = 0.0
    for i, j in matrix.tiling.upper():
        tile = matrix.read(i, j)
        trace += float(np.trace(tile, dtype=np.float64)) if i == j else 0.0
        # Not by NumPy's BLAS: its threads would turn around beside torch's for a tenth of a second.
        norm = float(torch.linalg.vector_norm(torch.from_numpy(tile), dtype=torch.float64))
        squares += norm * norm * (1 if i == j else 2)
    return trace, squares


def oas(count: int, size: int, trace: float, squares: float) -> float:
    """Return the coefficient of oracle approximating shrinkage.

    Parameters
    ----------
    count, size : int
        N and d.
    trace, squares : float
        Trace and squared Frobenius norm of the covariance; whatever it is divided by, the coefficient is the same.

    Returns
    -------
    float
        s in [0, 1], for (1 - s) S + s (trace(S) / d) I. It is 0 where d = 1.

    Notes
    -----
    Chen, Wiesel, Eldar and Hero, "Shrinkage Algorithms for MMSE Covariance Estimation" (2010), equation 23, without
    its terms 2 / d, as scikit-learn has it::

        s = min(1, (||S||^2 + trace(S)^2) / ((N + 1) (||S||^2 - trace(S)^2 / d)))
    """
    if size == 1:
        return 0.0
    deviation = squares - trace * trace / size
    # Rounding may leave a multiple of the identity slightly below 0.
    return min(1.0, (squares + trace * trace) / ((count + 1) * deviation)) if deviation > 0 else 1.0


def ledoit_wolf(count: int, size: int, trace: float, squares: float, fourth: float) -> float:
    """Return the coefficient of Ledoit and Wolf.

    Parameters
    ----------
    count, size : int
        N and d.
    trace, squares : float
        Trace and squared Frobenius norm of the covariance divided by N - 1.
    fourth : float
        ``sum ||x - mean||^4`` over the rows, in the covariance's own unit; see ``fourth_about_mean``.

    Returns
    -------
    float
        s in [0, 1], for (1 - s) S + s (trace(S) / d) I. It is 0 where d = 1 or S is a multiple of I already.

    Notes
    -----
    Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance matrices" (2004), with S divided by
    N, as scikit-learn has it::

        b^2 = (sum ||x - mean||^4 / N - ||S||^2) / N,   d^2 = ||S||^2 - trace(S)^2 / d,   s = min(b^2, d^2) / d^2
    """
    if size == 1:
        return 0.0
    biased = (count - 1) / count
    squares, trace = squares * biased**2, trace * biased
    deviation = squares - trace * trace / size
    error = max(0.0, fourth / count - squares) / count
    return min(error, deviation) / deviation if deviation > 0 else 0.0


def fourth_about_mean(tiling: Tiling, count: int, sums: Array, tiles: Tiles, fourth: Any, third: Any) -> float:
    """Return ``sum ||x - mean||^4`` over the rows, from sums about any origin.

    Parameters
    ----------
    tiling : Tiling
        How the d columns are cut.
    count : int
        Rows, N.
    sums : array
        (d,), s = sum of y, y = x - origin: int64 or float64.
    tiles : callable
        Gives upper tile (i, j) of the gram G = sum of y y^T, int64 or float64.
    fourth : int or float
        ``F = sum ||y||^4``.
    third : sequence of int or float
        (d,), ``t = sum ||y||^2 y``.

    Notes
    -----
    With Q = trace(G) the expansion of ``sum (||y||^2 - 2 m.y + ||m||^2)^2``, m = s / N, is::

        (N^3 F + 4 N s^T G s - 4 N^2 s.t + 2 N (s.s) Q - 3 (s.s)^2) / N^3

    All of it is an integer for integer sums, and is computed as one, so that only the last division rounds. Float sums
    are added in float64: the result errs by a few eps times ``sum (||y|| + ||m||)^4``, which is of its own size where
    the origin is close to the mean.

    Raises
    ------
    ValueError
        Without rows.
    """
    if count < 1:
        raise ValueError("the mean of no rows is undefined")
    form, total = _form_and_trace(tiling, sums, tiles)
    exact = sums.astype(object)
    squares, along = exact @ exact, exact @ np.asarray(third, object)
    cubed = count**3
    # Integers outgrow any fixed width here; Python's have none.
    scaled = cubed * fourth + 4 * count * (form - count * along) + squares * (2 * count * total - 3 * squares)
    return max(0.0, float(scaled / cubed))


def _form_and_trace(tiling: Tiling, sums: Array, tiles: Tiles) -> tuple[Any, Any]:
    """Return ``s^T G s`` and ``trace(G)``: Python's integers where G is int64, else floats."""
    form: Any = 0
    trace: Any = 0
    exact = sums.astype(object)
    for i, j in tiling.upper():
        tile = tiles(i, j)
        form += (1 if i == j else 2) * (exact[tiling.span(i)] @ _action(tile, sums[tiling.span(j)]))
        trace += np.trace(tile).item() if i == j else 0
    return form, trace


def _action(tile: Array, vector: Array) -> Array:
    """Return ``tile @ vector`` as an object array of Python's numbers, exact where both are int64."""
    if tile.dtype.kind != "i":
        return np.asarray((tile @ vector).astype(object))
    shifts = range(0, 64, _LIMB)
    # The arithmetic shift leaves the sign in the highest part, so that the parts add up for negative numbers too.
    limbs = np.stack([(vector >> shift) & (2**_LIMB - 1) for shift in shifts[:-1]] + [vector >> shifts[-1]], axis=1)
    halves = (tile & (2**32 - 1)) @ limbs, (tile >> 32) @ limbs
    parts = [half[:, k].astype(object) << (32 * h + shifts[k]) for h, half in enumerate(halves) for k in range(4)]
    return np.asarray(sum(parts[1:], start=parts[0]))
