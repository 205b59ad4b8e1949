"""Tiling: the arithmetic holds for every size and tile."""

import dataclasses
import pickle
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilecov.storage.tiling import Tiling

tilings = st.builds(Tiling, size=st.integers(1, 300), tile=st.integers(1, 400))
primes = pytest.mark.parametrize(("size", "tile", "widths"), [
    (7, 3, [3, 3, 1]),
    (6, 3, [3, 3]),
    (3, 7, [3]),
    (1, 1, [1]),
    (5, 1, [1] * 5),
    (13, 12, [12, 1]),
])  # fmt: skip


@primes
def test_widths_by_hand(size: int, tile: int, widths: list[int]) -> None:
    tiling = Tiling(size, tile)
    assert [tiling.width(index) for index in range(len(tiling))] == widths


@given(tilings)
def test_the_tiles_cover_every_column_once_and_in_order(tiling: Tiling) -> None:
    columns = list(range(tiling.size))
    assert [column for span in tiling.spans() for column in columns[span]] == columns


@given(tilings)
def test_only_the_last_tile_is_narrower_and_none_is_empty(tiling: Tiling) -> None:
    widths = [tiling.width(index) for index in range(len(tiling))]
    assert widths[:-1] == [tiling.tile] * (len(tiling) - 1)
    assert 1 <= widths[-1] <= tiling.tile
    assert sum(widths) == tiling.size


@given(tilings)
def test_spans_are_the_span_of_each_index(tiling: Tiling) -> None:
    spans = list(tiling.spans())
    assert spans == [tiling.span(index) for index in range(len(tiling))]
    assert [span.stop - span.start for span in spans] == [tiling.width(index) for index in range(len(tiling))]


@given(st.integers(1, 1 << 40), st.integers(1, 1 << 20), st.data())
def test_large_sizes_are_exact(size: int, tile: int, data: st.DataObject) -> None:
    tiling = Tiling(size, tile)
    index = data.draw(st.integers(0, len(tiling) - 1))
    assert tiling.span(index).start == index * tile
    assert (len(tiling) - 1) * tile < size <= len(tiling) * tile
    assert tiling.span(len(tiling) - 1).stop == size


@given(st.builds(Tiling, size=st.integers(1, 60), tile=st.integers(1, 20)))
def test_the_upper_tiles_and_their_mirrors_are_all_tiles(tiling: Tiling) -> None:
    upper, indices = list(tiling.upper()), range(len(tiling))
    assert upper == sorted(upper)
    assert all(i <= j for i, j in upper)
    assert len(upper) == len(set(upper)) == len(tiling) * (len(tiling) + 1) // 2
    assert {pair for i, j in upper for pair in ((i, j), (j, i))} == {(i, j) for i in indices for j in indices}


@given(tilings, st.integers())
def test_a_tile_that_is_not_there_is_an_index_error(tiling: Tiling, index: int) -> None:
    if 0 <= index < len(tiling):
        index += len(tiling)
    with pytest.raises(IndexError, match=rf"{index}\D*{len(tiling)}"):
        tiling.span(index)
    with pytest.raises(IndexError):
        tiling.width(index)


@pytest.mark.parametrize(("size", "tile"), [(0, 1), (1, 0), (0, 0), (-1, 3), (5, -3)])
def test_nothing_cannot_be_tiled(size: int, tile: int) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{size}, {tile}")):
        Tiling(size, tile)


def test_a_tiling_is_a_value() -> None:
    tiling = Tiling(10, 3)
    assert pickle.loads(pickle.dumps(tiling)) == tiling
    assert len({tiling, Tiling(10, 3), Tiling(10, 4)}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        tiling.size = 4  # type: ignore[misc]
