"""Products by int8 matrix units: the integers that NumPy finds, on every kind of kernel, and errors below float32's."""

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from compiled import A_COMPILER_IS_HERE, NO_COMPILER, assert_sizes_are_checked
from hypothesis import given, settings
from hypothesis import strategies as st

from tilecov.pipeline.sliced import Multiplier, Slices
from tilecov.pipeline.units import BLOCK, bytes_of, compiled

Matrix = npt.NDArray[Any]


def test_it_is_compiled_where_a_compiler_is() -> None:
    """Installing goes on without it: this is where that would be seen."""
    assert compiled is not None or not A_COMPILER_IS_HERE


@pytest.fixture(params=["amx", "plain"], scope="module")
def functions(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """All kinds that this machine can run."""
    if compiled is None or not compiled.choose(request.param):
        pytest.skip(f"no such units here, or {NO_COMPILER}")
    yield compiled
    assert compiled.choose("amx") or compiled.choose("plain")


def product(functions: ModuleType, left: Matrix, right: Matrix, total: Matrix) -> Matrix:
    """Add to the total as a caller does, the right factor cut a block at a time."""
    (rows, depth), columns = left.shape, right.shape[1]
    cut, turned = Slices.empty(columns, depth), Slices.empty(rows, depth)
    with Multiplier(functions) as multiplier:
        for start in range(0, depth, BLOCK):
            multiplier.cut(right[start : start + BLOCK], cut, start)
        multiplier.cut(left.T, turned)
        multiplier.add(torch.from_numpy(total), multiplier.turn(turned), cut)
    return total


def digits(block: Matrix) -> tuple[Matrix, Matrix]:
    """Return (3, rows, columns) bytes of a block of a right factor, and what its columns are multiples of."""
    largest = np.abs(block).max(axis=0).astype(np.float64)
    _, exponents = np.frexp(largest)
    exponents = exponents.astype(np.int64) - 1 + (np.ldexp(largest, 23 - exponents) > 0x7F7F7F)
    units = np.ldexp(1.0, np.maximum(exponents, -127) - 22)
    whole = np.rint(block / units).astype(np.int64)
    last = (whole + 128) % 256 - 128
    middle = ((whole - last) // 256 + 128) % 256 - 128
    first = ((whole - last) // 256 - middle) // 256
    assert np.abs(first).max(initial=0) <= 127
    return np.stack([first, middle, last]), units


def by_numpy(left: Matrix, right: Matrix, total: Matrix) -> Matrix:
    """Compute what the kernels are to find, to the bit."""
    added = np.zeros(total.shape)
    for start in range(0, right.shape[0], BLOCK):
        (x, rows), (y, columns) = digits(left[:, start : start + BLOCK].T), digits(right[start : start + BLOCK])
        weights = [sum(x[i].T @ y[w - i] for i in range(3) if 0 <= w - i < 3) for w in range(4)]
        integers = ((weights[0] * 256 + weights[1]) * 256 + weights[2] + (weights[3] + 128) // 256).astype(np.float64)
        added += integers * ((rows * 65536.0)[:, None] * columns)
    return total + added


@settings(max_examples=40)
@given(
    st.tuples(st.integers(1, 70), st.sampled_from([1, 3, 63, 64, 65, 300, 512, 513, 1100]), st.integers(1, 600)),
    st.integers(0, 2**32 - 1),
)
def test_products_are_the_integers_that_numpy_finds(
    functions: ModuleType, shape: tuple[int, int, int], seed: int
) -> None:
    rng, (rows, depth, columns) = np.random.default_rng(seed), shape
    left, right = (
        (rng.standard_normal(form) * np.exp2(rng.integers(-20, 20, form[1]))).astype(np.float32)
        for form in ((rows, depth), (depth, columns))
    )
    total = rng.standard_normal((rows, columns))
    found = product(functions, left, right, total.copy())
    np.testing.assert_array_equal(found, by_numpy(left, right, total))


@pytest.mark.parametrize("depth", [256, 512, 3000])
def test_errors_are_below_those_of_float32(functions: ModuleType, depth: int) -> None:
    rng = np.random.default_rng(depth)
    left, right = (rng.standard_normal(form).astype(np.float32) for form in ((200, depth), (depth, 300)))
    exact = left.astype(np.float64) @ right
    one_by_one = np.zeros((200, 300), np.float32)  # BLAS sums in as many parts as the processor's kernels like
    for number in range(depth):
        one_by_one += np.outer(left[:, number], right[number])
    error, usual = (
        np.linalg.norm(found - exact)
        for found in (product(functions, left, right, np.zeros((200, 300))), one_by_one.astype(np.float64))
    )
    assert error < usual * np.sqrt(512 / max(depth, 512))
    assert error < 3e-7 * np.linalg.norm(exact)


def test_whole_numbers_are_multiplied_exactly(functions: ModuleType) -> None:
    """Of up to 16 bits, of which the third bytes' product, which is left out, is none."""
    rng = np.random.default_rng(1)
    left, right = (rng.integers(-127, 128, form).astype(np.float32) for form in ((40, 1200), (1200, 50)))
    np.testing.assert_array_equal(product(functions, left, right, np.zeros((40, 50))), left.astype(np.float64) @ right)


@pytest.mark.parametrize("largest", [0.0, 1e-45, 1.2e-38, 3e-30, 1.0, 3.4028234e38])
def test_any_size_of_numbers_is_taken(functions: ModuleType, largest: float) -> None:
    rng = np.random.default_rng(3)
    left = rng.standard_normal((20, 100)).astype(np.float32)
    right = (rng.uniform(-1, 1, (100, 30)) * largest).astype(np.float32)
    right[0, :] = largest
    exact = left.astype(np.float64) @ right
    found = product(functions, left, right, np.zeros((20, 30)))
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e-5 * largest + 1e-43)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_seen_in_its_column_and_in_no_other(functions: ModuleType, bad: float) -> None:
    rng = np.random.default_rng(4)
    left, right = rng.standard_normal((20, 600)).astype(np.float32), rng.standard_normal((600, 40)).astype(np.float32)
    right[555, 17] = bad
    found = product(functions, left, right, np.zeros((20, 40)))
    assert np.isnan(found[:, 17]).all()
    assert np.isfinite(np.delete(found, 17, axis=1)).all()
    right[555, 17], left[3, 2] = 0, bad
    found = product(functions, left, right, np.zeros((20, 40)))
    assert np.isnan(found[3]).all()
    assert np.isfinite(np.delete(found, 3, axis=0)).all()


def test_threads_change_no_bit(functions: ModuleType) -> None:
    rng = np.random.default_rng(6)
    left, right = rng.standard_normal((70, 900)).astype(np.float32), rng.standard_normal((900, 1500)).astype(np.float32)
    before, found = torch.get_num_threads(), set()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.add(product(functions, left, right, np.zeros((70, 1500))).tobytes())
    finally:
        torch.set_num_threads(before)
    assert len(found) == 1


def test_parts_of_larger_matrices_are_taken_where_they_lie(functions: ModuleType) -> None:
    rng = np.random.default_rng(7)
    whole, total = rng.standard_normal((400, 500)).astype(np.float32), rng.standard_normal((90, 120))
    left, right = whole[10:50, 3:203:2], whole[100:200, 40:93]
    around = total.copy()
    product(functions, left, right, total[20:60, 7:60])
    np.testing.assert_allclose(
        total[20:60, 7:60], around[20:60, 7:60] + left.astype(np.float64) @ right, rtol=0, atol=1e-4
    )
    total[20:60, 7:60] = around[20:60, 7:60]
    np.testing.assert_array_equal(total, around)


def test_a_part_of_a_factor_is_that_part(functions: ModuleType) -> None:
    rng = np.random.default_rng(8)
    left, right = rng.standard_normal((50, 700)).astype(np.float32), rng.standard_normal((700, 100)).astype(np.float32)
    cut, turned = Slices.empty(100, 700), Slices.empty(50, 700)
    whole, part = torch.zeros(50, 100, dtype=torch.float64), torch.zeros(18, 36, dtype=torch.float64)
    with Multiplier(functions) as multiplier:
        multiplier.cut(right, cut)
        multiplier.cut(left.T, turned)
        kept = Slices.empty(50, 700)
        assert np.shares_memory(multiplier.turn(turned, kept).data, kept.data)
        multiplier.add(whole, multiplier.turn(turned), cut)
        multiplier.add(part, turned.part(32, 50), cut.part(64, 100))
    np.testing.assert_array_equal(part.numpy(), whole.numpy()[32:, 64:])
    np.testing.assert_array_equal(turned.data, kept.data)


def test_room_is_what_it_is_said_to_be() -> None:
    for count, depth in ((1, 1), (16, 512), (17, 513), (784, 784)):
        slices = Slices.empty(count, depth)
        assert slices.data.nbytes + slices.scales.nbytes == bytes_of(count, depth)
        assert slices.data.ctypes.data % 64 == 0


def test_factors_that_do_not_fit_are_refused(functions: ModuleType) -> None:
    slices = Slices.empty(30, 1100)
    numbers = np.zeros((1100, 30), np.float32)
    with Multiplier(functions) as multiplier:
        for rows, start in ((slice(0, 500), 0), (slice(0, 512), 500), (slice(0, 512), 1024)):
            with pytest.raises(ValueError, match="no blocks of 30 and 1100"):
                multiplier.cut(numbers[rows], slices, start)
        with pytest.raises(ValueError, match="29 columns"):
            multiplier.cut(numbers[:, :29], slices)
        with pytest.raises(ValueError, match=r"\(30, 1100\) times \(1100, 30\) is not \(30, 31\)"):
            multiplier.add(torch.zeros(30, 31), slices, slices)
        with pytest.raises(ValueError, match=r"times \(1000, 30\)"):
            multiplier.add(torch.zeros(30, 30), slices, Slices.empty(30, 1000))
        with pytest.raises(ValueError, match="float32; products are added up in float64"):
            multiplier.add(torch.zeros(30, 30), slices, slices)


def _arguments(functions: ModuleType) -> dict[str, list[Any]]:
    """Sound arguments of each function, for (40, 600) and (600, 50)."""
    left, right = Slices.empty(40, 600), Slices.empty(50, 600)
    left.data[:], right.data[:], left.scales[:], right.scales[:] = 0, 0, 0, 0
    factor, total, room = np.zeros(600 * 50, np.float32), np.zeros(40 * 50), np.zeros(functions.ROOM, np.uint8)
    return {
        "cut": [factor, 50, 1, 600, 50, right.data, right.scales, 600, 0, 0, 50],
        "turn": [left.data, left.data.copy()],
        "multiply": [total, 50, left.data, left.scales, right.data, right.scales, 40, 600, 50, 0, 50, room],
    }


@pytest.mark.parametrize("name", ["cut", "turn", "multiply"])
def test_c_refuses_sizes_that_are_not_those_of_its_buffers(functions: ModuleType, name: str) -> None:
    assert_sizes_are_checked(
        getattr(functions, name), _arguments(functions)[name], lengths=[0] if name == "turn" else []
    )


def test_c_refuses_columns_that_a_factor_does_not_have(functions: ModuleType) -> None:
    arguments = _arguments(functions)
    for first, last in ((0, 51), (8, 50), (32, 16)):
        with pytest.raises(ValueError, match=r"asked for|must be"):
            functions.cut(*arguments["cut"][:-2], first, last)
        with pytest.raises(ValueError, match=r"asked for|must be"):
            functions.multiply(*arguments["multiply"][:-3], first, last, arguments["multiply"][-1])
    with pytest.raises(ValueError, match="asked for"):
        functions.cut(*arguments["cut"][:8], 1, 0, 50)
