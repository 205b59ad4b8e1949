"""Moments in a run folder: partials added up, tiles read back."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr

from tilecov.storage.objects import Folder
from tilecov.storage.partials import Partial
from tilecov.storage.runs import MOMENTS, RunFolder
from tilecov.storage.tiles import TileMatrix, open_group, read_vector, write_vector
from tilecov.storage.tiling import Tiling

from .accumulate import ORIGIN, Pair
from .covariance import Array, Float, covariance_tile, mean_vector
from .moments import block_hashes, digest_of_hashes

Part = tuple[Partial, Mapping[str, Any]]


@dataclass(frozen=True)
class MomentsStore:
    """The finished moments of a run: ``moments.zarr``.

    Parameters
    ----------
    group : zarr.Group
    """

    group: zarr.Group

    @classmethod
    def open(cls, run: RunFolder) -> "MomentsStore":
        """Open the moments of a run; FileNotFoundError where it has none yet."""
        return cls(open_group(run.folder(MOMENTS)))

    @property
    def count(self) -> int:
        """Rows, N."""
        return int(str(self.group.attrs["count"]))

    @property
    def sum(self) -> Array:
        """(d,) sum of x - origin, int64 or float64."""
        return read_vector(self.group, "sum")

    @property
    def origin(self) -> Array:
        """(d,) or (1,): what was subtracted from every row."""
        return read_vector(self.group, "origin")

    @property
    def gram(self) -> TileMatrix:
        """The upper tiles of the gram, int64 or float64."""
        return TileMatrix.open(self.group, "gram")

    @property
    def tiling(self) -> Tiling:
        """How the columns are cut."""
        return self.gram.columns

    def mean(self, scale: float, offset: float) -> Float:
        """Return the mean (d,) of scale * x + offset."""
        return mean_vector(self.count, self.sum, self.origin, scale, offset)

    def covariance(self, scale: float) -> "CovarianceTiles":
        """Return the covariance of scale * x, tile by tile."""
        return CovarianceTiles(self.gram, self.count, self.sum, scale)


@dataclass(frozen=True)
class CovarianceTiles:
    """A covariance that is finalised in float64 from exact moments, one tile at a time, as it is asked for.

    Parameters
    ----------
    gram : TileMatrix
    count : int
    sums : array
        (d,).
    scale : float
    """

    gram: TileMatrix
    count: int
    sums: Array
    scale: float

    @property
    def tiling(self) -> Tiling:
        """How rows and columns are cut."""
        return self.gram.columns

    def read(self, i: int, j: int) -> Float:
        """Return tile (i, j), float64."""
        if i > j:
            return self.read(j, i).T
        rows, columns = self.sums[self.tiling.span(i)], self.sums[self.tiling.span(j)]
        return covariance_tile(self.count, rows, columns, self.gram.read(i, j), self.scale)


def add_partials(run: RunFolder, records: Iterable[Mapping[str, Any]], tiling: Tiling, origin: Array) -> Iterator[Pair]:
    """Add the parts of all units up, tile by tile, into the run's moments; yield each pair that is done.

    The group's ``digest`` attribute is written last, when everything else is there.

    Raises
    ------
    DamagedTileError
        Where a partial is not what was committed.
    """
    parts = [(Partial(run.folder(record["prefix"])), part) for record in records for part in record["parts"]]
    group = open_group(run.folder(MOMENTS), writable=True)
    dtype = "int64" if origin.dtype.kind in "iu" else "float64"
    sums = _add([(partial, part["sum"]) for partial, part in parts], (tiling.size,), dtype)
    count = sum(part["count"] for _, part in parts)
    gram = TileMatrix.create(group, "gram", (tiling.size,) * 2, (tiling.tile,) * 2, dtype)
    hashes: dict[Pair, bytes] = {}
    for position, (i, j) in enumerate(tiling.upper()):
        tile = _add([(partial, part["tiles"][position][2]) for partial, part in parts], _shape(tiling, i, j), dtype)
        gram.write(i, j, tile)
        hashes.update(block_hashes(tiling, i, j, tile))
        yield i, j
    write_vector(group, "sum", sums)
    write_vector(group, "origin", origin)
    digest = digest_of_hashes(tiling.size, count, sums, hashes)
    group.attrs.update({"format": 1, "count": count, "digest": digest})


def _shape(tiling: Tiling, i: int, j: int) -> tuple[int, int]:
    return tiling.width(i), tiling.width(j)


def _add(records: Sequence[tuple[Partial, dict[str, Any]]], shape: tuple[int, ...], dtype: str) -> Array:
    total = np.zeros(shape, dtype)
    for partial, record in records:
        total += partial.read(record)
    return total


def uint8_origin() -> Array:
    """Return the origin of uint8 rows, (1,) int64."""
    return np.array([ORIGIN], np.int64)


def folder_of(url: str, options: Mapping[str, Any] | None = None) -> RunFolder:
    """Return the run folder at ``url``."""
    return RunFolder(Folder(url, options or {}))
