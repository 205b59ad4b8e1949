"""The dual method: the gram of rows is exact, and its spectrum is the covariance's down to what is numerically zero."""

from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from rowsets import MemoryRows

from tilecov.pipeline.svd import dual
from tilecov.pipeline.svd.direct import settle

Array = npt.NDArray[Any]

CPU = torch.device("cpu")
EPS = float(np.finfo(np.float64).eps)
LIMIT = 1e-13
"""Of residual and orthogonality; measured at most 1e-14, whatever the condition."""


def noise(count: int, size: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (count, size), dtype=np.uint8)


def graded(values: npt.ArrayLike, size: int = 300, scale: float = 1.0) -> Array:
    """Return float rows, one more than values, whose covariance has these eigenvalues."""
    rng, wanted = np.random.default_rng(0), np.asarray(values, np.float64)
    count = len(wanted) + 1
    left = np.linalg.qr(np.c_[np.ones(count), rng.standard_normal((count, count - 1))])[0][:, 1:]
    right = np.linalg.qr(rng.standard_normal((size, count - 1)))[0]
    return scale * (left * np.sqrt(wanted * (count - 1))) @ right.T


def covariance(rows: MemoryRows) -> Array:
    """Return S in float64; uint8 rows are centred as N x - sum(x), in integers."""
    if rows.exact:
        whole = rows.whole.astype(np.int64)
        centred = (rows.count * whole - whole.sum(axis=0)) / rows.count
    else:
        centred = rows.whole - rows.whole.mean(axis=0, dtype=np.float64)
    return rows.scale**2 * centred.T @ centred / (rows.count - 1)


def decomposed(rows: MemoryRows, rank: int | None = None) -> tuple[dual.Spectrum, Array]:
    spectrum = dual.decompose(dual.gram(rows, CPU), rows.scale, rank)
    spans, blocks = zip(*dual.vectors(rows, spectrum, CPU), strict=True)
    assert list(spans) == list(rows.tiling.spans())
    return spectrum, torch.cat(blocks).numpy()


def assert_decomposes(rows: MemoryRows, rank: int | None = None) -> tuple[dual.Spectrum, Array]:
    """Hold a spectrum against S and against LAPACK's eigenvalues of it."""
    S = covariance(rows)
    spectrum, U = decomposed(rows, rank)
    LA, norm = spectrum.values.numpy(), max(np.linalg.norm(S), 1e-300)
    k = len(LA)
    assert U.shape == (rows.tiling.size, k)
    assert U.dtype == LA.dtype == np.float64
    assert k <= max(1, rows.count - 1)
    assert (np.diff(LA) <= 0).all()
    assert np.linalg.norm(U.T @ U - np.eye(k)) / np.sqrt(k) < LIMIT
    assert np.linalg.norm(S @ U - U * LA) / norm < LIMIT
    true = np.linalg.eigvalsh(S)[::-1]
    assert np.abs(true[:k] - LA).max() < LIMIT * norm
    assert spectrum.trace == pytest.approx(np.trace(S), rel=1e-12)
    assert spectrum.frobenius == pytest.approx(np.linalg.norm(S), rel=1e-12)
    if spectrum.complete:
        assert LA.sum() == pytest.approx(spectrum.trace, rel=1e-12)
        assert np.abs(true[k:]).max(initial=0) <= rows.count * 2 * EPS * norm
    return spectrum, U


# The gram


def exact_gram(whole: Array) -> list[list[Fraction]]:
    """Return Yc Yc^T in rational numbers."""
    count = len(whole)
    scaled = count * whole.astype(object) - whole.sum(axis=0, dtype=np.int64).astype(object)
    return [[Fraction(value, count**2) for value in row] for row in (scaled @ scaled.T).tolist()]


@pytest.mark.parametrize("count", [2, 3, 7, 24])
@pytest.mark.parametrize(("size", "tile"), [(1, 1), (15, 16), (16, 16), (17, 16), (40, 16), (5, 100)])
def test_the_gram_is_rounded_once(count: int, size: int, tile: int) -> None:
    whole = noise(count, size)
    found = dual.gram(MemoryRows(whole, tile), CPU).tolist()
    for found_row, exact_row in zip(found, exact_gram(whole), strict=True):
        for value, exact in zip(found_row, exact_row, strict=True):
            assert abs(Fraction(value) - exact) <= EPS * max(abs(exact), 2)


def test_the_gram_is_exact_at_both_ends_of_the_range() -> None:
    """All products are 2^14: a float32 sum over a whole tile of 1,536 columns would pass 2^24."""
    whole = np.zeros((4, 4001), np.uint8)
    whole[1::2, 1:] = 255
    whole[2, ::3] = 254
    found = dual.gram(MemoryRows(whole, 1536), CPU).numpy()
    assert np.array_equal(found, np.array(exact_gram(whole), float))


def test_the_bits_of_the_gram_do_not_depend_on_the_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = noise(45, 3000)
    found = [dual.gram(MemoryRows(whole, tile), CPU) for tile in (1536, 1000, 256)]
    monkeypatch.setattr(dual, "_BAND", 16)
    found.append(dual.gram(MemoryRows(whole, 1024), CPU))
    assert all(torch.equal(found[0], other) for other in found)
    assert torch.equal(found[0], found[0].T)


def test_float_rows_far_from_zero_keep_their_gram() -> None:
    rng = np.random.default_rng(3)
    near = rng.standard_normal((20, 50))
    far = near + 1e6
    centred = far - far.mean(axis=0)
    found = dual.gram(MemoryRows(far), CPU).numpy()
    assert np.abs(found - centred @ centred.T).max() < 1e-8  # what rounding of 1e6 does to a mean
    assert np.abs(found.sum(axis=0)).max() < 1e-12


def test_float32_rows_are_centred_in_float64() -> None:
    whole = (np.random.default_rng(3).standard_normal((9, 20)) + 1000).astype(np.float32)
    wide = whole.astype(np.float64)
    assert torch.equal(dual.gram(MemoryRows(whole), CPU), dual.gram(MemoryRows(wide), CPU))


@pytest.mark.parametrize("count", [0, 1])
def test_one_row_has_no_covariance(count: int) -> None:
    with pytest.raises(ValueError, match=f"at least 2 rows and there are {count}"):
        dual.gram(MemoryRows(noise(count, 5)), CPU)


# The spectrum


@pytest.mark.parametrize("count", [2, 3, 15, 40])
@pytest.mark.parametrize(("size", "tile"), [(1, 1), (2, 16), (15, 16), (16, 16), (17, 16), (100, 16), (90, 1000)])
def test_the_spectrum_is_that_of_the_covariance(count: int, size: int, tile: int) -> None:
    spectrum, _ = assert_decomposes(MemoryRows(noise(count, size), tile, 2 / 255))
    assert spectrum.complete
    assert len(spectrum.values) == min(count - 1, size)


@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12)), st.integers(1, 13))
@settings(max_examples=60)
def test_any_rows_have_a_spectrum(whole: Array, tile: int) -> None:
    assert_decomposes(MemoryRows(np.concatenate([whole, whole[:1]]), tile))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_float_rows_have_one_too(dtype: npt.DTypeLike) -> None:
    walk = np.random.default_rng(1).standard_normal((50, 130)).cumsum(axis=1)
    assert_decomposes(MemoryRows(walk.astype(dtype), 32))


def test_more_rows_and_columns_than_a_band(monkeypatch: pytest.MonkeyPatch) -> None:
    walk = np.random.default_rng(1).standard_normal((60, 200)).cumsum(axis=1)
    rows = MemoryRows((255 * (walk - walk.min()) / np.ptp(walk)).astype(np.uint8), 64)
    _, U = assert_decomposes(rows)
    monkeypatch.setattr(dual, "_BAND", 7)
    _, again = assert_decomposes(rows)
    assert np.abs(U - again).max() < 1e-9  # as far as eigenvalues are apart


CASES: dict[str, tuple[Array, int]] = {
    "identity": (graded(np.ones(30)), 30),
    "two eigenvalues": (graded([5.0] * 10 + [1.0] * 10), 20),
    "condition 1e6": (graded(np.logspace(0, -6, 80)), 80),
    "condition 1e10": (graded(np.logspace(0, -10, 80)), 80),
    "condition 1e13": (graded(np.logspace(0, -13, 80)), 80),
    "one huge, the others 1e-10": (graded([1.0] + [1e-10] * 50), 51),
    "some below what counts": (graded(np.logspace(0, -24, 41)), 24),
    "tiny": (graded(np.logspace(0, -10, 40), scale=1e-30), 40),
    "huge": (graded(np.logspace(0, -10, 40), scale=1e30), 40),
    "rank one": (graded([3.0, *np.zeros(20)]), 1),
    "diagonal": (np.diag(np.arange(1.0, 21)), 19),
    "duplicates": (np.concatenate([noise(30, 200)] * 2), 29),
    "one image twice": (noise(30, 200)[[0, *range(30)]], 29),
    "two alike but for one pixel": (np.concatenate([noise(30, 200), noise(30, 200)[:1] ^ (np.arange(200) == 7)]), 30),
    "two rows": (noise(2, 200), 1),
    "one pixel varies": (np.where(np.arange(200) == 5, noise(20, 1), np.uint8(255)), 1),
}


@pytest.mark.parametrize(("whole", "rank"), CASES.values(), ids=CASES)
def test_no_spectrum_is_too_hard(whole: Array, rank: int) -> None:
    spectrum, _ = assert_decomposes(MemoryRows(whole, 64))
    assert len(spectrum.values) == rank
    assert spectrum.complete


@pytest.mark.parametrize("value", [0, 7, 128, 255])
def test_a_constant_set_keeps_one_eigenvalue_of_zero(value: int) -> None:
    spectrum, U = assert_decomposes(MemoryRows(np.full((9, 40), value, np.uint8)))
    assert spectrum.values.tolist() == [0.0]
    assert spectrum.complete
    assert np.array_equal(U, np.eye(40)[:, :1])


@pytest.mark.parametrize("rank", [1, 2, 24, 49, 50, 1000])
def test_a_rank_keeps_the_largest(rank: int) -> None:
    rows = MemoryRows(noise(50, 120))
    whole, U = decomposed(rows)
    spectrum, part = assert_decomposes(rows, rank)
    kept = min(rank, 49)
    assert torch.equal(spectrum.values, whole.values[:kept])
    assert np.abs(part - U[:, :kept]).max() < 1e-13
    assert spectrum.complete == (rank >= 49)
    assert (spectrum.trace, spectrum.frobenius) == (whole.trace, whole.frobenius)


def test_a_rank_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="the rank is 0"):
        dual.decompose(torch.eye(3, dtype=torch.float64), rank=0)


def test_what_is_not_finite_does_not_converge() -> None:
    with pytest.raises(RuntimeError):
        dual.decompose(torch.full((3, 3), torch.nan, dtype=torch.float64))


# The columns


def test_the_largest_component_is_positive_as_the_direct_method_has_it() -> None:
    _, U = decomposed(MemoryRows(noise(30, 100)))
    settled = torch.tensor(U)
    settle(torch.ones(29, dtype=torch.float64), settled, 30)
    assert np.array_equal(U, settled.numpy())


def test_columns_that_need_it_are_corrected_and_others_only_turned() -> None:
    rows = MemoryRows(graded([1.0] * 5 + [1e-9] * 20), 64)
    spectrum = dual.decompose(dual.gram(rows, CPU))
    raw = torch.cat([block for _, block in dual.columns(rows, spectrum, CPU)])
    off = (raw.T @ raw - torch.eye(25)).abs()
    assert off[:5, :5].max() < 1e-14
    assert off.max() > 1e-11
    check = dual.Check(25, CPU)
    for part in raw.split(64):
        check.add(part)
    remedy = check.remedy()
    assert remedy.first == 5
    fixed = remedy.apply(raw.clone())
    assert torch.equal(fixed[:, :5].abs(), raw[:, :5].abs())
    assert (fixed.T @ fixed - torch.eye(25)).abs().max() < 1e-14
    _, U = decomposed(rows)
    assert np.array_equal(U, fixed.numpy())  # stored columns or new ones


def test_columns_that_are_not_independent_are_refused() -> None:
    check = dual.Check(2, CPU)
    check.add(torch.ones((4, 2), dtype=torch.float64))
    with pytest.raises(RuntimeError):
        check.remedy()
