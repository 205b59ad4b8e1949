"""Moments into mean and covariance: pure functions of tiles."""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Float = npt.NDArray[np.float64]

STRIP = 1 << 16
"""Entries of a tile that are finalised at a time, so that what is made on the way stays in a core's cache."""


def mean_vector(count: int, sums: Array, origin: Array | int, scale: float = 1.0, offset: float = 0.0) -> Float:
    """Return the mean (d,) of scale * x + offset, in float64.

    Parameters
    ----------
    count : int
        Rows, N.
    sums : array
        (d,), the sum of x - origin.
    origin : array or int
        What was subtracted.
    scale, offset : float
        The value range, e.g. 2/255 and -1.
    """
    if count < 1:
        raise ValueError("the mean of no rows is undefined")
    return np.asarray(scale * (sums / count + origin) + offset, np.float64)


def shift_of_tile(count: int, sums: Array, shift: Array, rows: slice, columns: slice) -> Array:
    """Return what a tile of the gram gains where its origin o moves to o - e: ``s e^T + e s^T + N e e^T``.

    Parameters
    ----------
    count : int
        Rows of data, N.
    sums, shift : array
        (d,) s about the old origin, and e.
    rows, columns : slice
        Of the tile.
    """
    cross = np.multiply.outer(sums[rows], shift[columns]) + np.multiply.outer(shift[rows], sums[columns])
    return np.asarray(cross + count * np.multiply.outer(shift[rows], shift[columns]))


def covariance_tile(
    count: int, rows: Array, columns: Array, gram: Array, scale: float = 1.0, dtype: str = "float64"
) -> Array:
    """Return a tile of the covariance (G - s s^T / N) / (N - 1), times scale squared, computed in float64.

    Parameters
    ----------
    count : int
        Rows of data, N.
    rows, columns : array
        (a,) and (b,): the parts of the sum s that belong to the tile.
    gram : array
        (a, b), the tile of G.
    dtype : str
        float64, or float32: what the result is rounded to.

    Notes
    -----
    Integer moments are first moved, in exact integers, to the origin m = round(s / N): G - m s^T - s m^T + N m m^T and
    r = s - N m with |r| <= N / 2. What is left to subtract in float64 is then at most N / 4, so nothing cancels, and a
    constant column gets exact zeros.

    Raises
    ------
    ValueError
        With fewer than two rows, where the covariance is undefined.
    """
    if count < 2:
        raise ValueError(f"the covariance needs at least 2 rows and there are {count}; add shards")
    found, step = np.empty(gram.shape, dtype), max(1, STRIP // max(1, gram.shape[1]))
    for start in range(0, len(gram), step):
        strip = slice(start, start + step)
        found[strip] = _centred(count, rows[strip], columns, gram[strip]) * (scale * scale / (count - 1))
    return found


def _centred(count: int, rows: Array, columns: Array, gram: Array) -> Array:
    """Return G - s s^T / N of a part of a tile."""
    if gram.dtype.kind != "i":
        return np.asarray(gram - np.multiply.outer(rows, columns) / count)
    shift_rows, shift_columns = (_nearest(part, count) for part in (rows, columns))
    rest_rows, rest_columns = rows - count * shift_rows, columns - count * shift_columns
    moved = gram - np.multiply.outer(shift_rows, columns) - np.multiply.outer(rest_rows, shift_columns)
    return np.asarray(moved - np.multiply.outer(rest_rows.astype(np.float64), rest_columns.astype(np.float64)) / count)


def _nearest(sums: Array, count: int) -> Array:
    """Return round(sums / count) in integers."""
    return (2 * sums + count) // (2 * count)
