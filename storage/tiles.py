"""TileMatrix: a matrix in Zarr whose chunks are its tiles."""

import math
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import zarr
from zarr.abc.store import Store
from zarr.codecs import BytesCodec
from zarr.core.metadata import ArrayV3Metadata
from zarr.storage import LocalStore

from .objects import Folder, begin_flush
from .remotestore import remote_store
from .tiling import Tiling

Array = npt.NDArray[Any]

_PLAIN = ((BytesCodec(endian=sys.byteorder),), (BytesCodec(endian=None),))  # single bytes have no order
_SQUARE = 128
"""Rows and columns of a matrix that are copied together."""


def zarr_store(folder: Folder, *, read_only: bool = False) -> Store:
    """Return the Zarr store in ``folder``."""
    if folder.is_local:
        return LocalStore(folder.path(), read_only=read_only)
    return remote_store(folder, read_only=read_only)


def open_group(folder: Folder, *, writable: bool = False) -> zarr.Group:
    """Open the Zarr v3 group in ``folder``, making it first where it is to be written."""
    if writable:
        return zarr.open_group(zarr_store(folder), mode="a", zarr_format=3)
    return zarr.open_group(zarr_store(folder, read_only=True), mode="r", zarr_format=3)


def write_vector(group: zarr.Group, name: str, values: Array) -> None:
    """Write the vector ``name`` into ``group``, in one chunk."""
    array = group.create_array(
        name, shape=values.shape, chunks=(max(1, len(values)),), dtype=values.dtype, compressors=None, overwrite=True
    )
    array[:] = values


def read_vector(group: zarr.Group, name: str) -> Array:
    """Read the vector ``name`` of ``group``."""
    return np.asarray(cast("zarr.Array[Any]", group[name])[:])


def copy(target: Array, source: Array) -> None:
    """Copy a matrix into another of its shape.

    A transposed one is copied square by square, of which rows and columns stay in the cache: six times as fast as
    NumPy's own way.
    """
    if source.strides[0] >= source.strides[1]:
        target[...] = source
        return
    for row in range(0, len(source), _SQUARE):
        rows = slice(row, row + _SQUARE)
        for column in range(0, source.shape[1], _SQUARE):
            target[rows, column : column + _SQUARE] = source[rows, column : column + _SQUARE]


def _missing(dtype: np.dtype[Any]) -> float | int:
    """Return a value that no finished tile holds, so that a tile which was lost is never read as zeros."""
    if dtype.kind not in "fi":
        raise TypeError(f"{dtype} has no value to mark missing tiles with; use floats or signed integers")
    return float("nan") if dtype.kind == "f" else int(np.iinfo(dtype).min)


class MissingTileError(RuntimeError):
    """A tile that should be there was never written, or was lost."""


@dataclass(frozen=True)
class TileMatrix:
    """A matrix in Zarr, one chunk a tile, one writer a chunk; tiles are plain NumPy arrays.

    Parameters
    ----------
    array : zarr.Array
        (rows, columns), chunks (row tile, column tile).
    """

    array: "zarr.Array[Any]"

    @classmethod
    def create(
        cls, group: zarr.Group, name: str, shape: tuple[int, int], tile: tuple[int, int], dtype: str
    ) -> "TileMatrix":
        """Make the matrix ``name`` in ``group``, or open it where one of the same form is there already.

        Raises
        ------
        ValueError
            Where one of another shape, tile or dtype is there.
        """
        tile = (min(tile[0], shape[0]), min(tile[1], shape[1]))
        if name in group:
            array = cast("zarr.Array[Any]", group[name])
            found, wanted = (array.shape, array.chunks, array.dtype), (shape, tile, np.dtype(dtype))
            if found != wanted:
                raise ValueError(f"{name} is there already as {found}, not {wanted}; choose another folder")
            return cls(array)
        fill = _missing(np.dtype(dtype))
        # Covariances and eigenvectors hardly compress; uncompressed tiles cost no second copy in memory.
        array = group.create_array(name, shape=shape, chunks=tile, dtype=dtype, fill_value=fill, compressors=None)
        return cls(array)

    @classmethod
    def open(cls, group: zarr.Group, name: str) -> "TileMatrix":
        """Open the matrix ``name`` of ``group``; KeyError where there is none."""
        return cls(cast("zarr.Array[Any]", group[name]))

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, columns = self.array.shape
        return int(rows), int(columns)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the values."""
        return np.dtype(self.array.dtype)

    @property
    def rows(self) -> Tiling:
        """How the rows are cut."""
        return Tiling(self.shape[0], int(self.array.chunks[0]))

    @property
    def columns(self) -> Tiling:
        """How the columns are cut."""
        return Tiling(self.shape[1], int(self.array.chunks[1]))

    def pairs(self) -> Iterator[tuple[int, int]]:
        """Yield (i, j) of every tile, row by row."""
        return ((i, j) for i in range(len(self.rows)) for j in range(len(self.columns)))

    def read(self, i: int, j: int) -> Array:
        """Return tile (i, j); MissingTileError where it was never written."""
        tile = self._read_file(i, j)
        if tile is None:
            tile = np.asarray(self.array[self.rows.span(i), self.columns.span(j)])
        corner = tile[0, 0]
        if np.isnan(corner) if tile.dtype.kind == "f" else corner == _missing(tile.dtype):
            raise MissingTileError(f"tile ({i}, {j}) of {self.array.name} is missing; run the same command again")
        return tile

    def _file(self, i: int, j: int) -> Path | None:
        """Return where tile (i, j) is nothing but its values in a local file; None where only Zarr knows."""
        store, metadata = self.array.store, self.array.metadata
        plain = isinstance(metadata, ArrayV3Metadata) and metadata.codecs in _PLAIN
        if not plain or not isinstance(store, LocalStore):
            return None
        return store.root / self.array.path / metadata.encode_chunk_key((i, j))

    def _read_file(self, i: int, j: int) -> Array | None:
        """Return tile (i, j) of a local file, without the copies that Zarr makes; None where Zarr has to read it."""
        path, size = self._file(i, j), self.dtype.itemsize * math.prod(self.array.chunks)
        if path is None or not path.exists() or path.stat().st_size != size:
            return None  # missing or damaged: Zarr says so
        return np.fromfile(path, self.dtype).reshape(self.array.chunks)[: self.rows.width(i), : self.columns.width(j)]

    def _write_file(self, i: int, j: int, values: Array) -> bool:
        """Write tile (i, j) as Zarr would, without its copies; return whether that could be done."""
        path = self._file(i, j)
        if path is None or self.array.store.read_only:  # as Zarr says
            return False
        if values.shape != self.array.chunks or values.dtype != self.dtype or not values.flags.c_contiguous:
            whole = np.full(self.array.chunks, self.array.fill_value, self.dtype)
            copy(whole[: values.shape[0], : values.shape[1]], values)
            values = whole
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
        try:
            with beside.open("wb") as stream:
                stream.write(values.data.cast("B"))
                stream.flush()
                begin_flush(stream)
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
        return True

    def write(self, i: int, j: int, values: Array) -> None:
        """Write tile (i, j), whole; ValueError where the values have another shape."""
        wanted = (self.rows.width(i), self.columns.width(j))
        if values.shape != wanted:
            raise ValueError(f"tile ({i}, {j}) has shape {wanted}, values of {values.shape} were given")
        if not self._write_file(i, j, values):
            self.array[self.rows.span(i), self.columns.span(j)] = values

    def write_columns(self, columns: slice, values: Array) -> None:
        """Write all rows of ``columns``, (rows, columns); one writer a tile column."""
        for j, own in enumerate(self.columns.spans()):
            part = slice(max(own.start, columns.start), min(own.stop, columns.stop))
            inside = slice(part.start - columns.start, part.stop - columns.start)
            for i, rows in enumerate(self.rows.spans() if part.start < part.stop else ()):
                if part == own:
                    self.write(i, j, values[rows, inside])
                else:
                    self.array[rows, part] = values[rows, inside]

    def read_band(self, i: int) -> Array:
        """Return tile row ``i``, (t, columns)."""
        return np.concatenate([self.read(i, j) for j in range(len(self.columns))], axis=1)

    def read_all(self) -> Array:
        """Return the whole matrix, without a second copy of it."""
        whole = np.empty(self.shape, self.dtype)
        for i, j in self.pairs():
            whole[self.rows.span(i), self.columns.span(j)] = self.read(i, j)
        return whole
