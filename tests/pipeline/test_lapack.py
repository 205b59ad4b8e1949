"""LAPACK by torch's library and by NumPy's: eigenvectors in the place of the matrix, whichever is called."""

import ctypes
import platform
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tilecov.pipeline.svd import lapack
from tilecov.pipeline.svd.lapack import Library, eigh_in_place, mkl_is_slow, numpys

LIMITS = {torch.float64: 2e-14, torch.float32: 1e-5}
"""What eigenpairs may be off by, relative to the largest eigenvalue (tens of roundings)."""

Solve = Callable[[torch.Tensor], torch.Tensor]


def test_the_lapack_of_numpy_can_be_reached() -> None:
    """Else MKL's is used everywhere: this is where that would be seen, with the wheels from PyPI."""
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]["name"]  # type: ignore[call-overload]
    assert numpys() is not None or blas != "scipy-openblas"


@pytest.fixture(params=["torch", "numpy"])
def solve(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Solve:
    library = numpys()
    if request.param == "numpy" and library is None:
        pytest.skip("NumPy is linked with no OpenBLAS that can be reached")
    monkeypatch.setattr(lapack, "mkl_is_slow", lambda: request.param == "numpy")
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
@pytest.mark.parametrize("size", [1, 2, 3, 26, 200])
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


def test_a_matrix_row_by_row_is_refused() -> None:
    library = numpys()
    if library is None:
        pytest.skip("NumPy is linked with no OpenBLAS that can be reached")
    with pytest.raises(ValueError, match="column after column"):
        library.eigh_in_place(symmetric(4, torch.float64).contiguous())


def test_it_takes_torchs_threads_and_gives_numpys_back() -> None:
    library = numpys()
    if library is None:
        pytest.skip("NumPy is linked with no OpenBLAS that can be reached")
    before, seen = library._get_threads(), []
    asked, torchs = library._set_threads, torch.get_num_threads()
    library._set_threads = lambda count: (seen.append(count), asked(count))
    try:
        torch.set_num_threads(1)
        library.eigh_in_place(symmetric(5, torch.float32).mT)
        with pytest.raises(KeyError):
            library.eigh_in_place(symmetric(5, torch.float32).half().mT)
    finally:
        torch.set_num_threads(torchs)
        library._set_threads = asked
    assert seen == [1, before, 1, before]
    assert library._get_threads() == before


def test_a_library_without_these_functions_is_none() -> None:
    with pytest.raises(AttributeError, match="ssyevd is not there"):
        Library(ctypes.CDLL(None))


@pytest.mark.parametrize(
    ("machine", "has_mkl", "text", "slow"),
    [
        ("x86_64", True, "vendor_id\t: AuthenticAMD\n", True),
        ("x86_64", True, "vendor_id\t: GenuineIntel\n", False),
        ("x86_64", False, "vendor_id\t: AuthenticAMD\n", False),
        ("aarch64", True, "CPU implementer\t: 0x41\n", False),
        ("x86_64", True, None, False),
    ],
)
def test_mkl_is_slow_on_processors_of_other_makers(
    machine: str, has_mkl: bool, text: str | None, slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(_: Path) -> str:
        if text is None:
            raise FileNotFoundError("/proc/cpuinfo")
        return text

    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: has_mkl)
    monkeypatch.setattr(Path, "read_text", read)
    mkl_is_slow.cache_clear()
    try:
        assert mkl_is_slow() == slow
    finally:
        mkl_is_slow.cache_clear()
