"""Partial moments of one task: tiles as plain files under a fresh folder, each with a checksum in the commit record."""

from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from imagecodecs import deflate_crc32 as crc32  # libdeflate's, ten times as fast as zlib's

from .objects import Folder

Array = npt.NDArray[Any]

WRITERS = 4
"""Arrays that are being written at a time, and so in memory."""


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
        checksum = crc32(cast("bytes", data))  # which takes any buffer
        return {"name": name, "shape": list(values.shape), "dtype": values.dtype.str, "crc32": checksum}

    def write_all(self, named: Iterable[tuple[str, Array]]) -> list[dict[str, Any]]:
        """Write arrays as ``write`` does, a few at a time, since flushing each to the disk is mostly waiting."""
        records: list[dict[str, Any]] = []
        waiting: deque[Future[dict[str, Any]]] = deque()
        with ThreadPoolExecutor(WRITERS, "tilecov-write") as pool:
            for name, values in named:
                waiting.append(pool.submit(self.write, name, values))
                if len(waiting) == WRITERS:
                    records.append(waiting.popleft().result())
            records += [future.result() for future in waiting]
        return records

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
        if (found := crc32(data)) != record["crc32"]:
            raise DamagedTileError(f"{where} is damaged: its checksum is {found}, not {record['crc32']}")
        return np.frombuffer(data, record["dtype"]).reshape(record["shape"])
