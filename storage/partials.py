"""Partial moments of one task: tiles as plain files under a fresh folder, each with a checksum in the commit record."""

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .objects import Folder

Array = npt.NDArray[Any]


class DamagedTileError(RuntimeError):
    """A partial tile is missing or is not what was committed."""


@dataclass(frozen=True)
class Partial:
    """Tiles that one task wrote.

    Parameters
    ----------
    folder : Folder
        Fresh: no other attempt writes here.
    """

    folder: Folder

    def write(self, name: str, values: Array) -> dict[str, Any]:
        """Write an array; return what ``read`` needs to find it again."""
        data = np.ascontiguousarray(values).data.cast("B") if values.size else memoryview(b"")
        self.folder.write(name, data)
        return {"name": name, "shape": list(values.shape), "dtype": values.dtype.str, "crc32": zlib.crc32(data)}

    def read(self, record: dict[str, Any]) -> Array:
        """Return the array that ``write`` gave this record for.

        Raises
        ------
        DamagedTileError
            Where it is missing or its checksum differs.
        """
        where = self.folder.path(record["name"])
        try:
            data = self.folder.read(record["name"])
        except FileNotFoundError as error:
            raise DamagedTileError(f"{where} is missing") from error
        if zlib.crc32(data) != record["crc32"]:
            raise DamagedTileError(f"{where} is damaged: its checksum is {zlib.crc32(data)}, not {record['crc32']}")
        return np.frombuffer(data, record["dtype"]).reshape(record["shape"])
