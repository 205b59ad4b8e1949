"""Mean and covariance from moments: against exact fractions, and against two passes in float64."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from conftest import random_images, rows_of
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tilecov.pipeline.covariance import covariance_tile, mean_vector
from tilecov.pipeline.device import choose_kernel
from tilecov.pipeline.moments import Moments

Rows = npt.NDArray[np.uint8]
Integers = npt.NDArray[np.int64]

KERNEL = choose_kernel(torch.device("cpu"))
EPS = float(np.finfo(np.float64).eps)
SCALES = (1.0, 1 / 255, 2 / 255, 1e-3)

# Against exact fractions


@st.composite
def weighted_rows(draw: st.DrawFn) -> tuple[int, Integers, Integers]:
    """Return count, sum and gram of a few rows about 128, each there many times: N is large, the work is not."""
    rows = draw(hnp.arrays(np.int64, st.tuples(st.integers(2, 6), st.integers(1, 4)), elements=st.integers(-128, 127)))
    many = st.one_of(st.integers(1, 3), st.integers(1, 10**9))
    weights = np.array(draw(st.lists(many, min_size=len(rows), max_size=len(rows))))
    return int(weights.sum()), weights @ rows, (rows * weights[:, None]).T @ rows


def exact_covariance(count: int, sums: Any, gram: Any, scale: float) -> list[list[Fraction]]:
    s = [Fraction(value) for value in sums.tolist()]
    factor = Fraction(scale) ** 2 / (count - 1)
    return [
        [(Fraction(value) - s[i] * s[j] / count) * factor for j, value in enumerate(row)]
        for i, row in enumerate(gram.tolist())
    ]


def worst_error(found: npt.NDArray[np.float64], exact: list[list[Fraction]]) -> Fraction:
    pairs = zip(found.ravel().tolist(), (value for row in exact for value in row), strict=True)
    return max(abs(Fraction(value) - wanted) for value, wanted in pairs)


def largest(exact: list[list[Fraction]]) -> Fraction:
    return max(abs(value) for row in exact for value in row)


@given(weighted_rows(), st.sampled_from(SCALES))
@settings(max_examples=200)
def test_a_tile_errs_by_a_few_ulp_of_the_largest_entry(moments: tuple[int, Integers, Integers], scale: float) -> None:
    count, sums, gram = moments
    exact = exact_covariance(count, sums, gram, scale)
    found = covariance_tile(count, sums, sums, gram, scale)
    assert found.dtype == np.float64
    assert worst_error(found, exact) <= 4 * EPS * largest(exact)


@given(weighted_rows(), st.data())
@settings(max_examples=100)
def test_a_tile_off_the_diagonal_is_a_part_of_the_whole(
    moments: tuple[int, Integers, Integers], data: st.DataObject
) -> None:
    count, sums, gram = moments
    cut = data.draw(st.integers(0, len(sums)))
    top, rest = slice(0, cut), slice(cut, None)
    whole = covariance_tile(count, sums, sums, gram)
    assert np.array_equal(covariance_tile(count, sums[top], sums[rest], gram[top, rest]), whole[top, rest])
    rounded = covariance_tile(count, sums, sums, gram, dtype="float32")
    assert rounded.dtype == np.float32
    assert np.array_equal(rounded, whole.astype(np.float32))


@given(weighted_rows())
@settings(max_examples=100)
def test_no_variance_is_negative(moments: tuple[int, Integers, Integers]) -> None:
    count, sums, gram = moments
    assert covariance_tile(count, sums, sums, gram).diagonal().min() >= 0


@given(st.integers(2, 10**10), st.integers(-128, 127), st.sampled_from(SCALES))
@settings(max_examples=100)
def test_constant_columns_covary_with_nothing(count: int, value: int, scale: float) -> None:
    sums = np.array([count * value])
    assert covariance_tile(count, sums, sums, sums[:, None] * value, scale).tolist() == [[0.0]]


FLOATS = st.floats(-100, 100, width=16)  # so that no square underflows


@given(hnp.arrays(np.float64, st.tuples(st.integers(2, 5), st.integers(1, 3)), elements=FLOATS))
@settings(max_examples=100)
def test_float_moments_err_by_a_few_ulp_of_the_largest_square(rows: npt.NDArray[np.float64]) -> None:
    count, sums, gram = len(rows), rows.sum(axis=0), rows.T @ rows
    exact = exact_covariance(count, sums, gram, 1.0)
    error = worst_error(covariance_tile(count, sums, sums, gram), exact)
    assert error <= 4 * EPS * (np.abs(gram).max() + np.abs(sums).max() ** 2)


@given(
    st.integers(1, 10**10),
    st.lists(st.integers(-(10**12), 10**12), min_size=1, max_size=4),
    st.sampled_from([*SCALES, -2.0]),
    st.sampled_from([0.0, -1.0, 0.5]),
    st.booleans(),
)
@settings(max_examples=100)
def test_the_mean_errs_by_a_few_ulp(count: int, sums: list[int], scale: float, offset: float, each: bool) -> None:
    origin = np.arange(len(sums)) * 0.25 if each else 128
    found = mean_vector(count, np.array(sums), origin, scale, offset)
    assert found.dtype == np.float64
    for value, total, start in zip(found, sums, np.broadcast_to(origin, found.shape), strict=True):
        part = Fraction(total, count) + Fraction(float(start))
        size = abs(Fraction(scale)) * (abs(Fraction(total, count)) + abs(Fraction(float(start)))) + abs(
            Fraction(offset)
        )
        assert abs(Fraction(float(value)) - (Fraction(scale) * part + Fraction(offset))) <= 4 * EPS * size


def test_too_few_rows_say_so() -> None:
    one = np.zeros(1, np.int64)
    with pytest.raises(ValueError, match="no rows"):
        mean_vector(0, one, 128)
    for count in (0, 1):
        with pytest.raises(ValueError, match=rf"at least 2 rows and there are {count}"):
            covariance_tile(count, one, one, one[:, None])


# Against two passes in float64, from the rows on


def moments_of(rows: Rows) -> Moments:
    return Moments.empty(rows.shape[1], 256).update(rows, KERNEL)


def two_passes(rows: Rows, scale: float, offset: float) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    values = scale * rows.astype(np.float64) + offset
    mean = values.mean(axis=0)
    centred = values - mean
    return mean, centred.T @ centred / (len(rows) - 1)


def noise(count: int, size: int) -> Rows:
    return np.random.default_rng(0).integers(0, 256, (count, size), np.uint8)


FINALISED = {
    "noise": noise(500, 40),
    "correlated": rows_of(random_images(500, 4)),
    "bright and nearly constant": (250 + noise(3000, 40) % 3).astype(np.uint8),
    "one row differs": np.concatenate([np.full((2000, 4), 7, np.uint8), np.full((1, 4), 8, np.uint8)]),
    "two rows": noise(2, 5),
    "fewer rows than columns": noise(10, 300),
    "one column": noise(100, 1),
}


@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (1 / 255, 0.0), (2 / 255, -1.0)])
@pytest.mark.parametrize("rows", FINALISED.values(), ids=FINALISED)
def test_finalise_equals_two_passes_in_float64(rows: Rows, scale: float, offset: float) -> None:
    mean, covariance = moments_of(rows).finalise(scale, offset)
    wanted_mean, wanted = two_passes(rows, scale, offset)
    assert mean.dtype == covariance.dtype == np.float64
    assert np.abs(mean - wanted_mean).max() <= 1e-12 * max(1.0, np.abs(wanted_mean).max())
    assert np.abs(covariance - wanted).max() <= 1e-12 * np.abs(wanted).max()


def test_the_covariance_is_symmetric_to_the_bit() -> None:
    _, covariance = moments_of(FINALISED["bright and nearly constant"]).finalise(2 / 255, -1)
    assert np.array_equal(covariance, covariance.T)


def test_a_constant_column_varies_with_nothing_not_even_by_rounding() -> None:
    for count, value in ((3, 1), (7, 255), (1000, 77), (1001, 0)):
        rows = noise(count, 6)
        rows[:, 2] = value
        mean, covariance = moments_of(rows).finalise(2 / 255, -1)
        assert not covariance[2].any()
        assert not covariance[:, 2].any()
        assert math.isclose(mean[2], 2 * value / 255 - 1, rel_tol=1e-15, abs_tol=1e-15)


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_rows_have_no_covariance(count: int) -> None:
    with pytest.raises(ValueError, match="no rows" if count == 0 else r"at least 2 rows.* 1"):
        moments_of(noise(count, 3)).finalise()
