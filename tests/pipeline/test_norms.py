"""Sums of norms: exact integers, whatever the rows, and the same after any merge."""

from collections.abc import Iterator
from importlib import import_module

import numpy as np
import numpy.typing as npt
import pytest
from compiled import NO_COMPILER
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from rowsets import norms_of

from tilecov.pipeline.norms import Norms, NormsSum
from tilecov.pipeline.pixels import is_compiled

Rows = npt.NDArray[np.uint8]


@pytest.fixture(params=[True, False], ids=["in C", "by torch"], scope="module", autouse=True)
def either_way(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.param and not is_compiled():
        pytest.skip(NO_COMPILER)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tilecov.pipeline.norms.is_compiled", lambda: request.param)
        yield


def plain(rows: Rows) -> tuple[int, list[int]]:
    """Return both sums in Python's integers, term by term."""
    y = rows.astype(int).astype(object) - 128
    squares = (y * y).sum(axis=1)
    return int((squares * squares).sum()), [int(total) for total in (squares[:, None] * y).sum(axis=0)]


@given(hnp.arrays(np.uint8, st.tuples(st.integers(0, 9), st.integers(1, 12))))
def test_equals_plain_integers(rows: Rows) -> None:
    found = norms_of(rows)
    fourth, third = plain(rows) if len(rows) else (0, [0] * rows.shape[1])
    assert (found.fourth, found.third.tolist()) == (fourth, third)


@pytest.mark.parametrize("value", [0, 1, 254, 255])
@pytest.mark.parametrize("size", [1, 1023, 1024, 1025, 5000])
def test_the_loudest_rows_are_exact(value: int, size: int) -> None:
    count, y = 700, value - 128
    found = norms_of(np.full((count, size), value, np.uint8))
    assert found.fourth == count * (size * y * y) ** 2
    assert set(found.third) == {count * size * y**3}


def test_blocks_add_up() -> None:
    rows = np.random.default_rng(2).integers(0, 256, (40, 7), np.uint8)
    blocks = NormsSum(7)
    for block in np.split(rows, [3, 3, 20]):
        blocks.add(block)
    assert (blocks.total().fourth, blocks.total().third.tolist()) == plain(rows)


def test_random_rows_taller_and_wider_than_a_step() -> None:
    rows = np.random.default_rng(0).integers(0, 256, (600, 3000), np.uint8)
    found = norms_of(rows)
    assert (found.fourth, found.third.tolist()) == plain(rows)


@given(st.lists(st.integers(-(2**90), 2**90), min_size=1, max_size=5))
def test_limbs_hold_what_int64_would_not(values: list[int]) -> None:
    third = np.array(values, dtype=object) % 2**94 - 2**93  # the high limb is int64
    limbs = Norms(7, third).limbs()
    assert limbs.dtype == np.int64
    assert (limbs[1] >= 0).all()
    again = Norms.from_limbs(7, limbs)
    assert (again.fourth, again.third.tolist()) == (7, third.tolist())


def test_adding_taking_away_and_permuting() -> None:
    a, b = np.split(np.random.default_rng(1).integers(0, 256, (50, 6), np.uint8), [20])
    both = norms_of(np.concatenate([a, b]))
    rest = both + -norms_of(a)
    assert (rest.fourth, rest.third.tolist()) == plain(b)
    assert (Norms.none(6) + norms_of(b)).third.tolist() == plain(b)[1]
    order = np.array([5, 0, 1, 4, 3, 2])
    assert norms_of(a[:, order]).third.tolist() == norms_of(a).permuted(order).third.tolist()


def test_parts_as_large_as_are_exact_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tilecov.pipeline.norms._EXACT", 1000)
    monkeypatch.setattr("tilecov.pipeline.norms._VALUES", 1000)
    rows = np.random.default_rng(5).integers(0, 256, (60, 70), np.uint8)
    found = norms_of(rows[:, 3:69])
    assert (found.fourth, found.third.tolist()) == plain(rows[:, 3:69])


@pytest.mark.skipif(not is_compiled(), reason=NO_COMPILER)
def test_c_refuses_sizes_that_are_not_those_of_its_buffers() -> None:
    call = import_module("tilecov.pipeline._pixels").norms
    rows, squares, third = np.zeros(12, np.uint8), np.zeros(3, np.int64), np.zeros(4)
    call(rows, squares, third)
    for wrong in ((rows[:-1], squares, third), (rows, squares[:-1], third), (rows, squares, np.zeros(5))):
        with pytest.raises(ValueError, match="bytes"):
            call(*wrong)
    with pytest.raises(ValueError, match="too few"):
        call(rows[:0], squares[:0], third)
