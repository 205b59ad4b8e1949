"""Products of bytes in C: the integers of int64 arithmetic, on every kind of kernel."""

from collections.abc import Iterator
from itertools import combinations_with_replacement
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from compiled import A_COMPILER_IS_HERE, NO_COMPILER, assert_sizes_are_checked
from hypothesis import given, settings
from hypothesis import strategies as st

from tilecov.pipeline.device import choose_kernel, is_exact, kernel_in_c, rate_of
from tilecov.pipeline.exact import ExactAdder, _shared_out, packed_bytes
from tilecov.pipeline.units import compiled_exact, exact_functions

Rows = npt.NDArray[np.uint8]
Integers = npt.NDArray[Any]

CPU = torch.device("cpu")
SQUARE = 32
"""Rows of a diagonal tile of which all columns are added to at the most that begin with the same one."""
KINDS = ["amx", "avx2", "plain"]
"""The quickest first: the first one that is here is what users have."""


def test_it_is_compiled_where_a_compiler_is() -> None:
    """Installing goes on without it: this is where that would be seen."""
    assert compiled_exact is not None or not A_COMPILER_IS_HERE


@pytest.fixture(params=KINDS, scope="module")
def functions(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """All kinds that this machine can run."""
    if compiled_exact is None or not compiled_exact.choose(request.param):
        pytest.skip(f"no such units here, or {NO_COMPILER}")
    yield compiled_exact
    assert any(map(compiled_exact.choose, KINDS))


def about_128(rows: Rows) -> Integers:
    return rows.astype(np.int64) - 128


def added(functions: ModuleType, columns: list[Rows], kind: type) -> dict[tuple[int, int], Integers]:
    """Return all upper tiles after adding, to ones, the products of these tile columns, of different widths."""
    pairs = list(combinations_with_replacement(range(len(columns)), 2))
    tiles = {(i, j): np.ones((columns[i].shape[1], columns[j].shape[1]), kind) for i, j in pairs}
    with ExactAdder(functions, {}) as adder:
        ready = {j: adder.pack(j, rows) for j, rows in enumerate(columns)}
        adder.add(((pair, torch.from_numpy(tiles[pair])) for pair in reversed(pairs)), ready)
    for packed, rows in zip(ready.values(), columns, strict=True):
        np.testing.assert_array_equal(packed.sums[: packed.width], about_128(rows).sum(axis=0))
    return tiles


def assert_exact(tiles: dict[tuple[int, int], Integers], columns: list[Rows]) -> None:
    for (i, j), tile in tiles.items():
        wanted = 1 + about_128(columns[i]).T @ about_128(columns[j])
        if i != j:
            np.testing.assert_array_equal(tile, wanted)
            continue
        np.testing.assert_array_equal(np.triu(tile), np.triu(wanted))
        for start in range(0, len(tile), SQUARE):
            assert (tile[start : start + SQUARE, :start] == 1).all()  # left alone


@settings(max_examples=25)
@given(
    st.integers(1, 200),
    st.lists(st.sampled_from([1, 15, 16, 17, 31, 32, 33, 100, 300, 520]), min_size=1, max_size=3),
    st.integers(0, 2**32 - 1),
    st.sampled_from([np.int32, np.int64]),
)
def test_all_upper_tiles_are_exact(functions: ModuleType, count: int, widths: list[int], seed: int, kind: type) -> None:
    """Of rows that lie in wider ones, as the tile columns of a block do."""
    rows = np.random.default_rng(seed).integers(0, 256, (count, sum(widths) + 3), np.uint8)
    columns = np.split(rows[:, 2:-1], np.cumsum(widths)[:-1], axis=1)
    assert_exact(added(functions, columns, kind), columns)


@pytest.mark.parametrize("kind", [np.int32, np.int64])
@pytest.mark.parametrize("value", [0, 255])
def test_the_largest_sums_are_exact(functions: ModuleType, value: int, kind: type) -> None:
    """As many rows as are multiplied at a time, of the farthest values."""
    columns = [np.full((1 << 15, width), value, np.uint8) for width in (20, 40, 32)]
    assert_exact(added(functions, columns, kind), columns)


@pytest.mark.parametrize("kind", [np.int32, np.int64])
def test_rows_that_are_deep_enough_to_be_halved_are_exact(functions: ModuleType, kind: type) -> None:
    """Parts above a diagonal and on it, of even and of odd heights, and rows that are left over."""
    rng = np.random.default_rng(4)
    columns = [rng.integers(0, 2, (1030, width), np.uint8) * np.uint8(255) for width in (544, 33, 64)]
    assert_exact(added(functions, columns, kind), columns)


def test_threads_and_parts_change_nothing(functions: ModuleType) -> None:
    columns = [np.random.default_rng(2).integers(0, 256, (300, width), np.uint8) for width in (1100, 600)]
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert_exact(added(functions, columns, np.int32), columns)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("threads", "kind"), [(2, np.int64), (4, np.int32)])
def test_parts_that_are_cut_are_exact(
    functions: ModuleType, monkeypatch: pytest.MonkeyPatch, threads: int, kind: type
) -> None:
    """Three whole parts: one of them in two, or all of them in four, deep enough to be halved where that is quick."""
    counts: list[tuple[int, int]] = []

    def shared_out(parts: list[Any], number: int) -> list[Any]:
        found = _shared_out(parts, number)
        counts.append((len(parts), len(found)))
        return found

    monkeypatch.setattr("tilecov.pipeline.exact._shared_out", shared_out)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    count = 70 if functions.chosen() == "plain" else 1090
    columns = [np.random.default_rng(7).integers(0, 256, (count, width), np.uint8) for width in (1024, 512)]
    tiles = added(functions, columns, kind)
    assert counts == [(5, 6 if threads == 2 else 14), (1, 1)]
    for (i, j), tile in tiles.items():
        wanted = 1 + about_128(columns[i]).astype(float).T @ about_128(columns[j]).astype(float)  # below 2**53
        if i == j:
            tile, wanted = np.triu(tile), np.triu(wanted)  # noqa: PLW2901  (what is below is not wanted)
        np.testing.assert_array_equal(tile, wanted)


def test_memory_is_kept_for_the_next_rows(functions: ModuleType) -> None:
    room: dict[Any, Rows] = {}
    rng = np.random.default_rng(3)
    for count, most in ((100, 500), (64, 0), (700, 0)):  # what is to come is known, less leaves it, more makes it anew
        rows = rng.integers(0, 256, (count, 50), np.uint8)
        tile = torch.zeros((50, 50), dtype=torch.int32)
        with ExactAdder(functions, room, most) as adder:
            adder.add([((0, 0), tile)], {0: adder.pack(0, rows)})
        np.testing.assert_array_equal(np.triu(tile.numpy()), np.triu(about_128(rows).T @ about_128(rows)))
        assert len(room[0]) == len(room["left"]) == packed_bytes(max(count, 500), 50)


def test_the_proof_is_passed_and_the_kernel_chosen(functions: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = kernel_in_c(functions)
    assert is_exact(kernel)
    assert rate_of(kernel, 64, 32) > 0
    assert exact_functions() is (functions if functions.beats_int8() else None)
    assert functions.beats_int8() or functions.chosen() != "amx"
    monkeypatch.setattr("tilecov.pipeline.device.exact_functions", lambda: functions)
    for quickest in ("int8", "float32"):
        monkeypatch.setattr(
            "tilecov.pipeline.device.rate_of", lambda kernel, best=quickest, **_: float(kernel.name == best)
        )
        is_ours = quickest == "int8" or functions.chosen() == "amx"
        assert choose_kernel(CPU).functions is (functions if is_ours else None)
    assert choose_kernel(CPU, "int8").functions is functions
    assert choose_kernel(CPU, "float32").functions is None


def test_a_kernel_that_is_not_exact_is_not_chosen(functions: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor whose units, or whose compiler, gave other integers would go on without."""
    monkeypatch.setattr("tilecov.pipeline.device.exact_functions", lambda: functions)
    monkeypatch.setattr("tilecov.pipeline.device.is_exact", lambda kernel: kernel.functions is None)
    assert choose_kernel(CPU).functions is None


def _arguments(functions: ModuleType) -> dict[str, list[Any]]:
    """Sound arguments of each function, for 100 rows of 40 and of 50 values."""
    rows, sums = np.zeros(100 * 50, np.uint8), np.zeros(64, np.int32)
    room = np.zeros(functions.room(40, 50), np.uint8)
    left, right = np.zeros(packed_bytes(100, 40), np.uint8), np.zeros(packed_bytes(100, 50), np.uint8)
    total = np.zeros(40 * 50, np.int32)
    return {
        "pack": [rows, 50, 100, 50, right, sums, 0, 50],
        "turn": [left, left.copy()],
        "add": [total, 50, 4, left, right, 100, 40, 50, False, 0, 40, 0, 50, room],
    }


@pytest.mark.parametrize("name", ["pack", "turn", "add"])
def test_c_refuses_sizes_that_are_not_those_of_its_buffers(functions: ModuleType, name: str) -> None:
    sound = _arguments(functions)[name]
    assert_sizes_are_checked(getattr(functions, name), sound, lengths=[0] if name == "turn" else [])


def test_c_refuses_parts_that_a_tile_does_not_have(functions: ModuleType) -> None:
    arguments = _arguments(functions)
    for ends in ((0, 41, 0, 50), (0, 40, 0, 51), (16, 40, 0, 50), (0, 40, 16, 50), (32, 0, 0, 50)):
        with pytest.raises(ValueError, match=r"asked for|must be"):
            functions.add(*arguments["add"][:9], *ends, arguments["add"][-1])
    with pytest.raises(ValueError, match="asked for"):
        functions.add(*arguments["add"][:8], True, *arguments["add"][9:])  # no square
    for ends in ((0, 51), (16, 50)):
        with pytest.raises(ValueError, match=r"asked for|must be"):
            functions.pack(*arguments["pack"][:6], *ends)
