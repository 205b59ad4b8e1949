"""Rows into tiles: blocks are cut where they must be, and what comes out is exact."""

from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tilecov.pipeline.accumulate import (
    INT32_ROWS,
    ORIGIN,
    FloatAccumulator,
    IntegerAccumulator,
    exact_groups,
    panels_of,
)
from tilecov.pipeline.device import Kernel, choose_kernel, int8_product
from tilecov.storage.tiling import Tiling

Rows = npt.NDArray[np.uint8]
Integers = npt.NDArray[np.int64]

CPU = torch.device("cpu")
FLOAT32 = choose_kernel(CPU)
INT8 = Kernel("int8", CPU, torch.int8, int8_product, grouped=False)
KERNELS = {"float32": FLOAT32, "int8": INT8}
LIMIT = 2**24


def noise(count: int, size: int) -> Rows:
    return np.random.default_rng(0).integers(0, 256, (count, size), np.uint8)


def about_128(rows: Rows) -> Integers:
    return rows.astype(np.int64) - 128


def accumulate(rows: Rows, tiling: Tiling, kernel: Kernel = FLOAT32) -> IntegerAccumulator:
    accumulator = IntegerAccumulator(tiling, tiling.upper(), kernel)
    accumulator.add(panels_of(torch.tensor(rows), tiling))
    return accumulator


# Where blocks are cut

# Near the bound, and tiny: the sums that float32 would round away.
SQUARES = st.one_of(st.integers(0, 3), st.integers(0, LIMIT), st.sampled_from([2**22, 2**22 - 1, 2**23, LIMIT]))


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32], ids=str)
@given(hnp.arrays(np.int64, st.tuples(st.integers(1, 12), st.integers(1, 3)), elements=SQUARES))
@settings(deadline=None, max_examples=200)
def test_groups_are_exact_and_as_long_as_they_can_be(dtype: torch.dtype, squares: Integers) -> None:
    starts = exact_groups(torch.tensor(squares).to(dtype))
    assert starts[0] == 0
    assert sorted(set(starts)) == starts
    for start, stop in pairwise([*starts, len(squares)]):
        assert squares[start:stop].sum(axis=0).max() <= LIMIT
        assert stop == len(squares) or squares[start : stop + 1].sum(axis=0).max() > LIMIT


def test_a_group_may_fill_the_bound_but_not_pass_it_by_one() -> None:
    quarter = [[2.0**22]] * 4
    assert exact_groups(torch.tensor(quarter)) == [0]
    assert exact_groups(torch.tensor([*quarter, [0.0], [1.0], [1.0]])) == [0, 5]


@st.composite
def loud_rows(draw: st.DrawFn) -> Rows:
    """Draw rows whose steps are loud or quiet, so that blocks of many lengths arise."""
    levels = draw(st.lists(st.sampled_from([0, 1, 40, 127, 128, 129, 255]), min_size=1, max_size=12))
    rows = np.repeat(np.array(levels, np.uint8), 256)[: draw(st.integers(1, 256 * len(levels)))]
    return np.stack([rows, rows[::-1], np.full_like(rows, draw(st.integers(0, 255)))], axis=1)


@given(loud_rows())
@settings(deadline=None, max_examples=60)
def test_no_product_is_asked_for_that_float32_could_round(rows: Rows) -> None:
    """By Cauchy-Schwarz no partial sum of a product passes the largest column's sum of squares.

    The products are taken about one value a column, the rounded mean of the first block.
    """
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def spy(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        seen.append((left.to(torch.int64), right.to(torch.int64)))
        return FLOAT32.product(left, right)

    tiling = Tiling(3, 3)
    accumulate(rows, tiling, Kernel("spy", CPU, torch.float32, spy, grouped=True))
    away = rows.astype(np.int64) - torch.cat([left for left, _ in seen]).numpy()
    assert (away == away[0]).all()
    for factors in seen:
        for factor in factors:
            assert int(factor.square().sum(dim=0).max()) <= LIMIT


def test_a_kernel_with_room_for_all_rows_gets_them_in_one_block() -> None:
    lengths: list[int] = []

    def spy(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        lengths.append(len(left))
        return int8_product(left, right)

    accumulate(np.zeros((5000, 2), np.uint8), Tiling(2, 2), Kernel("spy", CPU, torch.int8, spy, grouped=False))
    assert lengths == [5000]


# Integer tiles


def test_panels_cover_the_rows_and_copy_nothing() -> None:
    rows = torch.tensor(noise(5, 10))
    panels = panels_of(rows, Tiling(10, 4))
    assert list(panels) == [0, 1, 2]
    assert torch.equal(torch.cat(list(panels.values()), dim=1), rows)
    assert {panel.untyped_storage().data_ptr() for panel in panels.values()} == {rows.untyped_storage().data_ptr()}


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize(("size", "tile"), [(1, 1), (7, 3), (10, 5), (33, 16), (20, 64)])
@pytest.mark.parametrize("count", [0, 1, 31, 1500])
def test_tiles_and_sum_are_exact(count: int, size: int, tile: int, kernel: Kernel) -> None:
    rows, tiling = noise(count, size), Tiling(size, tile)
    y = about_128(rows)
    counted, sums, tiles = accumulate(rows, tiling, kernel).take()
    assert counted == count
    assert sums.dtype == np.int64
    assert np.array_equal(sums, y.sum(axis=0))
    found = {pair: tile.copy() for pair, tile in tiles}
    assert list(found) == list(tiling.upper())
    for (i, j), values in found.items():
        assert values.dtype == np.int32
        assert np.array_equal(values, y[:, tiling.span(i)].T @ y[:, tiling.span(j)])


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_a_group_of_tiles_needs_only_its_own_columns(kernel: Kernel) -> None:
    rows, tiling = noise(1300, 11), Tiling(11, 3)
    y = about_128(rows)
    accumulator = IntegerAccumulator(tiling, [(3, 3), (1, 3)], kernel)
    panels = panels_of(torch.tensor(rows), tiling)
    accumulator.add({index: panels[index] for index in (1, 3)})
    _, sums, tiles = accumulator.take()
    assert np.array_equal(sums, y[:, [3, 4, 5, 9, 10]].sum(axis=0))
    found = {pair: tile.copy() for pair, tile in tiles}
    assert np.array_equal(found[1, 3], y[:, 3:6].T @ y[:, 9:])
    assert np.array_equal(found[3, 3], y[:, 9:].T @ y[:, 9:])
    assert len(found) == 2


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize("value", [0, 255])
def test_as_many_rows_as_int32_keeps_fit_at_once(value: int, kernel: Kernel) -> None:
    accumulator = accumulate(np.full((INT32_ROWS, 1), value, np.uint8), Tiling(1, 1), kernel)
    assert accumulator.room() == 0
    count, sums, tiles = accumulator.take()
    y = value - ORIGIN
    assert (count, sums.tolist()) == (INT32_ROWS, [INT32_ROWS * y])
    assert next(tiles)[1].tolist() == [[INT32_ROWS * y * y]]


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize("at_once", [INT32_ROWS, 2 * INT32_ROWS])
def test_wide_tiles_hold_more_rows_than_int32(at_once: int, kernel: Kernel) -> None:
    many = 2 * INT32_ROWS - 1
    rows, tiling = torch.zeros((many + 1, 1), dtype=torch.uint8), Tiling(1, 1)
    rows[-1] = 129
    accumulator = IntegerAccumulator(tiling, tiling.upper(), kernel, wide=True)
    try:
        for part in rows.split(at_once):
            accumulator.add(panels_of(part, tiling))
    except OverflowError:  # a block may be too long; it may not be wrong
        assert at_once > INT32_ROWS
        return
    count, sums, tiles = accumulator.take()
    assert (count, sums.tolist()) == (many + 1, [1 - ORIGIN * many])
    assert next(tiles)[1].tolist() == [[1 + ORIGIN**2 * many]]


def test_one_row_more_is_refused_and_changes_nothing() -> None:
    tiling = Tiling(1, 1)
    accumulator = accumulate(np.zeros((INT32_ROWS - 1, 1), np.uint8), tiling)
    assert accumulator.room() == 1
    with pytest.raises(OverflowError, match=rf"2 rows on top of {INT32_ROWS - 1} .*{INT32_ROWS}"):
        accumulator.add(panels_of(torch.zeros((2, 1), dtype=torch.uint8), tiling))
    count, sums, tiles = accumulator.take()
    assert (count, sums.tolist()) == (INT32_ROWS - 1, [-ORIGIN * (INT32_ROWS - 1)])
    assert next(tiles)[1].tolist() == [[ORIGIN**2 * (INT32_ROWS - 1)]]


def test_taking_starts_again_from_zero() -> None:
    first, second, tiling = noise(40, 5), noise(70, 5)[::-1].copy(), Tiling(5, 2)
    accumulator = accumulate(first, tiling)
    *_, tiles = accumulator.take()
    assert len(list(tiles)) == 6
    assert (accumulator.count, accumulator.room()) == (0, (2**31 - 1) // 255**2)
    accumulator.add(panels_of(torch.tensor(second), tiling))
    count, sums, tiles = accumulator.take()
    y = about_128(second)
    assert (count, sums.tolist()) == (70, y.sum(axis=0).tolist())
    for (i, j), tile in tiles:
        assert np.array_equal(tile, y[:, tiling.span(i)].T @ y[:, tiling.span(j)])


# Float tiles


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("size", "tile"), [(1, 1), (10, 4), (9, 3), (6, 100)])
@pytest.mark.parametrize("centre", [0.0, -3.0, 1e4])
def test_float_tiles_are_sums_about_the_origin(size: int, tile: int, dtype: type, centre: float) -> None:
    rows = (centre + np.random.default_rng(1).standard_normal((700, size))).astype(dtype)
    origin = np.full(size, centre) + np.arange(size) * 0.5
    tiling = Tiling(size, tile)
    accumulator = FloatAccumulator(tiling, tiling.upper(), torch.tensor(origin), CPU)
    for part in np.split(rows, [1, 1, 250]):
        accumulator.add(panels_of(torch.tensor(part), tiling))
    assert accumulator.count == 700
    assert accumulator.room() > 10**12
    centred = rows.astype(np.float64) - origin
    wanted = centred.T @ centred
    count, sums, tiles = accumulator.take()
    assert (count, sums.dtype) == (700, np.dtype(np.float64))
    assert np.abs(sums - centred.sum(axis=0)).max() <= 1e-12 * np.abs(centred).sum(axis=0).max()
    for (i, j), values in tiles:
        assert values.dtype == np.float64
        assert np.abs(values - wanted[tiling.span(i), tiling.span(j)]).max() <= 1e-6 * wanted.max()
    assert (accumulator.count, accumulator.take()[1].any()) == (0, False)


def test_taking_clears_float_tiles() -> None:
    tiling = Tiling(3, 2)
    accumulator = FloatAccumulator(tiling, [(0, 1)], torch.zeros(3, dtype=torch.float64), CPU)
    accumulator.add(panels_of(torch.ones((4, 3)), tiling))
    for wanted in (4, 0):
        _, sums, tiles = accumulator.take()
        assert sums.tolist() == [wanted] * 3
        assert [(pair, tile.tolist()) for pair, tile in tiles] == [((0, 1), [[wanted], [wanted]])]


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_rows_far_from_the_first_block_are_exact_and_room_is_never_too_large(kernel: Kernel) -> None:
    """A first block of zeros puts the middle at 0; then every other value is 255."""
    rows = np.zeros((60_000, 2), np.uint8)
    rows[1000::2] = 255
    accumulator = IntegerAccumulator(Tiling(2, 2), [(0, 0)], kernel)
    total, count = np.zeros((2, 2), np.int64), 0
    for start in range(0, len(rows), 1000):
        if accumulator.room() < 1000:
            found, _, tiles = accumulator.take()
            total += next(tiles)[1]
            count += found
        accumulator.add(panels_of(torch.tensor(rows[start : start + 1000]), Tiling(2, 2)))
    found, _, tiles = accumulator.take()
    y = about_128(rows)
    assert count + found == len(rows)
    assert np.array_equal(total + next(tiles)[1], y.T @ y)


def test_rows_that_int32_would_not_hold_are_refused_and_leave_nothing_behind() -> None:
    accumulator = IntegerAccumulator(Tiling(1, 1), [(0, 0)], FLOAT32)
    accumulator.add(panels_of(torch.zeros((10, 1), dtype=torch.uint8), Tiling(1, 1)))
    with pytest.raises(OverflowError, match="int32"):
        accumulator.add(panels_of(torch.full((40_000, 1), 255, dtype=torch.uint8), Tiling(1, 1)))
    accumulator.add(panels_of(torch.full((10, 1), 255, dtype=torch.uint8), Tiling(1, 1)))
    count, sums, tiles = accumulator.take()
    assert (count, sums.tolist()) == (20, [10 * 127 - 10 * 128])
    assert next(tiles)[1].tolist() == [[10 * 127**2 + 10 * 128**2]]
