"""The direct method: it decomposes, and its spectrum is canonical."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tilecov.pipeline.svd.direct import assemble, decompose, settle
from tilecov.storage.tiling import Tiling

Matrix = npt.NDArray[np.float64]

CPU = torch.device("cpu")
LIMITS = {torch.float64: 1e-12, torch.float32: 2e-6}
"""What a spectrum may be off by, relative to the largest eigenvalue."""


@dataclass
class UpperTiles:
    """A symmetric matrix of which only the upper tiles can be read, as is the case for moments."""

    whole: Matrix
    tile: int

    @property
    def tiling(self) -> Tiling:
        return Tiling(len(self.whole), self.tile)

    def read(self, i: int, j: int) -> Matrix:
        assert i <= j
        return self.whole[self.tiling.span(i), self.tiling.span(j)]


def rotation(size: int, seed: int = 0) -> Matrix:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((size, size)))[0]


def with_spectrum(values: npt.ArrayLike) -> Matrix:
    found = np.asarray(values, np.float64)
    vectors = rotation(len(found))
    whole = (vectors * found) @ vectors.T
    return (whole + whole.T) / 2


def covariance(rows: int, size: int) -> Matrix:
    return np.atleast_2d(np.cov(np.random.default_rng(1).standard_normal((rows, size)).cumsum(axis=1).T))


MANY = 10**6  # rows, more than any matrix here is wide
CASES: dict[str, tuple[Matrix, int]] = {
    "one by one": (np.array([[3.0]]), MANY),
    "zero, one by one": (np.array([[0.0]]), MANY),
    "zero": (np.zeros((7, 7)), MANY),
    "identity": (np.eye(40), MANY),
    "diagonal, not in order": (np.diag([1.0, 9.0, 0.0, 4.0, 9.0]), MANY),
    "all repeated": (with_spectrum([2.0] * 30), MANY),
    "pairs": (with_spectrum(np.repeat(np.arange(20.0), 2)), MANY),
    "two levels": (with_spectrum([5.0] * 3 + [1.0] * 30), MANY),
    "like photographs": (with_spectrum(1 / np.arange(1, 301) ** 2), MANY),
    "tiny": (1e-8 * covariance(200, 50), MANY),
    "huge": (1e8 * covariance(200, 50), MANY),
    "rank one": (np.outer(np.arange(1.0, 9), np.arange(1.0, 9)), MANY),
    "full": (covariance(700, 257), 700),
    "as many rows as columns": (covariance(60, 60), 60),
    "one row more than columns": (covariance(61, 60), 61),
    "few rows": (covariance(20, 300), 20),
    "two rows": (covariance(2, 33), 2),
}

spectra = pytest.mark.parametrize("dtype", LIMITS, ids=str)
cases = pytest.mark.parametrize(("whole", "rows"), CASES.values(), ids=CASES)


def spectrum(whole: Matrix, rows: int, dtype: torch.dtype, tile: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    values, vectors = decompose(UpperTiles(whole, tile), dtype, CPU)
    assert (values.shape, vectors.shape) == ((len(whole),), whole.shape)
    assert (values.dtype, vectors.dtype) == (dtype, dtype)
    settle(values, vectors, rows)
    return values, vectors


@spectra
@cases
def test_a_spectrum_gives_the_matrix_back(whole: Matrix, rows: int, dtype: torch.dtype) -> None:
    found, U = spectrum(whole, rows, dtype)
    values, vectors = found.double().numpy(), U.double().numpy()
    limit = LIMITS[dtype] * max(np.linalg.svd(whole, compute_uv=False).max(), 1e-300)
    assert np.abs(values - np.linalg.svd(whole, compute_uv=False)).max() <= limit
    assert np.abs((vectors * values) @ vectors.T - whole).max() <= limit
    assert np.abs(vectors.T @ vectors - np.eye(len(whole))).max() <= 4 * LIMITS[dtype]


@spectra
@cases
def test_a_spectrum_is_canonical(whole: Matrix, rows: int, dtype: torch.dtype) -> None:
    values, vectors = spectrum(whole, rows, dtype)
    assert (values >= 0).all()
    assert (values.diff() <= 0).all()
    assert not values[max(0, rows - 1) :].any()
    largest = vectors.abs().argmax(dim=0, keepdim=True)
    assert (vectors.gather(0, largest) > 0).all()


@spectra
def test_a_spectrum_is_the_same_each_time_and_for_every_tile(dtype: torch.dtype) -> None:
    first, *others = (spectrum(covariance(300, 70), 300, dtype, tile) for tile in (64, 64, 1, 7, 70, 100))
    for values, vectors in others:
        assert torch.equal(values, first[0])
        assert torch.equal(vectors, first[1])


@pytest.mark.parametrize("tile", [1, 3, 10, 64])
@pytest.mark.parametrize("size", [1, 10, 23])
def test_the_matrix_is_put_together_from_its_upper_tiles(size: int, tile: int) -> None:
    whole = covariance(50, size)
    assert np.array_equal(assemble(UpperTiles(whole, tile), torch.float64).numpy(), whole)
    assert np.array_equal(assemble(UpperTiles(whole, tile), torch.float32).numpy(), whole.astype(np.float32))


def test_the_matrix_is_not_changed() -> None:
    whole = covariance(50, 40)
    kept = whole.copy()
    spectrum(whole, 50, torch.float64, tile=40)
    assert np.array_equal(whole, kept)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("place", [(0, 0), (2, 3), (5, 5)])
def test_a_matrix_that_is_not_finite_has_no_finite_spectrum(place: tuple[int, int], value: float) -> None:
    whole = covariance(50, 6)
    whole[place] = whole[place[::-1]] = value
    try:
        values, vectors = spectrum(whole, MANY, torch.float64)
    except RuntimeError:  # LAPACK did not converge
        return
    assert not (values.isfinite().all() and vectors.isfinite().all())


# Settling


def settled(values: Any, vectors: Any, rows: int = MANY) -> tuple[list[float], list[list[float]]]:
    tensors = torch.tensor(values, dtype=torch.float64), torch.tensor(vectors, dtype=torch.float64)
    settle(*tensors, rows)
    return tensors[0].tolist(), tensors[1].tolist()


@pytest.mark.parametrize(("rows", "kept"), [(0, 0), (1, 0), (2, 1), (3, 2), (4, 3), (9, 3)])
def test_no_more_eigenvalues_are_left_than_rows_can_have(rows: int, kept: int) -> None:
    assert settled([3.0, 2.0, 1.0], np.eye(3), rows)[0] == [3.0, 2.0, 1.0][:kept] + [0.0] * (3 - kept)


def test_what_rounding_made_negative_becomes_zero() -> None:
    assert settled([1.0, 1e-17, -1e-17, -1e-3], np.eye(4))[0] == [1.0, 1e-17, 0.0, 0.0]


@pytest.mark.parametrize(
    ("column", "wanted"),
    [
        ([0.1, -0.9], [-0.1, 0.9]),
        ([-0.1, 0.9], [-0.1, 0.9]),
        ([-1.0, 1.0], [1.0, -1.0]),  # equally large: the first decides
        ([1.0, -1.0], [1.0, -1.0]),
        ([0.0, -1.0], [0.0, 1.0]),
        ([-2.0, 2.0, -2.0], [2.0, -2.0, 2.0]),
    ],
)
def test_the_first_of_the_largest_components_becomes_positive(column: list[float], wanted: list[float]) -> None:
    assert settled([1.0], np.array(column)[:, None])[1] == np.array(wanted)[:, None].tolist()


@given(hnp.arrays(np.float64, st.tuples(st.integers(1, 4), st.integers(0, 6)), elements=st.integers(-3, 3)))
def test_settling_flips_whole_columns_and_settles_for_good(vectors: Matrix) -> None:
    values = np.arange(vectors.shape[1], 0, -1.0)
    once = np.array(settled(values, vectors)[1]).reshape(vectors.shape)
    for before, after in zip(vectors.T, once.T, strict=True):
        assert np.array_equal(after, before) or np.array_equal(after, -before)
        assert after[np.abs(after).argmax()] >= 0
    assert np.array_equal(np.array(settled(values, once)[1]).reshape(vectors.shape), once)


@pytest.mark.parametrize("columns", [255, 256, 257, 600])
def test_every_column_of_a_wide_spectrum_is_settled_in_place(columns: int) -> None:
    vectors = -torch.eye(600)[:, :columns]  # a view, as the leading columns of U are
    settle(torch.ones(columns), vectors, MANY)
    assert torch.equal(vectors, torch.eye(600)[:, :columns])
