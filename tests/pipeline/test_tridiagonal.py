"""Tridiagonal matrices: divide and conquer agrees with LAPACK, whatever the matrix and whichever columns are made."""

import io

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tilecov.pipeline.svd import tridiagonal
from tilecov.pipeline.svd.tridiagonal import NEGLIGIBLE, TridiagonalSpectrum, decompose_tridiagonal

Vector = npt.NDArray[np.float64]
Case = tuple[Vector, Vector]

LEAF = tridiagonal._LEAF
ALL = slice(None)


def dense(diagonal: Vector, off: Vector) -> Vector:
    return np.diag(diagonal) + np.diag(off, 1) + np.diag(off, -1)


def random(size: int, scale: float = 1.0, seed: int = 0) -> Case:
    rng = np.random.default_rng(seed)
    return scale * rng.standard_normal(size), scale * rng.standard_normal(size - 1)


def gaussian(size: int) -> Case:
    """Return what a random symmetric matrix is reduced to: hardly anything in it is negligible."""
    rng = np.random.default_rng(2)
    return 2**0.5 * rng.standard_normal(size), np.sqrt(rng.chisquare(np.arange(size - 1, 0, -1)))


def glued(copies: int, glue: float) -> Case:
    """Return Wilkinson's W21+, whose largest eigenvalues are pairs, many times over."""
    off = np.ones(21 * copies - 1)
    off[20::21] = glue
    return np.tile(np.abs(np.arange(21) - 10.0), copies), off


def splitting(size: int) -> Case:
    diagonal, off = random(size)
    return diagonal, off * 10.0 ** np.random.default_rng(3).integers(-20, 1, size - 1)


CASES: dict[str, Case] = {
    **{f"random {size}": random(size) for size in (1, 2, 3, LEAF - 1, LEAF, LEAF + 1, 2 * LEAF + 1, 301)},
    "gaussian": gaussian(400),
    "second difference": (np.full(333, 2.0), np.full(332, -1.0)),
    "glued": glued(16, 1e-8),
    "glued loosely": glued(16, 1e-14),
    "zero": (np.zeros(250), np.zeros(249)),
    "zero, one by one": (np.zeros(1), np.zeros(0)),
    "diagonal": (random(250)[0], np.zeros(249)),
    "repeated": (np.repeat([3.0, 1.0, 2.0], 80), np.zeros(239)),
    "no diagonal": (np.zeros(257), random(257)[1]),
    "nearly the identity": (np.ones(250), np.full(249, 1e-9)),
    "rank one twice": (np.tile([1.0, 1.0], 150), np.where(np.arange(299) % 2, 0, 1.0)),
    "graded down": (np.logspace(0, -30, 300), np.logspace(0, -30, 300)[:-1] / 2),
    "graded up": (np.logspace(-30, 0, 300), np.logspace(-30, 0, 300)[1:] / 2),
    "splitting": splitting(300),
    "like photographs": (1 / np.arange(1, 301.0) ** 2, 0.3 / np.arange(1, 300.0) ** 2),
    "tiny": random(300, 1e-150),
    "huge": random(300, 1e150),
}
cases = pytest.mark.parametrize(("diagonal", "off"), CASES.values(), ids=CASES)


def check(diagonal: Vector, off: Vector, found: TridiagonalSpectrum, dtype: torch.dtype, limit: float) -> None:
    scale = max(np.abs(diagonal).max(), np.abs(off).max(initial=0)) or 1.0
    whole, values = dense(diagonal / scale, off / scale), found.values / scale
    vectors = found.vectors(ALL, dtype)
    assert vectors.dtype == dtype
    vectors = vectors.double().numpy()
    norm = np.linalg.norm(whole, 2)
    assert (np.diff(found.values) >= 0).all()
    assert np.abs(values - torch.linalg.eigvalsh(torch.from_numpy(whole)).numpy()).max() <= 5e-14 * norm
    assert np.linalg.norm(whole @ vectors - vectors * values) <= limit * np.linalg.norm(whole)
    assert np.linalg.norm(vectors.T @ vectors - np.eye(len(whole))) <= limit * len(whole) ** 0.5


@cases
def test_agrees_with_lapack(diagonal: Vector, off: Vector) -> None:
    before = diagonal.copy(), off.copy()
    found = decompose_tridiagonal(diagonal, off)
    check(diagonal, off, found, torch.float64, 3e-14)
    check(diagonal, off, found, torch.float32, 1e-6)
    assert np.array_equal(diagonal, before[0])
    assert np.array_equal(off, before[1])


@settings(max_examples=40)
@given(st.data(), st.integers(1, 24))
def test_agrees_with_lapack_in_deep_trees(data: st.DataObject, size: int) -> None:
    # Few different numbers make for many close and repeated eigenvalues.
    numbers = st.sampled_from([0.0, 1.0, -1.0, 2.0, 1e-3, 1e-8, -1e-15, 1e-30]) | st.floats(-4, 4)
    diagonal = data.draw(hnp.arrays(np.float64, size, elements=numbers))
    off = data.draw(hnp.arrays(np.float64, size - 1, elements=numbers))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tridiagonal, "_LEAF", 2)
        check(diagonal, off, decompose_tridiagonal(diagonal, off), torch.float64, 3e-14)


@pytest.mark.parametrize("name", ["gaussian", "glued", "like photographs", "diagonal", "random 1"])
@pytest.mark.parametrize("width", [1, 7, 64, 1000])
def test_columns_are_the_same_by_slabs(name: str, width: int) -> None:
    found = decompose_tridiagonal(*CASES[name])
    whole, size = found.vectors(ALL, torch.float64), len(found.values)
    starts = range(0, size, width) if width > 1 else [0, size // 2, size - 1]
    for start in starts:
        slab = found.vectors(slice(start, start + width), torch.float64)
        assert torch.allclose(slab, whole[:, start : start + width], rtol=0, atol=1e-13)


def test_columns_are_the_same_in_small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    found = decompose_tridiagonal(*glued(16, 1e-8))
    whole = found.vectors(ALL, torch.float64)
    monkeypatch.setattr(tridiagonal, "_BLOCK", 1000)
    monkeypatch.setattr(tridiagonal, "_ROWS", 7)
    monkeypatch.setattr(tridiagonal, "_ROTATED", 3 * len(whole))
    assert torch.allclose(found.vectors(ALL, torch.float64), whole, rtol=0, atol=1e-13)


def test_descending_columns_are_the_same_backwards() -> None:
    found = decompose_tridiagonal(*random(200))
    for columns in (ALL, slice(17, 61), slice(5, 5)):
        ascending = found.vectors(columns, torch.float64)
        descending = found.vectors(columns, torch.float64, descending=True)
        assert torch.allclose(descending, ascending.flip(1), rtol=0, atol=1e-13)


def test_columns_are_counted_like_any_slice() -> None:
    found = decompose_tridiagonal(*random(200))
    assert found.vectors(slice(150, 999), torch.float32).shape == (200, 50)
    assert found.vectors(slice(-3, None), torch.float32).shape == (200, 3)
    assert found.vectors(slice(5, 5), torch.float32).shape == (200, 0)
    assert found.vectors(slice(9, 5), torch.float32).shape == (200, 0)
    with pytest.raises(ValueError, match="not for every 2"):
        found.vectors(slice(0, 8, 2), torch.float32)


@cases
def test_is_the_same_after_storing(diagonal: Vector, off: Vector) -> None:
    found = decompose_tridiagonal(diagonal, off)
    arrays = found.arrays()
    assert all(array.ndim == 1 for array in arrays.values())
    file = io.BytesIO()
    np.savez(file, **arrays)
    file.seek(0)
    again = TridiagonalSpectrum.from_arrays(dict(np.load(file)))
    assert np.array_equal(again.values, found.values)
    assert torch.equal(again.vectors(slice(0, 9), torch.float64), found.vectors(slice(0, 9), torch.float64))


def test_few_numbers_are_kept() -> None:
    size = 2000
    arrays = decompose_tridiagonal(*gaussian(size)).arrays()
    assert sum(array.size for array in arrays.values()) <= size * (LEAF + 11 * np.log2(size / LEAF) + 2)


def test_a_larger_negligible_costs_residual_and_no_orthogonality() -> None:
    diagonal, off = CASES["like photographs"]
    whole, exact, rough = dense(diagonal, off), *(decompose_tridiagonal(diagonal, off, x) for x in (NEGLIGIBLE, 1e-6))
    vectors = rough.vectors(ALL, torch.float64).numpy()
    residual = np.linalg.norm(whole @ vectors - vectors * rough.values)
    assert 1e-10 < residual <= 1e-6 * 300**0.5
    assert np.linalg.norm(vectors.T @ vectors - np.eye(300)) <= 3e-14 * 300**0.5
    assert np.abs(rough.values - exact.values).max() <= 1e-5
    assert sum(map(np.size, rough.arrays().values())) < sum(map(np.size, exact.arrays().values()))


def test_what_is_neglected_is_bounded_by_the_largest_number() -> None:
    diagonal, off = CASES["like photographs"]
    one, other = (decompose_tridiagonal(x * diagonal, x * off, 1e-7) for x in (1.0, 2.0**40))
    assert np.array_equal(other.values, 2.0**40 * one.values)


def test_float32_is_taken() -> None:
    diagonal, off = (part.astype(np.float32) for part in random(150))
    check(
        diagonal.astype(np.float64), off.astype(np.float64), decompose_tridiagonal(diagonal, off), torch.float64, 3e-14
    )


@pytest.mark.parametrize(("rows", "beside"), [(0, 0), (1, 1), (5, 5), (5, 3)])
def test_lengths_that_do_not_fit_are_refused(rows: int, beside: int) -> None:
    with pytest.raises(ValueError, match=f"not {rows}, {beside}"):
        decompose_tridiagonal(np.zeros(rows), np.zeros(beside))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 1])
def test_numbers_that_are_not_finite_are_refused(value: float, place: int) -> None:
    parts = random(150)
    parts[place][70] = value
    with pytest.raises(ValueError, match="not finite"):
        decompose_tridiagonal(*parts)
