"""LAPACK by torch's library and by OpenBLAS: eigenvectors in the place of the matrix, whichever is called."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from tilecov.pipeline.openblas import OpenBlas
from tilecov.pipeline.svd import lapack
from tilecov.pipeline.svd.lapack import eigh_by, eigh_in_place

LIMITS = {torch.float64: 2e-14, torch.float32: 1e-5}
"""What eigenpairs may be off by, relative to the largest eigenvalue (tens of roundings)."""
STEPS = 8
"""Reflectors at a time, so few that small matrices have several times as many."""

Solve = Callable[[torch.Tensor], torch.Tensor]


@pytest.fixture(params=["torch", "OpenBLAS", "OpenBLAS, step by step"])
def solve(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Solve:
    library = None if request.param == "torch" else request.getfixturevalue("openblas")
    monkeypatch.setattr(lapack, "quicker", lambda: library)
    if "step" in request.param:
        monkeypatch.setattr(lapack, "_REFLECTORS", STEPS)
        monkeypatch.setattr(lapack, "_LEAST", 4 * STEPS)
    return eigh_in_place


def symmetric(size: int, dtype: torch.dtype) -> torch.Tensor:
    """Return a matrix with an eigenvalue that is there three times, and a few near 0."""
    random = np.random.default_rng(size)
    basis, _ = np.linalg.qr(random.standard_normal((size, size)))
    values = random.standard_normal(size).cumsum()
    values[: min(3, size)] = 2.0
    values[size - size // 5 :] *= 1e-9
    whole = torch.from_numpy((basis * values) @ basis.T)
    return ((whole + whole.T) / 2).to(dtype)


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("size", [1, 2, 3, 32, 41, 200])
def test_eigenvectors_come_in_the_place_of_the_matrix(solve: Solve, dtype: torch.dtype, size: int) -> None:
    given = symmetric(size, dtype)
    whole = given.clone().mT
    place = whole.data_ptr()
    values = solve(whole)
    assert whole.data_ptr() == place
    assert values.dtype == whole.dtype == dtype
    assert torch.equal(values, values.sort().values)
    exact, vectors, found = given.double(), whole.double(), values.double()
    limit = LIMITS[dtype] * max(1.0, float(exact.abs().max())) * size**0.5
    assert (exact @ vectors - vectors * found).abs().max() < limit
    assert (vectors.mT @ vectors - torch.eye(size)).abs().max() < limit
    assert (found - torch.linalg.eigvalsh(exact)).abs().max() < limit


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("part", [0.0, 1e-6, 1e-3, 0.5, 2.0, 1e3])
def test_matrices_far_from_one_keep_their_precision(solve: Solve, dtype: torch.dtype, part: float) -> None:
    """From numbers that are not normal any more, and have fewer digits, to the largest ones."""
    range_of = torch.finfo(dtype)
    scale = part * range_of.tiny if part < 1 else range_of.max / part / 1e6
    given = symmetric(120, dtype)
    whole = (given * scale).mT.clone(memory_format=torch.preserve_format)
    exact = whole.double() / (scale or 1.0)
    values = solve(whole)
    vectors, found = whole.double(), values.double() / (scale or 1.0)
    lost = range_of.smallest_normal * range_of.eps / scale if scale else 0.0  # what lies between two such numbers
    limit = (LIMITS[dtype] * float(exact.abs().max()) + 4 * lost) * 120**0.5
    assert (vectors.mT @ vectors - torch.eye(120)).abs().max() < LIMITS[dtype] * 120**0.5
    assert (exact @ vectors - vectors * found).abs().max() <= limit


@pytest.mark.parametrize("dtype", LIMITS)
def test_what_is_diagonal_already_has_no_reflectors(solve: Solve, dtype: torch.dtype) -> None:
    """Those that change nothing have no length."""
    given = torch.arange(100.0, 0, -1).to(dtype)
    given[40:60] = 7
    whole = torch.diag(given).mT
    values = solve(whole)
    assert torch.equal(values, given.sort().values)
    assert torch.equal(whole.abs().sum(dim=0), torch.ones(100, dtype=dtype))


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("size", [30, 300])
def test_what_is_not_finite_is_told_from_what_is(solve: Solve, dtype: torch.dtype, value: float, size: int) -> None:
    """It ends, and by an error or by numbers that no certificate lets pass."""
    whole = symmetric(size, dtype)
    whole[3, 7] = whole[7, 3] = value
    try:
        values = solve(whole.mT)
    except RuntimeError:
        return
    assert not values.isfinite().all() or not whole.isfinite().all()


def test_a_matrix_row_by_row_is_refused(openblas: OpenBlas) -> None:
    with pytest.raises(ValueError, match="column after column"):
        eigh_by(openblas, symmetric(4, torch.float64).contiguous())


@pytest.mark.parametrize("dtype", LIMITS)
def test_with_as_many_reflectors_as_are_taken(openblas: OpenBlas, dtype: torch.dtype) -> None:
    """The smallest matrix that is decomposed in steps fits into the memory that there is."""
    size = lapack._LEAST
    given = symmetric(size, dtype)
    whole = given.clone().mT
    found, vectors = eigh_by(openblas, whole).double(), whole.double()
    limit = LIMITS[dtype] * float(given.abs().max()) * size**0.5
    assert (given.double() @ vectors - vectors * found).abs().max() < limit
    assert (vectors.mT @ vectors - torch.eye(size)).abs().max() < limit
