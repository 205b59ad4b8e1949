"""Moments: exact, mergeable, subtractable, and of one digest, whatever the way that leads to them."""

import hashlib
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tilecov.pipeline.device import Kernel, choose_kernel, int8_product, is_exact, kernels
from tilecov.pipeline.moments import Moments
from tilecov.storage.tiling import Tiling

Rows = npt.NDArray[np.uint8]

CPU = torch.device("cpu")
FLOAT32 = choose_kernel(CPU, "float32")
INT8 = Kernel("int8", CPU, torch.int8, int8_product, grouped=False)
KERNELS = {"float32": FLOAT32, "int8 as on CUDA": INT8} | {
    f"{kernel.name} of this CPU": kernel for kernel in kernels(CPU) if kernel.name == "int8" and is_exact(kernel)
}

ANY = st.one_of(st.integers(0, 255), st.sampled_from([0, 127, 128, 129, 255]))


def few_rows(size: int = 3) -> st.SearchStrategy[Rows]:
    return st.integers(0, 5).flatmap(lambda n: hnp.arrays(np.uint8, (n, size), elements=ANY))


def random_rows(count: int, size: int, seed: int = 0) -> Rows:
    return np.random.default_rng(seed).integers(0, 256, (count, size), np.uint8)


def moments_of(rows: Rows, tile: int | None = None, kernel: Kernel = FLOAT32) -> Moments:
    return Moments.empty(rows.shape[1], tile or rows.shape[1]).update(rows, kernel)


def integers_of(rows: Rows) -> tuple[int, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return count, sum and whole gram about 128: NumPy's own integer arithmetic, no float anywhere."""
    y = rows.astype(np.int64) - 128
    return len(y), y.sum(axis=0), y.T @ y


def digest_by_description(count: int, sums: npt.NDArray[np.int64], gram: npt.NDArray[np.int64]) -> str:
    """Follow the description of the digest, with nothing of the package."""
    size = len(sums)
    parts = [f"tilecov moments 1 d={size} count={count} dtype=int64\n".encode(), sums.astype("<i8").tobytes()]
    for i, j in itertools.combinations_with_replacement(range(0, size, 256), 2):
        parts.append(hashlib.sha256(gram[i : i + 256, j : j + 256].astype("<i8").tobytes()).digest())
    return hashlib.sha256(b"".join(parts)).hexdigest()


def whole_gram(moments: Moments) -> npt.NDArray[Any]:
    whole = np.zeros((moments.tiling.size,) * 2, np.int64)
    for (i, j), tile in moments.gram.items():
        rows, columns = moments.tiling.span(i), moments.tiling.span(j)
        whole[rows, columns], whole[columns, rows] = tile, tile.T
    return whole


def assert_exact(moments: Moments, rows: Rows) -> None:
    count, sums, gram = integers_of(rows)
    assert moments.count == count
    assert np.array_equal(moments.sum, sums)
    assert np.array_equal(whole_gram(moments), gram)
    assert moments.digest() == digest_by_description(count, sums, gram)


# Monoid and group


@given(few_rows(), few_rows(), few_rows())
@settings(max_examples=60)
def test_merge_is_associative_and_commutative_to_the_bit(a: Rows, b: Rows, c: Rows) -> None:
    x, y, z = map(moments_of, (a, b, c))
    assert x.merge(y).merge(z).digest() == x.merge(y.merge(z)).digest() == z.merge(y).merge(x).digest()
    assert_exact(x.merge(y).merge(z), np.concatenate([a, b, c]))


@given(few_rows())
@settings(max_examples=40)
def test_no_rows_are_the_identity(a: Rows) -> None:
    nothing, some = Moments.empty(3, 3), moments_of(a)
    assert nothing.merge(some).digest() == some.merge(nothing).digest() == some.digest()
    assert some.update(a[:0], FLOAT32).digest() == some.digest()
    assert_exact(nothing, a[:0])


@given(few_rows(), few_rows())
@settings(max_examples=40)
def test_what_was_merged_can_be_subtracted_again(a: Rows, b: Rows) -> None:
    both = moments_of(np.concatenate([a, b]))
    assert both.subtract(moments_of(b)).digest() == moments_of(a).digest()
    assert both.subtract(both).digest() == Moments.empty(3, 3).digest()


def test_more_rows_than_there_are_cannot_be_subtracted() -> None:
    with pytest.raises(ValueError, match=r"5.*4"):
        moments_of(random_rows(4, 3)).subtract(moments_of(random_rows(5, 3)))


@pytest.mark.parametrize("other", [Moments.empty(5, 4), Moments.empty(4, 2)], ids=["size", "tile"])
def test_moments_that_are_cut_otherwise_do_not_add_up(other: Moments) -> None:
    for operation in (Moments.empty(4, 4).merge, Moments.empty(4, 4).subtract):
        with pytest.raises(ValueError, match="do not add up"):
            operation(other)


def test_update_leaves_the_moments_and_the_rows_as_they_were() -> None:
    rows = random_rows(50, 7)
    kept, first = rows.copy(), moments_of(random_rows(9, 7, seed=1))
    digest = first.digest()
    assert first.update(rows).digest() != digest == first.digest()
    assert np.array_equal(rows, kept)


@pytest.mark.parametrize(
    "rows",
    [
        np.zeros((3, 4), np.float32),
        np.zeros((3, 4), np.int16),
        np.zeros((3, 5), np.uint8),
        np.zeros(4, np.uint8),
        np.zeros((3, 2, 2), np.uint8),
    ],
    ids=["float", "int16", "wide", "vector", "images"],
)
def test_only_uint8_rows_of_the_right_size_are_taken(rows: npt.NDArray[Any]) -> None:
    with pytest.raises(ValueError, match="uint8"):
        Moments.empty(4).update(rows)


# One digest, whatever the way


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize(("count", "size"), [(1, 1), (3, 1), (2, 255), (300, 256), (40, 257), (1500, 70), (9, 600)])
def test_moments_are_the_integers_that_numpy_finds(count: int, size: int, kernel: Kernel) -> None:
    rows = random_rows(count, size)
    for tile in {size, 256, 512, 768, 1024}:
        assert_exact(moments_of(rows, tile, kernel), rows)


@given(st.data())
@settings(max_examples=20)
def test_the_digest_knows_neither_split_nor_order_nor_tile_nor_kernel(data: st.DataObject) -> None:
    rows = random_rows(23, 300)
    shuffled = rows[data.draw(st.permutations(range(23)))]
    cuts = sorted(data.draw(st.lists(st.integers(0, 23), max_size=5)))
    tile = data.draw(st.sampled_from([256, 300, 512, 1024]))
    moments = Moments.empty(300, tile)
    for part in np.split(shuffled, cuts):
        moments = moments.update(part, data.draw(st.sampled_from([*KERNELS.values()])))
    assert moments.digest() == digest_by_description(*integers_of(rows))


@pytest.mark.parametrize("batch", [1, 7, 256, 4096])
def test_the_digest_does_not_know_the_batch(batch: int) -> None:
    rows = random_rows(4200 if batch == 4096 else 300, 12)
    moments = Moments.empty(12)
    for start in range(0, len(rows), batch):
        moments = moments.update(rows[start : start + batch], FLOAT32)
    assert_exact(moments, rows)


LAYOUTS: dict[str, Callable[[Rows], Rows]] = {
    "strided": lambda rows: rows[::2, 3::2],
    "column-major": np.asfortranarray,
    "one row again and again": lambda rows: np.broadcast_to(rows[0], rows.shape),
    "backwards": lambda rows: rows[::-1, ::-1],
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_rows_may_lie_anyhow_in_memory(layout: Callable[[Rows], Rows]) -> None:
    rows = layout(random_rows(60, 40))
    rows.flags.writeable = False
    assert_exact(moments_of(rows), rows)


def test_tiles_that_do_not_fall_into_digest_blocks_have_no_digest() -> None:
    with pytest.raises(ValueError, match=r"300.*256"):
        Moments.empty(600, 300).digest()


def test_the_digest_sees_every_part() -> None:
    moments = moments_of(random_rows(5, 300), 256)
    seen = {moments.digest(), Moments(moments.tiling, 6, moments.sum, moments.gram).digest()}
    for column in (0, 299):
        changed = moments.sum.copy()
        changed[column] += 1
        seen.add(Moments(moments.tiling, 5, changed, moments.gram).digest())
    for pair, tile in moments.gram.items():
        changed = tile.copy()
        changed[-1, -1] += 1
        seen.add(Moments(moments.tiling, 5, moments.sum, {**moments.gram, pair: changed}).digest())
    assert len(seen) == 1 + 1 + 2 + 3


def test_the_digest_tells_sizes_apart() -> None:
    assert len({Moments.empty(size).digest() for size in (1, 2, 255, 256, 257)}) == 5


# Extremes

EXTREMES = {
    "all 0": np.zeros((5000, 3), np.uint8),
    "all 255": np.full((5000, 3), 255, np.uint8),
    "columns at both ends": np.tile(np.array([0, 255, 128, 127], np.uint8), (4097, 1)),
    "rows at both ends": np.tile(np.array([[0, 255, 255], [255, 0, 255]], np.uint8), (2500, 1)),
    "a sudden bright half": np.repeat(np.array([[128, 0], [0, 255]], np.uint8), 2048, axis=0),
}


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize("rows", EXTREMES.values(), ids=EXTREMES)
def test_extremes_are_exact(rows: Rows, kernel: Kernel) -> None:
    assert_exact(moments_of(rows, kernel=kernel), rows)


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize("value", [0, 255])
def test_more_rows_than_int32_holds_are_exact(value: int, kernel: Kernel) -> None:
    rows = np.full((135_000, 2), value, np.uint8)
    rows[::2, 1] = 255 - value
    moments = moments_of(rows, kernel=kernel)
    assert whole_gram(moments).max() > 2**31
    assert_exact(moments, rows)


@pytest.mark.parametrize("above", range(4))
def test_sums_just_past_what_float32_keeps_are_exact(above: int) -> None:
    """1,024 rows of -128 fill 2**24; a few more ones, each in the next steps, pass it by less than float32 can show."""
    rows = np.full((1024 + 256 * above, 2), 128, np.uint8)
    rows[:1024] = 0
    rows[1024::256] = 129
    assert_exact(moments_of(rows), rows)


@given(st.lists(st.sampled_from([0, 1, 64, 127, 128, 129, 130, 255]), min_size=4, max_size=10), st.integers(0, 255))
@settings(max_examples=60)
def test_blocks_are_exact_wherever_the_rule_cuts_them(levels: list[int], last: int) -> None:
    """Steps of 256 rows near the bound, each with a single other row, so that odd sums arise."""
    rows = np.repeat(np.array(levels, np.uint8), 256)[:, None]
    rows[255::256] = last
    rows = np.concatenate([rows, 255 - rows], axis=1)
    assert_exact(moments_of(rows), rows)


def test_moments_of_empty_have_every_upper_tile() -> None:
    moments = Moments.empty(700, 256)
    assert set(moments.gram) == set(Tiling(700, 256).upper())
    assert {pair: tile.shape for pair, tile in moments.gram.items()}[1, 2] == (256, 188)
    assert all(tile.dtype == np.int64 for tile in moments.gram.values())
