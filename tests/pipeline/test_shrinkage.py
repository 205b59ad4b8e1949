"""Shrinkage coefficients: those of scikit-learn's published formulas on the raw rows, from sums alone."""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tilecov.pipeline.shrinkage import fourth_about_mean, ledoit_wolf, oas, trace_and_squares
from tilecov.storage.tiling import Tiling

Array = npt.NDArray[Any]
Float = npt.NDArray[np.float64]


# What scikit-learn does with the rows, written down anew


def reference_ledoit_wolf(rows: Array) -> float:
    x = rows.astype(np.float64) - rows.mean(axis=0, dtype=np.float64)
    n, d = x.shape
    if d == 1:
        return 0.0
    squares = x**2
    mu = squares.sum() / (n * d)
    delta_ = ((x.T @ x) ** 2).sum() / n**2
    beta = ((squares.T @ squares).sum() / n - delta_) / (d * n)
    delta = (delta_ - 2 * mu * squares.sum() / n + d * mu**2) / d
    beta = min(beta, delta)
    return 0.0 if beta == 0 else float(beta / delta)


def reference_oas(rows: Array) -> float:
    x = rows.astype(np.float64) - rows.mean(axis=0, dtype=np.float64)
    n, d = x.shape
    if d == 1:
        return 0.0
    covariance = x.T @ x / n
    alpha, mu = np.mean(covariance**2), np.trace(covariance) / d
    below = (n + 1) * (alpha - mu**2 / d)
    return 1.0 if below == 0 else float(min((alpha + mu**2) / below, 1.0))


# What tilecov does with the sums


class Whole:
    """A matrix in memory, as tiles."""

    def __init__(self, values: Array, tile: int) -> None:
        self.values, self.tiling = values, Tiling(len(values), tile)

    def read(self, i: int, j: int) -> Array:
        assert i <= j
        return self.values[self.tiling.span(i), self.tiling.span(j)]


def sums_of(rows: Array, origin: Any = 128) -> tuple[Array, Array, Any, list[Any]]:
    """Return sum, gram, fourth and third of the rows about ``origin``, as the reading pass collects them."""
    y = rows.astype(np.int64 if rows.dtype == np.uint8 else np.float64) - origin
    norms = (y * y).sum(axis=1)
    if y.dtype == np.int64:
        norms = norms.astype(object)
    return y.sum(axis=0), y.T @ y, (norms**2).sum(), list((norms[:, None] * y).sum(axis=0))


def fourth_of(rows: Array, tile: int, origin: Any = 128) -> float:
    sums, gram, fourth, third = sums_of(rows, origin)
    matrix = Whole(gram, tile)
    return fourth_about_mean(matrix.tiling, len(rows), sums, matrix.read, fourth, third)


def exact_fourth(rows: Array) -> Fraction:
    """Return sum ||x - mean||^4 by exact fractions."""
    n = len(rows)
    mean = [Fraction(sum(int(v) for v in column), n) for column in rows.T]
    return sum((sum((int(v) - m) ** 2 for v, m in zip(row, mean, strict=True)) ** 2 for row in rows), start=Fraction(0))


def coefficients(rows: Array, tile: int, origin: Any = 128, scale: float = 1.0) -> tuple[float, float]:
    """Return Ledoit-Wolf's and OAS' coefficient of scale * rows."""
    x = rows.astype(np.float64) - rows.mean(axis=0, dtype=np.float64)
    n, d = rows.shape
    trace, squares = trace_and_squares(Whole(scale**2 * (x.T @ x) / (n - 1), tile))
    fourth = fourth_of(rows, tile, origin) * scale**4
    return ledoit_wolf(n, d, trace, squares, fourth), oas(n, d, trace, squares)


def noise(count: int, size: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, size), np.uint8)


def correlated(count: int, size: int) -> npt.NDArray[np.uint8]:
    return np.asarray(0.7 * noise(count, 1) + 0.3 * noise(count, size, 1), np.uint8)


ROWS: dict[str, npt.NDArray[np.uint8]] = {
    "noise": noise(60, 20),
    "fewer rows than columns": noise(7, 40),
    "correlated": correlated(200, 30),
    "two rows": noise(2, 5),
    "one column": noise(50, 1),
    "two columns": noise(50, 2),
    "bright and nearly constant": (250 + noise(300, 25) % 3).astype(np.uint8),
    "a constant column": np.hstack([noise(50, 6), np.full((50, 1), 77, np.uint8)]),
    "one row differs": np.vstack([np.full((99, 6), 9, np.uint8), noise(1, 6)]),
}


@pytest.mark.parametrize("tile", [1, 4, 5, 100])
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_the_coefficients_are_those_of_scikit_learn(rows: npt.NDArray[np.uint8], tile: int) -> None:
    found = coefficients(rows, tile)
    assert found == pytest.approx((reference_ledoit_wolf(rows), reference_oas(rows)), rel=1e-11, abs=1e-13)
    assert all(0 <= value <= 1 for value in found)


@pytest.mark.parametrize("scale", [2 / 255, 1e-30, 1e30])
def test_the_unit_does_not_matter(scale: float) -> None:
    rows = ROWS["correlated"]
    assert coefficients(rows, 8, scale=scale) == pytest.approx(coefficients(rows, 8), rel=1e-12)


@pytest.mark.parametrize("origin", [0.0, 0.3])
def test_float_rows_about_their_approximate_mean(origin: float) -> None:
    rows = np.random.default_rng(0).standard_normal((80, 12)) * np.arange(1, 13) + 1e6
    found = coefficients(rows, 5, rows.mean(axis=0) + origin)
    assert found == pytest.approx((reference_ledoit_wolf(rows), reference_oas(rows)), rel=1e-8)


@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 6), st.integers(1, 5))), st.integers(1, 5))
@settings(max_examples=100)
def test_the_fourth_moment_is_rounded_once(rows: npt.NDArray[np.uint8], tile: int) -> None:
    """To the last bit, however much cancels."""
    assert fourth_of(rows, tile) == float(exact_fourth(rows))


def test_nothing_cancels_where_rows_hardly_differ() -> None:
    """A billion rows, all white but one: in float64, no digit of the fourth moment would be right."""
    count, size = 10**9, 7
    white, other = np.full(size, 127, np.int64), np.full(size, 126, np.int64)
    weights = (count - 1, 1)
    pairs = list(zip(weights, (white, other), strict=True))
    sums, gram = sum(w * y for w, y in pairs), sum(w * np.outer(y, y) for w, y in pairs)
    fourth = sum(w * int(y @ y) ** 2 for w, y in pairs)
    third = [sum(w * int(y @ y) * int(y[0]) for w, y in pairs)] * size
    matrix = Whole(np.asarray(gram), 3)
    found = fourth_about_mean(matrix.tiling, count, np.asarray(sums), matrix.read, fourth, third)
    away, near = Fraction(count - 1, count), Fraction(1, count)
    assert found == float((count - 1) * (size * near**2) ** 2 + (size * away**2) ** 2)


WIDE = st.integers(-(2**61), 2**61)


@given(hnp.arrays(np.int64, (3, 3), elements=WIDE), hnp.arrays(np.int64, 3, elements=WIDE), st.integers(1, 10**12))
@settings(max_examples=100)
def test_integers_of_any_size_are_exact(half: npt.NDArray[np.int64], sums: npt.NDArray[np.int64], count: int) -> None:
    """Sums and grams near the end of int64, which no dataset has, in the formula written with Python's integers."""
    gram = np.triu(half) + np.triu(half, 1).T
    s, G = sums.astype(object), gram.astype(object)
    fourth, matrix = 10**60 * count, Whole(gram, 2)
    found = fourth_about_mean(matrix.tiling, count, sums, matrix.read, fourth, sums)
    m = [Fraction(value, count) for value in s]
    M, Q = sum(v * v for v in m), sum(G[i, i] for i in range(3))
    form = sum(m[i] * m[j] * G[i, j] for i in range(3) for j in range(3))
    along = sum(a * b for a, b in zip(m, s, strict=True))
    assert found == float(max(Fraction(0), fourth + 4 * form - 4 * along + 2 * M * Q - 3 * count * M**2))


@pytest.mark.parametrize("tile", [1, 2, 3, 4, 9])
def test_trace_and_norm_are_those_of_the_matrix(tile: int) -> None:
    half = np.random.default_rng(0).standard_normal((4, 4))
    matrix = half @ half.T
    found = trace_and_squares(Whole(matrix, tile))
    assert found == pytest.approx((np.trace(matrix), np.linalg.norm(matrix) ** 2), rel=1e-14)


Estimator = Callable[..., float]


def from_matrix(S: Float, count: int) -> tuple[float, float]:
    trace, squares = trace_and_squares(Whole(S, 3))
    fourth = count * (trace**2 + 2 * squares)  # as Gaussian rows have it
    return ledoit_wolf(count, len(S), trace, squares, fourth), oas(count, len(S), trace, squares)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
def test_a_multiple_of_the_identity_is_its_own_target(size: int, scale: float) -> None:
    found = from_matrix(scale * np.eye(size), 50)
    assert all(0 <= value <= 1 for value in found)
    assert found[1] == (0.0 if size == 1 else 1.0)


def test_what_never_varies_gives_numbers_too() -> None:
    assert from_matrix(np.zeros((4, 4)), 50) == (0.0, 1.0)
    assert fourth_of(np.full((9, 4), 200, np.uint8), 3) == 0.0


def test_more_rows_need_less_shrinkage() -> None:
    S = np.diag([5.0, 2.0, 1.0, 1.0, 0.0])
    found = np.array([from_matrix(S, count) for count in (2, 10, 100, 1000, 10**6)])
    assert (np.diff(found, axis=0) <= 0).all()
    assert (found[-1] < 1e-5).all()


def test_no_rows_have_no_mean() -> None:
    matrix = Whole(np.zeros((2, 2), np.int64), 2)
    with pytest.raises(ValueError, match="no rows"):
        fourth_about_mean(matrix.tiling, 0, np.zeros(2, np.int64), matrix.read, 0, [0, 0])
