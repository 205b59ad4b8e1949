"""Rows into tiles: blocks are cut where they must be, and what comes out is exact."""

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tilecov.pipeline.accumulate import (
    INT32_ROWS,
    ORIGIN,
    IntegerAccumulator,
    Workspace,
    panels_of,
)
from tilecov.pipeline.device import Kernel, choose_kernel, int8_product, is_exact, kernel_in_c, kernels
from tilecov.pipeline.exact import packed_bytes
from tilecov.pipeline.floatsums import FloatAccumulator
from tilecov.pipeline.units import compiled_exact
from tilecov.storage.tiling import Tiling

Rows = npt.NDArray[np.uint8]
Integers = npt.NDArray[np.int64]

CPU = torch.device("cpu")
FLOAT32 = choose_kernel(CPU, "float32")
INT8 = Kernel("int8", CPU, torch.int8, int8_product, grouped=False)
KERNELS = {"float32": FLOAT32, "int8 as on CUDA": INT8} | {
    f"{kernel.name} of this CPU": kernel
    for kernel in kernels(CPU)
    if kernel.name == "int8" and kernel.functions is None and is_exact(kernel)
}
if compiled_exact is not None:  # of the kind that is quickest here
    KERNELS["int8 where tiles lie"] = kernel_in_c(compiled_exact)
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


def watched(lengths: list[int]) -> Kernel:
    """Return the float32 kernel, noting the rows of each product of two different columns."""

    def product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        if left.data_ptr() != right.data_ptr():
            worst = max(float(part.to(torch.float64).square().sum(dim=0).max()) for part in (left, right))
            assert worst < LIMIT
            lengths.append(len(left))
        return FLOAT32.product(left, right)

    return Kernel("watched", CPU, torch.float32, product, grouped=True)


@pytest.mark.parametrize(
    ("low", "high", "spans"),
    [
        (128, 129, [4096]),  # quiet: never cut
        (0, 255, [819, 819, 819, 819, 820]),  # as loud as can be: 2**24 / 128**2, with a margin, cut evenly
    ],
)
def test_blocks_are_cut_seldom(low: int, high: int, spans: list[int]) -> None:
    rows = np.where(np.arange(4096)[:, None] % 2, low, high).astype(np.uint8).repeat(2, axis=1)
    lengths: list[int] = []
    accumulator = IntegerAccumulator(Tiling(2, 1), [(0, 0), (0, 1), (1, 1)], watched(lengths))
    for _ in range(2):
        accumulator.add(panels_of(torch.tensor(rows), Tiling(2, 1)))
    assert lengths == spans * 2


def test_rows_become_longer_again_after_a_loud_block() -> None:
    loud = np.where(np.arange(2048)[:, None] % 2, 0, 255).astype(np.uint8).repeat(2, axis=1)
    lengths: list[int] = []
    accumulator = IntegerAccumulator(Tiling(2, 1), [(0, 0), (0, 1), (1, 1)], watched(lengths))
    for rows in (loud, np.full_like(loud, 128), np.full_like(loud, 128)):
        lengths.clear()
        accumulator.add(panels_of(torch.tensor(rows), Tiling(2, 1)))
    assert lengths == [2048]


@st.composite
def loud_rows(draw: st.DrawFn) -> Rows:
    """Draw rows whose steps are loud or quiet, so that blocks of many lengths arise."""
    levels = draw(st.lists(st.sampled_from([0, 1, 40, 127, 128, 129, 255]), min_size=1, max_size=12))
    rows = np.repeat(np.array(levels, np.uint8), 256)[: draw(st.integers(1, 256 * len(levels)))]
    return np.stack([rows, rows[::-1], np.full_like(rows, draw(st.integers(0, 255)))], axis=1)


@given(loud_rows())
@settings(max_examples=60)
def test_no_product_counts_that_float32_could_have_rounded(rows: Rows) -> None:
    """By Cauchy-Schwarz no partial sum of a product passes the largest column's sum of squares."""
    lengths: list[int] = []
    tiling = Tiling(3, 1)
    pairs = [(0, 0), (1, 1), (2, 2), (0, 2)]  # `watched` looks at the squares of the last one's factors
    accumulator = IntegerAccumulator(tiling, pairs, watched(lengths))
    accumulator.add(panels_of(torch.tensor(rows), tiling))
    assert sum(lengths) == len(rows)
    y = about_128(rows)
    found = {pair: int(tile[0, 0]) for pair, tile in accumulator.take()[2]}
    assert found == {(i, j): int(y[:, i] @ y[:, j]) for i, j in pairs}


def test_a_kernel_with_room_for_all_rows_gets_them_in_one_block() -> None:
    lengths: list[int] = []

    def spy(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        lengths.append(len(left))
        return int8_product(left, right)

    accumulate(np.zeros((5000, 2), np.uint8), Tiling(2, 2), Kernel("spy", CPU, torch.int8, spy, grouped=False))
    assert set(lengths) == {5000}


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
@pytest.mark.parametrize("wide", [False, True])
def test_diagonal_tiles_of_several_bands_are_whole(kernel: Kernel, wide: bool) -> None:
    rows, tiling = noise(600, 900), Tiling(900, 600)
    y = about_128(rows)
    accumulator = IntegerAccumulator(tiling, tiling.upper(), kernel, wide=wide)
    for part in np.split(rows, [100]):
        accumulator.add(panels_of(torch.tensor(part), tiling))
    for (i, j), values in accumulator.take()[2]:
        assert values.dtype == (np.int64 if wide else np.int32)
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
    assert (accumulator.count, accumulator.room()) == (0, INT32_ROWS)
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
@pytest.mark.parametrize("pairs", [[(0, 0), (0, 1), (1, 1)], [(0, 1)]], ids=["with diagonals", "without"])
def test_rows_far_from_the_first_block_are_exact(kernel: Kernel, pairs: list[tuple[int, int]]) -> None:
    """A first block of zeros puts the middle at 0; the squares of the others about it would pass int32."""
    rows = np.full((INT32_ROWS, 2), 255, np.uint8)
    rows[:1000] = 0
    rows[-1] = (1, 200)
    tiling = Tiling(2, 1)
    accumulator = IntegerAccumulator(tiling, pairs, kernel)
    for start in range(0, len(rows), 1000):
        accumulator.add(panels_of(torch.tensor(rows[start : start + 1000]), tiling))
    assert accumulator.room() == 0
    count, sums, tiles = accumulator.take()
    y = about_128(rows)
    assert (count, sums.tolist()) == (len(rows), y.sum(axis=0).tolist())
    assert {pair: int(tile[0, 0]) for pair, tile in tiles} == {(i, j): int(y[:, i] @ y[:, j]) for i, j in pairs}
    accumulator.add(panels_of(torch.tensor(rows[:3]), tiling))  # and about their own mean again
    assert [int(tile[0, 0]) for _, tile in accumulator.take()[2]] == [3 * 128**2] * len(pairs)


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_accumulators_in_turn_share_their_memory(kernel: Kernel) -> None:
    """As groups do; the plan counts the block made ready for the products once."""
    tiling, workspace = Tiling(7, 4), Workspace()
    groups = [np.random.default_rng(seed).integers(0, 256, (400, 7), np.uint8) for seed in range(5)]
    shared = [IntegerAccumulator(tiling, tiling.upper(), kernel, block=400, workspace=workspace) for _ in groups]
    for start in (0, 300, 350):
        stop = {0: 300, 300: 350, 350: 400}[start]
        for accumulator, rows in zip(shared, groups, strict=True):
            accumulator.add(panels_of(torch.tensor(rows[start:stop]), tiling))
    if kernel.functions is None:
        assert [len(block) for block in workspace.centred.values()] == [400, 400]
    else:
        assert [len(workspace.ready[j]) for j in (0, 1)] == [packed_bytes(400, 4), packed_bytes(400, 3)]
    for accumulator, rows in zip(shared, groups, strict=True):
        (count, sums, tiles), (_, wanted_sums, wanted) = accumulator.take(), accumulate(rows, tiling, kernel).take()
        assert count == len(rows)
        assert np.array_equal(sums, wanted_sums)
        for (pair, tile), (_, other) in zip(tiles, wanted, strict=True):
            assert np.array_equal(tile, other), pair
