"""OpenBLAS by its own functions: products of torch's matrices however they lie, its threads, and when it is called."""

import ctypes
import platform
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from tilecov.pipeline import blas
from tilecov.pipeline import openblas as module
from tilecov.pipeline.openblas import OpenBlas, integer, mkl_is_slow, numpys, quicker
from tilecov.pipeline.vectors import Room, multiply

Layout = tuple[bool, bool, bool]


def test_the_one_of_numpy_can_be_reached() -> None:
    """Else torch's is used everywhere: this is where that would be seen, with the wheels from PyPI."""
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]["name"]  # type: ignore[call-overload]
    assert numpys() is not None or blas != "scipy-openblas"


def whole_numbers(rows: int, columns: int, dtype: torch.dtype, *, turned: bool) -> torch.Tensor:
    """Return a part of a matrix that lies row by row, or column by column."""
    random = np.random.default_rng(rows * 100 + columns)
    shape = (columns + 3, rows + 2) if turned else (rows + 3, columns + 2)
    whole = torch.from_numpy(random.integers(-9, 10, shape)).to(dtype)
    return (whole.mT if turned else whole)[1 : rows + 1, 1 : columns + 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", list(product([False, True], repeat=3)))
@pytest.mark.parametrize("sizes", [(1, 1, 1), (5, 1, 3), (1, 7, 2), (3, 4, 1), (33, 20, 50)])
def test_products_are_added_however_matrices_lie(
    openblas: OpenBlas, dtype: torch.dtype, layout: Layout, sizes: tuple[int, int, int]
) -> None:
    height, width, depth = sizes
    total = whole_numbers(height, width, dtype, turned=layout[0])
    left = whole_numbers(height, depth, dtype, turned=layout[1])
    right = whole_numbers(depth, width, dtype, turned=layout[2])
    around, expected = total._base, total - 2 * left @ right
    assert around is not None
    before = int((around != 0).sum()) - int((total != 0).sum())
    with openblas.threads():
        openblas.add_product(total, left, right, times=-2, keep=1)
    assert torch.equal(total, expected)
    assert int((around != 0).sum()) - int((total != 0).sum()) == before
    total.fill_(float("nan"))
    with openblas.threads():
        openblas.add_product(total, left, right, times=1, keep=0)
    assert torch.equal(total, left @ right)


def test_a_matrix_with_gaps_is_refused(openblas: OpenBlas) -> None:
    whole = torch.zeros(6, 6)
    with pytest.raises(ValueError, match=r"strides \((12, 2|2, 12)\)"), openblas.threads():
        openblas.add_product(torch.zeros(3, 3), whole[::2, ::2], torch.zeros(3, 3), times=1, keep=0)


@pytest.mark.parametrize(("shape", "dtype"), [((2, 4), None), ((3, 5), None), ((3, 4), torch.float64)])
def test_matrices_that_do_not_fit_are_refused(
    openblas: OpenBlas, shape: tuple[int, int], dtype: torch.dtype | None
) -> None:
    right = torch.zeros(shape, dtype=dtype)
    with pytest.raises(ValueError, match="do not fit"), openblas.threads():
        openblas.add_product(torch.zeros(2, 4), torch.zeros(2, 3), right, times=1, keep=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("is_there", [True, False])
def test_certificates_multiply_by_whichever_is_quicker(
    openblas: OpenBlas, is_there: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blas, "quicker", lambda: openblas if is_there else None)
    left, right = (whole_numbers(*shape, dtype, turned=True) for shape in ((30, 20), (20, 40)))
    found = multiply(left, right, Room())
    assert found.dtype == dtype
    assert torch.equal(found, left @ right)


@pytest.mark.parametrize("is_there", [True, False])
def test_torch_has_one_thread_while_another_library_multiplies(
    openblas: OpenBlas, is_there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blas, "quicker", lambda: openblas if is_there else None)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with blas.quick_products(torch.device("cpu")) as add_product:
            assert torch.get_num_threads() == (1 if is_there else 2)
            assert not is_there or openblas._get_threads() == 2
            total = torch.ones(2, 2)
            add_product(total, torch.eye(2), torch.eye(2), times=3)
            assert torch.equal(total, 1 + 3 * torch.eye(2))
        assert torch.get_num_threads() == 2
        with blas.quick_products(torch.device("cuda")):
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_it_takes_torchs_threads_and_gives_numpys_back(openblas: OpenBlas) -> None:
    before, seen = openblas._get_threads(), []
    asked, torchs = openblas._set_threads, torch.get_num_threads()
    openblas._set_threads = lambda count: (seen.append(count), asked(count))
    try:
        torch.set_num_threads(1)
        with openblas.threads():
            assert openblas._get_threads() == 1
        with pytest.raises(KeyError), openblas.threads():
            openblas.add_product(*(torch.zeros(2, 2).half() for _ in range(3)), times=1, keep=0)
    finally:
        torch.set_num_threads(torchs)
        openblas._set_threads = asked
    assert seen == [1, before, 1, before]
    assert openblas._get_threads() == before


def test_what_does_not_converge_is_an_error(openblas: OpenBlas) -> None:
    singular = torch.zeros(3, 3)
    with pytest.raises(RuntimeError, match=r"strtri did not converge \(info 1\)"), openblas.threads():
        openblas.call("trtri", singular.dtype, b"UN", integer(3), module.at(singular), integer(3))


def test_a_library_without_these_functions_is_none() -> None:
    with pytest.raises(AttributeError, match="sgemm is not there"):
        OpenBlas(ctypes.CDLL(None))


@pytest.mark.parametrize("is_slow", [True, False])
def test_it_is_called_where_torchs_library_is_slow(is_slow: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "mkl_is_slow", lambda: is_slow)
    assert quicker() is (numpys() if is_slow else None)


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
