"""TileMatrix: any shape and tile, nothing lost unseen, and plain Zarr to everyone else."""

import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import numpy.typing as npt
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.storage import MemoryStore

from tilecov.storage.objects import Folder
from tilecov.storage.tiles import MissingTileError, TileMatrix, open_group, read_vector, write_vector

Array = npt.NDArray[Any]

SIGNED = ["float32", "float64", "int8", "int16", "int32", "int64"]
sizes = st.tuples(st.integers(1, 13), st.integers(1, 13))
tiles = st.tuples(st.integers(1, 15), st.integers(1, 15))


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Folder]:
    yield Folder(str(tmp_path / "m.zarr") if request.param == "local" else f"memory://{uuid.uuid4().hex}/m.zarr")
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]


def fresh_group() -> zarr.Group:
    return zarr.open_group(MemoryStore(), mode="w", zarr_format=3)


def pairs(matrix: TileMatrix) -> list[tuple[int, int]]:
    return [(i, j) for i in range(len(matrix.rows)) for j in range(len(matrix.columns))]


def part(matrix: TileMatrix, values: Array, i: int, j: int) -> Array:
    return values[matrix.rows.span(i), matrix.columns.span(j)]


def fill(matrix: TileMatrix, values: Array) -> None:
    for i, j in pairs(matrix):
        matrix.write(i, j, part(matrix, values, i, j))


def example(shape: tuple[int, int], dtype: str, seed: int = 0) -> Array:
    """Return values with zeros, negative zeros, infinities and the largest numbers among them."""
    rng, kind = np.random.default_rng(seed), np.dtype(dtype)
    if kind.kind == "f":
        special = np.array([0, -0.0, np.inf, -np.inf, np.finfo(dtype).max, np.finfo(dtype).tiny, 1.5], dtype)
        return np.where(rng.random(shape) < 0.5, rng.choice(special, shape), rng.normal(size=shape)).astype(dtype)
    limits = np.iinfo(dtype)
    special = np.array([0, 1, limits.max, limits.min + 1], dtype)
    return rng.choice(special, shape)


# --- what is written is read, by us and by others


@settings(max_examples=40)
@given(shape=sizes, tile=tiles, dtype=st.sampled_from(SIGNED), seed=st.integers(0, 99), data=st.data())
def test_tiles_in_any_order_make_the_matrix(
    shape: tuple[int, int], tile: tuple[int, int], dtype: str, seed: int, data: st.DataObject
) -> None:
    group, values = fresh_group(), example(shape, dtype, seed)
    matrix = TileMatrix.create(group, "m", shape, tile, dtype)
    for i, j in data.draw(st.permutations(pairs(matrix))):
        matrix.write(i, j, part(matrix, values, i, j))
    for reader in (matrix, TileMatrix.open(group, "m")):
        assert reader.shape == shape
        assert reader.dtype == np.dtype(dtype)
        assert all(np.array_equal(reader.read(i, j), part(matrix, values, i, j)) for i, j in pairs(matrix))
        bands = [reader.read_band(i) for i in range(len(reader.rows))]
        assert all(np.array_equal(band, values[span]) for band, span in zip(bands, reader.rows.spans(), strict=True))
        whole = reader.read_all()
        assert whole.dtype == np.dtype(dtype)
        assert whole.tobytes() == values.tobytes()  # the sign of zero too


@settings(max_examples=30)
@given(shape=sizes, tile=tiles)
def test_a_chunk_is_a_tile(shape: tuple[int, int], tile: tuple[int, int]) -> None:
    group = fresh_group()
    matrix = TileMatrix.create(group, "m", shape, tile, "float64")
    assert (
        (matrix.rows.tile, matrix.columns.tile)
        == matrix.array.chunks
        == (min(tile[0], shape[0]), min(tile[1], shape[1]))
    )
    assert (matrix.rows.size, matrix.columns.size) == shape
    assert matrix.array.shards is None
    before = matrix.array.nchunks_initialized
    for written, (i, j) in enumerate(pairs(matrix), start=before + 1):
        matrix.write(i, j, np.zeros(part(matrix, np.empty(shape), i, j).shape))
        assert matrix.array.nchunks_initialized == written
    assert matrix.array.nchunks_initialized == matrix.array.nchunks


@pytest.mark.parametrize("dtype", SIGNED)
def test_zarr_alone_reads_the_whole_matrix(folder: Folder, dtype: str) -> None:
    values = example((11, 7), dtype)
    fill(TileMatrix.create(open_group(folder, writable=True), "m", (11, 7), (4, 3), dtype), values)
    where = folder.path() if folder.is_local else folder.url
    group = zarr.open(where, mode="r")
    assert isinstance(group, zarr.Group)
    assert group.metadata.zarr_format == 3
    array = zarr.open_array(where, path="m", mode="r")
    assert array.dtype == np.dtype(dtype)
    assert np.asarray(array[:]).tobytes() == values.tobytes()
    assert TileMatrix.open(open_group(folder), "m").read_all().tobytes() == values.tobytes()


@pytest.mark.parametrize("dtype", SIGNED)
def test_a_tile_of_zeros_is_not_missing(folder: Folder, dtype: str) -> None:
    group = open_group(folder, writable=True)
    matrix = TileMatrix.create(group, "m", (5, 5), (2, 2), dtype)
    for i, j in pairs(matrix):
        matrix.write(i, j, np.zeros_like(part(matrix, np.empty((5, 5), dtype), i, j)))
    assert not TileMatrix.open(open_group(folder), "m").read_all().any()


@pytest.mark.parametrize("dtype", SIGNED)
@pytest.mark.parametrize("corner", ["zero", "one", "largest"])
def test_no_first_value_makes_a_tile_missing(dtype: str, corner: str) -> None:
    largest = np.finfo(dtype).max if np.dtype(dtype).kind == "f" else np.iinfo(dtype).max
    values = np.full((3, 3), 7, dtype)
    values[0, 0] = {"zero": 0, "one": 1, "largest": largest}[corner]
    matrix = TileMatrix.create(fresh_group(), "m", (3, 3), (3, 3), dtype)
    matrix.write(0, 0, values)
    assert np.array_equal(matrix.read(0, 0), values)


@pytest.mark.parametrize("dtype", ["uint8", "uint32"])
def test_unsigned_tiles_are_right_or_refused(dtype: str) -> None:
    try:
        matrix = TileMatrix.create(fresh_group(), "rows", (2, 2), (2, 2), dtype)
    except (TypeError, ValueError):
        return
    matrix.write(0, 0, np.array([[0, 1], [2, 3]], dtype))
    assert np.array_equal(matrix.read(0, 0), [[0, 1], [2, 3]])


def test_a_tile_can_be_written_again(folder: Folder) -> None:
    matrix = TileMatrix.create(open_group(folder, writable=True), "m", (4, 4), (2, 2), "float64")
    for value in (1.0, 0.0, 2.0):
        matrix.write(1, 0, np.full((2, 2), value))
        assert np.array_equal(matrix.read(1, 0), np.full((2, 2), value))


def test_many_writers_one_tile_each(folder: Folder) -> None:
    values = example((40, 33), "float32")
    matrix = TileMatrix.create(open_group(folder, writable=True), "m", values.shape, (5, 6), "float32")
    start = threading.Barrier(8)

    def work(writer: int) -> None:
        start.wait()
        for i, j in pairs(matrix)[writer::8]:
            matrix.write(i, j, part(matrix, values, i, j))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert matrix.read_all().tobytes() == values.tobytes()


@pytest.mark.parametrize("dtype", SIGNED)
def test_files_are_those_that_zarr_writes(tmp_path: Path, dtype: str) -> None:
    """Of tiles that are whole, of narrower ones, of transposed ones, and of values of another type."""
    values = example((5, 7), dtype)
    chunks = [f"{i}/{j}" for i in range(3) for j in range(3)]
    ways: list[Callable[[Array], Array]] = [
        np.ascontiguousarray,
        np.asfortranarray,
        lambda tile: tile.astype("float64" if np.dtype(dtype).kind == "f" else "int64"),
    ]
    for number, way in enumerate(ways):
        ours, zarrs = (Folder(str(tmp_path / f"{who}{number}")) for who in ("ours", "zarr"))
        matrix = TileMatrix.create(open_group(ours, writable=True), "m", (5, 7), (2, 3), dtype)
        assert all(matrix._write_file(i, j, part(matrix, way(values), i, j)) for i, j in pairs(matrix))
        TileMatrix.create(open_group(zarrs, writable=True), "m", (5, 7), (2, 3), dtype).array[:] = values
        for name in chunks:
            assert ours.read(f"m/c/{name}") == zarrs.read(f"m/c/{name}")
        assert {file.name for file in Path(ours.path("m/c/1")).iterdir()} == {"0", "1", "2"}  # nothing beside them


def test_a_store_that_is_read_only_stays_so(folder: Folder) -> None:
    fill(TileMatrix.create(open_group(folder, writable=True), "m", (4, 4), (2, 2), "float64"), np.ones((4, 4)))
    matrix = TileMatrix.open(open_group(folder), "m")
    with pytest.raises(ValueError, match=r"read.only"):
        matrix.write(0, 0, np.zeros((2, 2)))
    assert (matrix.read_all() == 1).all()


@settings(max_examples=30)
@given(sizes, tiles, st.data())
def test_columns_are_written_whatever_tiles_they_cut(
    shape: tuple[int, int], tile: tuple[int, int], data: st.DataObject
) -> None:
    values = example(shape, "float32")
    with tempfile.TemporaryDirectory() as place:
        matrix = TileMatrix.create(open_group(Folder(place), writable=True), "m", shape, tile, "float32")
        cuts = sorted({0, shape[1], *data.draw(st.lists(st.integers(0, shape[1])))})
        for start, stop in pairwise(cuts):
            matrix.write_columns(slice(start, stop), values[:, start:stop])
        assert matrix.read_all().tobytes() == values.tobytes()


# --- what is lost is said


@pytest.mark.parametrize("dtype", SIGNED)
def test_a_tile_never_written_is_missing(folder: Folder, dtype: str) -> None:
    matrix = TileMatrix.create(open_group(folder, writable=True), "cov", (5, 4), (2, 2), dtype)
    for i, j in pairs(matrix):
        with pytest.raises(MissingTileError, match=rf"{i}, {j}.*cov"):
            matrix.read(i, j)
    with pytest.raises(MissingTileError):
        matrix.read_all()


@settings(max_examples=25)
@given(shape=sizes, tile=tiles, dtype=st.sampled_from(SIGNED), data=st.data())
def test_one_missing_tile_is_missed_and_no_other(
    shape: tuple[int, int], tile: tuple[int, int], dtype: str, data: st.DataObject
) -> None:
    matrix = TileMatrix.create(fresh_group(), "m", shape, tile, dtype)
    values = example(shape, dtype)
    lost = data.draw(st.sampled_from(pairs(matrix)))
    for i, j in pairs(matrix):
        if (i, j) != lost:
            matrix.write(i, j, part(matrix, values, i, j))
    readers: list[Callable[[], Array]] = [
        matrix.read_all,
        lambda: matrix.read_band(lost[0]),
        lambda: matrix.read(*lost),
    ]
    for reader in readers:
        with pytest.raises(MissingTileError, match=f"{lost[0]}, {lost[1]}"):
            reader()
    for i, j in pairs(matrix):
        if (i, j) != lost:
            assert np.array_equal(matrix.read(i, j), part(matrix, values, i, j))
    assert all(
        np.array_equal(matrix.read_band(i), values[matrix.rows.span(i)])
        for i in range(len(matrix.rows))
        if i != lost[0]
    )


@pytest.mark.parametrize("dtype", SIGNED)
def test_a_tile_whose_file_is_lost_is_missing(folder: Folder, dtype: str) -> None:
    matrix = TileMatrix.create(open_group(folder, writable=True), "m", (5, 5), (2, 2), dtype)
    fill(matrix, example((5, 5), dtype))
    folder.remove("m/c/1/2")
    matrix = TileMatrix.open(open_group(folder), "m")
    with pytest.raises(MissingTileError, match="1, 2"):
        matrix.read(1, 2)
    assert matrix.read(1, 1).shape == (2, 2)


def test_a_tile_that_was_read_is_the_reader_s(folder: Folder) -> None:
    """Neither the reader's changes nor another tile in its place go through."""
    matrix = TileMatrix.create(open_group(folder, writable=True), "m", (5, 5), (2, 2), "float64")
    before = np.ones((2, 2))
    matrix.write(0, 1, before)
    assert (matrix._read_file(0, 1) is None) == (not folder.is_local)  # neither way is taken for the other
    tile = matrix.read(0, 1)
    matrix.write(0, 1, 3 * before)
    assert (tile == before).all()
    tile[:] = 2
    assert (matrix.read(0, 1) == 3 * before).all()
    folder.remove("m/c/0/1")
    assert (tile == 2).all()


def test_a_tile_whose_file_is_cut_is_never_read_as_numbers(folder: Folder) -> None:
    matrix = TileMatrix.create(open_group(folder, writable=True), "m", (4, 4), (2, 2), "float64")
    fill(matrix, np.ones((4, 4)))
    data = folder.read("m/c/0/1")
    for length in range(len(data)):
        folder.write("m/c/0/1", data[:length])
        with pytest.raises((ValueError, RuntimeError)):
            matrix.read(0, 1)


@pytest.mark.parametrize(("i", "j"), [(3, 0), (0, 2), (-1, 0), (0, -1), (100, 100)])
def test_a_tile_outside_is_an_index_error(i: int, j: int) -> None:
    matrix = TileMatrix.create(fresh_group(), "m", (5, 4), (2, 2), "float64")
    fill(matrix, np.ones((5, 4)))
    with pytest.raises(IndexError):
        matrix.read(i, j)
    with pytest.raises(IndexError):
        matrix.write(i, j, np.ones((2, 2)))


@pytest.mark.parametrize(
    ("i", "j", "shape"), [(0, 0, (1, 2)), (0, 0, (2, 1)), (0, 0, ()), (2, 1, (2, 2)), (0, 0, (1, 2, 2))]
)
def test_a_tile_is_written_whole_or_refused(i: int, j: int, shape: tuple[int, ...]) -> None:
    matrix = TileMatrix.create(fresh_group(), "m", (5, 4), (2, 2), "float64")
    with pytest.raises(ValueError, match=r"shape|\("):
        matrix.write(i, j, np.ones(shape))


# --- the same matrix again, or another one


def test_the_same_form_is_opened_with_what_is_in_it(folder: Folder) -> None:
    values = example((5, 4), "float32")
    fill(TileMatrix.create(open_group(folder, writable=True), "m", (5, 4), (2, 30), "float32"), values)
    again = TileMatrix.create(open_group(folder, writable=True), "m", (5, 4), (2, 30), "float32")
    assert again.read_all().tobytes() == values.tobytes()


@pytest.mark.parametrize(("shape", "tile", "dtype"), [
    ((6, 4), (2, 3), "float32"),
    ((5, 5), (2, 3), "float32"),
    ((4, 5), (2, 3), "float32"),
    ((5, 4), (3, 3), "float32"),
    ((5, 4), (2, 4), "float32"),
    ((5, 4), (2, 3), "float64"),
    ((5, 4), (2, 3), "int32"),
])  # fmt: skip
def test_another_form_is_refused_and_what_was_there_stays(
    folder: Folder, shape: tuple[int, int], tile: tuple[int, int], dtype: str
) -> None:
    group, values = open_group(folder, writable=True), example((5, 4), "float32")
    fill(TileMatrix.create(group, "cov", (5, 4), (2, 3), "float32"), values)
    with pytest.raises(ValueError, match=r"cov") as refusal:
        TileMatrix.create(group, "cov", shape, tile, dtype)
    assert str(shape) in str(refusal.value)
    assert str((5, 4)) in str(refusal.value)
    assert dtype in str(refusal.value)
    assert TileMatrix.open(open_group(folder), "cov").read_all().tobytes() == values.tobytes()


def test_a_matrix_that_is_not_there_is_a_key_error(folder: Folder) -> None:
    with pytest.raises(KeyError, match="nothing"):
        TileMatrix.open(open_group(folder, writable=True), "nothing")


def test_a_group_that_is_not_there_is_a_file_not_found_error(folder: Folder) -> None:
    with pytest.raises(FileNotFoundError):
        open_group(folder)
    assert not folder.exists("")


def test_a_group_opened_for_reading_is_not_written(folder: Folder) -> None:
    TileMatrix.create(open_group(folder, writable=True), "m", (2, 2), (2, 2), "float64").write(0, 0, np.ones((2, 2)))
    group = open_group(folder)
    with pytest.raises(ValueError, match="read-only"):
        TileMatrix.open(group, "m").write(0, 0, np.zeros((2, 2)))
    with pytest.raises(ValueError, match="read-only"):
        TileMatrix.create(group, "n", (2, 2), (2, 2), "float64")
    assert TileMatrix.open(group, "m").read_all().all()


def test_matrices_and_vectors_share_a_group(folder: Folder) -> None:
    group = open_group(folder, writable=True)
    for name, size in (("a", 3), ("b", 4)):
        TileMatrix.create(group, name, (size, size), (2, 2), "float64").write(0, 0, np.full((2, 2), size))
        write_vector(group, f"{name}-mean", np.full(size, size))
    reader = open_group(folder)
    assert [TileMatrix.open(reader, name).read(0, 0)[0, 0] for name in "ab"] == [3, 4]
    assert [len(read_vector(reader, f"{name}-mean")) for name in "ab"] == [3, 4]


# --- vectors


@settings(max_examples=40)
@given(st.integers(0, 50), st.sampled_from([*SIGNED, "uint8", "uint64", "bool"]), st.integers(0, 99))
def test_a_vector_is_read_as_it_was_written(length: int, dtype: str, seed: int) -> None:
    group = fresh_group()
    rng = np.random.default_rng(seed)
    for values in (
        np.zeros(length, dtype),
        rng.integers(0, 2, length).astype(dtype),
        example((1, 7), "float64", seed)[0],
    ):
        write_vector(group, "v", values)  # each time over the one before
        read = read_vector(group, "v")
        assert read.dtype == values.dtype
        assert read.tobytes() == values.tobytes()


def test_zarr_alone_reads_a_vector(folder: Folder) -> None:
    write_vector(open_group(folder, writable=True), "mean", np.arange(5.0))
    where = folder.path() if folder.is_local else folder.url
    assert np.array_equal(np.asarray(zarr.open_array(where, path="mean", mode="r")[:]), np.arange(5.0))
