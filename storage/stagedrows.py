"""Staged rows of one unit: a Zarr array of row blocks x tile columns."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import zarr

from .objects import Folder
from .partials import DamagedTileError
from .tiles import open_group, zarr_store
from .tiling import Tiling

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class StagedRows:
    """Rows of one unit, (n, d), in chunks of (block of rows, tile of columns).

    Parameters
    ----------
    array : zarr.Array
    """

    array: "zarr.Array[Any]"

    @classmethod
    def create(cls, folder: Folder, size: int, block: int, tile: int, dtype: str) -> "StagedRows":
        """Make an empty array in the fresh ``folder``."""
        array = zarr.create_array(
            zarr_store(folder),
            name="rows",
            shape=(0, size),
            chunks=(block, min(tile, size)),
            dtype=dtype,
            compressors=None,
            fill_value=0,
            config={"write_empty_chunks": True},  # a chunk that is not there was lost
        )
        return cls(array)

    @classmethod
    def open(cls, folder: Folder) -> "StagedRows":
        """Open the array in ``folder``; DamagedTileError where there is none."""
        try:
            return cls(cast("zarr.Array[Any]", open_group(folder)["rows"]))
        except (FileNotFoundError, KeyError, ValueError) as error:  # a description that was cut is no JSON
            raise DamagedTileError(f"staged rows of {folder.url} are missing or damaged: {error}") from error

    def append(self, block: Array) -> None:
        """Write a block of rows after the others; all but the last fill their chunks."""
        start = self.array.shape[0]
        self.array.resize((start + len(block), self.array.shape[1]))
        self.array[start:] = block

    def blocks(self) -> Iterator[slice]:
        """Yield the ranges of rows that are chunks."""
        rows = self.array.shape[0]
        return Tiling(rows, self.array.chunks[0]).spans() if rows else iter(())

    def read(self, rows: slice, columns: slice) -> Array:
        """Return one chunk; DamagedTileError where it has another size. What is in it, its sum tells."""
        try:
            return np.asarray(self.array[rows, columns])
        except ValueError as error:
            where = f"rows {rows.start} to {rows.stop} of {self.array.store_path}"
            message = f"{where}, columns {columns.start} to {columns.stop}, are damaged: {error}"
            raise DamagedTileError(message) from error
