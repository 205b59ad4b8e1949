"""Partial: a tile is read as it was written, or said to be damaged."""

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tilecov.storage.objects import Folder
from tilecov.storage.partials import DamagedTileError, Partial

Array = npt.NDArray[Any]

quick = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
dtypes = (
    hnp.integer_dtypes()
    | hnp.unsigned_integer_dtypes()
    | hnp.floating_dtypes(sizes=(16, 32, 64))
    | hnp.boolean_dtypes()
)
arrays = hnp.arrays(dtypes, hnp.array_shapes(min_dims=0, max_dims=3, max_side=5))


@pytest.fixture(params=["local", "memory"])
def partial(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Partial]:
    yield Partial(Folder(str(tmp_path / "p") if request.param == "local" else f"memory://{uuid.uuid4().hex}/p"))
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]


def same(read: Array, values: Array) -> bool:
    return read.shape == values.shape and read.dtype == values.dtype and read.tobytes() == values.tobytes()


@quick
@given(values=arrays)
def test_what_is_written_is_read(partial: Partial, values: Array) -> None:
    record = partial.write("tile", values)
    assert same(partial.read(record), values)
    assert same(partial.read(json.loads(json.dumps(record))), values)  # a commit record is JSON


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)])
def test_an_array_without_values_is_written_too(partial: Partial, shape: tuple[int, ...]) -> None:
    values = np.empty(shape)
    assert same(partial.read(partial.write("tile", values)), values)


@pytest.mark.parametrize("view", ["transposed", "strided", "reversed", "fortran", "broadcast"])
def test_how_an_array_lies_in_memory_does_not_matter(partial: Partial, view: str) -> None:
    base = np.arange(24, dtype=np.int64).reshape(4, 6)
    values: Array = {
        "transposed": base.T,
        "strided": base[::2, 1::3],
        "reversed": base[::-1, ::-1],
        "fortran": np.asfortranarray(base),
        "broadcast": np.broadcast_to(base[0], (3, 6)),
    }[view]
    record = partial.write("tile", values)
    assert same(partial.read(record), values)
    assert record == partial.write("tile", values.copy())


def test_tiles_of_one_partial_do_not_mix(partial: Partial) -> None:
    tiles = {f"{i}-{j}": np.full((2, 3), 10 * i + j) for i in range(3) for j in range(3)}
    found = {name: partial.write(name, values) for name, values in tiles.items()}
    for name, values in tiles.items():
        assert same(Partial(Folder(partial.folder.url)).read(found[name]), values)
    assert sorted(partial.folder.names()) == sorted(tiles)


def test_equal_arrays_have_equal_records(tmp_path: Path) -> None:
    one, other = (Partial(Folder(str(tmp_path / name))) for name in "ab")
    assert one.write("t", np.arange(5)) == other.write("t", np.arange(5))
    assert one.write("t", np.arange(5)) != one.write("t", np.arange(1, 6))


# --- damage


def test_a_missing_tile_is_named(partial: Partial) -> None:
    record = partial.write("0-1", np.ones(3))
    partial.write("0-2", np.ones(3))
    partial.folder.remove("0-1")
    with pytest.raises(DamagedTileError, match=r"p/0-1 is missing"):
        partial.read(record)


def test_a_missing_folder_is_a_missing_tile(partial: Partial) -> None:
    record = partial.write("0-1", np.ones(3))
    partial.folder.remove()
    with pytest.raises(DamagedTileError, match="0-1"):
        partial.read(record)


def test_a_tile_cut_anywhere_is_damaged(partial: Partial) -> None:
    values = np.zeros((3, 2), np.int32)  # zeros: the checksum must see the length too
    record = partial.write("0-1", values)
    for data in (*(bytes(length) for length in range(24)), bytes(25), bytes(28), bytes(48)):
        partial.folder.write("0-1", data)
        with pytest.raises(DamagedTileError, match="0-1 is damaged"):
            partial.read(record)


@quick
@given(values=arrays.filter(lambda values: values.nbytes > 0), data=st.data())
def test_any_changed_bit_is_damage(partial: Partial, values: Array, data: st.DataObject) -> None:
    record = partial.write("tile", values)
    raw = bytearray(partial.folder.read("tile"))
    bit = data.draw(st.integers(0, 8 * len(raw) - 1))
    raw[bit // 8] ^= 1 << bit % 8
    partial.folder.write("tile", bytes(raw))
    with pytest.raises(DamagedTileError, match="checksum"):
        partial.read(record)


def test_another_tile_in_its_place_is_damage(partial: Partial) -> None:
    record = partial.write("0-1", np.arange(6))
    partial.write("0-1", np.arange(1, 7))
    with pytest.raises(DamagedTileError):
        partial.read(record)


def test_damage_in_one_tile_leaves_the_others(partial: Partial) -> None:
    records = [partial.write(f"{i}", np.full(4, i)) for i in range(3)]
    partial.folder.write("1", b"x")
    assert same(partial.read(records[0]), np.full(4, 0))
    assert same(partial.read(records[2]), np.full(4, 2))
