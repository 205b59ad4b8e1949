"""TileMatrix: a matrix in Zarr whose chunks are its tiles."""

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import zarr
from zarr.abc.store import Store
from zarr.codecs import BytesCodec
from zarr.core.metadata import ArrayV3Metadata
from zarr.storage import LocalStore

from .objects import Folder
from .remotestore import remote_store
from .tiling import Tiling

Array = npt.NDArray[Any]


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

    def read(self, i: int, j: int) -> Array:
        """Return tile (i, j); MissingTileError where it was never written."""
        tile = self._read_file(i, j)
        if tile is None:
            tile = np.asarray(self.array[self.rows.span(i), self.columns.span(j)])
        corner = tile[0, 0]
        if np.isnan(corner) if tile.dtype.kind == "f" else corner == _missing(tile.dtype):
            raise MissingTileError(f"tile ({i}, {j}) of {self.array.name} is missing; run the same command again")
        return tile

    def _read_file(self, i: int, j: int) -> Array | None:
        """Return tile (i, j) of a local file, without the copies that Zarr makes; None where Zarr has to read it."""
        store, metadata = self.array.store, self.array.metadata
        plain = isinstance(metadata, ArrayV3Metadata) and metadata.codecs == (BytesCodec(endian=sys.byteorder),)
        if not plain or not isinstance(store, LocalStore):
            return None
        path = store.root / self.array.path / metadata.encode_chunk_key((i, j))
        if not path.exists() or path.stat().st_size != self.dtype.itemsize * math.prod(self.array.chunks):
            return None  # missing or damaged: Zarr says so
        return np.fromfile(path, self.dtype).reshape(self.array.chunks)[: self.rows.width(i), : self.columns.width(j)]

    def write(self, i: int, j: int, values: Array) -> None:
        """Write tile (i, j), whole; ValueError where the values have another shape."""
        wanted = (self.rows.width(i), self.columns.width(j))
        if values.shape != wanted:
            raise ValueError(f"tile ({i}, {j}) has shape {wanted}, values of {values.shape} were given")
        self.array[self.rows.span(i), self.columns.span(j)] = values

    def write_columns(self, columns: slice, values: Array) -> None:
        """Write all rows of ``columns``, (rows, columns); one writer a tile column."""
        for span in self.rows.spans():
            self.array[span, columns] = values[span]

    def read_band(self, i: int) -> Array:
        """Return tile row ``i``, (t, columns)."""
        return np.concatenate([self.read(i, j) for j in range(len(self.columns))], axis=1)

    def read_all(self) -> Array:
        """Return the whole matrix, without a second copy of it."""
        whole = np.empty(self.shape, self.dtype)
        for (i, rows), (j, columns) in _pairs(self.rows, self.columns):
            whole[rows, columns] = self.read(i, j)
        return whole


def _pairs(rows: Tiling, columns: Tiling) -> Iterator[tuple[tuple[int, slice], tuple[int, slice]]]:
    return ((row, column) for row in enumerate(rows.spans()) for column in enumerate(columns.spans()))
