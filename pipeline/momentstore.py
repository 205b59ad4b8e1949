"""Moments at rest: partials and whole runs added up tile by tile, and read back."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Protocol

import numpy as np
import zarr

from tilecov.storage.partials import DamagedTileError, Partial
from tilecov.storage.runs import MOMENTS, RunFolder
from tilecov.storage.tiles import TileMatrix, open_group, read_vector, write_vector
from tilecov.storage.tiling import Tiling

from .accumulate import Pair
from .ahead import side_by_side
from .bounds import ORIGIN
from .covariance import Array, Float, covariance_tile, mean_vector, shift_of_tile
from .moments import block_hashes, digest_of_hashes
from .norms import Norms


class Source(Protocol):
    """Moments that can be added: a committed part, or those of a finished run."""

    @property
    def count(self) -> int:
        """Rows."""

    @property
    def sign(self) -> int:
        """1, or -1 where they are taken away."""

    def sum(self) -> Array:
        """Return the sum about the origin, (d,)."""

    def read(self, i: int, j: int) -> Array:
        """Return upper tile (i, j)."""

    def norms(self) -> Norms | None:
        """Return the sums of norms; None for float rows."""

    def check(self) -> None:
        """Raise DamagedTileError where what was read is not what was written."""


@dataclass(frozen=True)
class Part:
    """A part that a unit committed; its tiles carry checksums.

    Parameters
    ----------
    partial : Partial
    count : int
    sums : dict
        Record of the sum.
    tiles : mapping of (int, int) to dict
        Records of the upper tiles.
    norm_sums : dict or None
        Record of the sums of norms.
    """

    partial: Partial
    count: int
    sums: dict[str, Any]
    tiles: Mapping[Pair, dict[str, Any]]
    norm_sums: dict[str, Any] | None = None
    sign: int = 1

    def sum(self) -> Array:
        """Return the sum about the origin, (d,)."""
        return self.partial.read(self.sums)

    def read(self, i: int, j: int) -> Array:
        """Return upper tile (i, j)."""
        return self.partial.read(self.tiles[i, j])

    def norms(self) -> Norms | None:
        """Return the sums of norms; None for float rows."""
        return None if self.norm_sums is None else Norms.read(self.partial, self.norm_sums)

    def check(self) -> None:
        """Every tile was checked as it was read."""


@dataclass
class Whole:
    """The moments of a finished run, moved to another origin where they are floats; its digest is checked.

    Parameters
    ----------
    store : MomentsStore
    origin : array
        To which the moments are moved.
    name : str
        What to call it in an error.
    sign : int
    """

    store: "MomentsStore"
    origin: Array
    name: str
    sign: int = 1
    _hashes: dict[Pair, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._sums = self.store.sum
        self._shift = self.store.origin - self.origin

    @property
    def count(self) -> int:
        """Rows."""
        return self.store.count

    def sum(self) -> Array:
        """Return the sum about the origin, (d,)."""
        return np.asarray(self._sums + self.count * self._shift)

    def read(self, i: int, j: int) -> Array:
        """Return upper tile (i, j) of ``G + s e^T + e s^T + N e e^T``, e the shift of the origin."""
        tile = self.store.gram.read(i, j)
        self._hashes.update(block_hashes(self.store.tiling, i, j, tile))
        if not self._shift.any():
            return tile
        rows, columns = (self.store.tiling.span(index) for index in (i, j))
        return np.asarray(tile + shift_of_tile(self.count, self._sums, self._shift, rows, columns))

    def norms(self) -> Norms | None:
        """Return the sums of norms; None for float rows."""
        return self.store.norms

    def check(self) -> None:
        """Raise DamagedTileError where the tiles read do not have the digest of their run."""
        found = digest_of_hashes(self.store.tiling.size, self.count, self._sums, self._hashes)
        if found != self.store.digest:
            raise DamagedTileError(f"the moments of {self.name} have digest {found} and not {self.store.digest}")


@dataclass(frozen=True)
class MomentsStore:
    """Finished moments: those of ``moments.zarr``, or of a group or symmetry inside it.

    Parameters
    ----------
    group : zarr.Group
    """

    group: zarr.Group

    @classmethod
    def open(cls, run: RunFolder, inside: str = "") -> "MomentsStore":
        """Open the moments of a run; FileNotFoundError or KeyError where it has none."""
        group = open_group(run.folder(MOMENTS))
        found = group[inside] if inside else group
        if not isinstance(found, zarr.Group):
            raise KeyError(f"{run.url} has no moments of {inside!r}")
        return cls(found)

    @property
    def count(self) -> int:
        """Rows, N."""
        return int(str(self.group.attrs["count"]))

    @property
    def digest(self) -> str:
        """The moments digest."""
        return str(self.group.attrs["digest"])

    @property
    def sum(self) -> Array:
        """(d,) sum of x - origin, int64 or float64."""
        return read_vector(self.group, "sum")

    @property
    def origin(self) -> Array:
        """(1,) or (d,): what was subtracted from every row."""
        return read_vector(self.group, "origin")

    @property
    def norms(self) -> Norms | None:
        """Sums of norms; None for float rows.

        Raises
        ------
        DamagedTileError
            Where they are not what was written.
        """
        if "fourth" not in self.group.attrs:
            return None
        limbs, found = read_vector(self.group, "third"), str(self.group.attrs["third"])
        if _sha256(limbs) != found:
            raise DamagedTileError(f"{self.group.name}/third of {self.group.store} has another checksum than {found}")
        return Norms.from_limbs(int(str(self.group.attrs["fourth"])), limbs.reshape(2, -1))

    @property
    def gram(self) -> TileMatrix:
        """The upper tiles of the gram, int64 or float64.

        Raises
        ------
        ValueError
            Where there is none.
        """
        if "gram" not in self.group:
            raise ValueError(f"{self.group.store} has no gram: the run was made with --no-covariance; make one with it")
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

    def read(self, i: int, j: int, dtype: str = "float64") -> Array:
        """Return tile (i, j), computed in float64 and rounded to ``dtype``."""
        if i > j:
            return self.read(j, i, dtype).T
        rows, columns = self.sums[self.tiling.span(i)], self.sums[self.tiling.span(j)]
        return covariance_tile(self.count, rows, columns, self.gram.read(i, j), self.scale, dtype)


def dtype_of(origin: Array) -> str:
    """Return the dtype of moments about ``origin``: int64 for uint8 rows, float64 for floats."""
    return "int64" if origin.dtype.kind in "iu" else "float64"


def create_gram(group: zarr.Group, tiling: Tiling, origin: Array) -> TileMatrix:
    """Make the gram of ``group``, its tiles yet to be written."""
    return TileMatrix.create(group, "gram", (tiling.size,) * 2, (tiling.tile,) * 2, dtype_of(origin))


def add_up(group: zarr.Group, sources: Sequence[Source], tiling: Tiling, origin: Array) -> Iterator[Pair]:
    """Add ``sources`` up into ``group``, tile by tile; yield each pair that is done.

    Raises
    ------
    DamagedTileError
        Where a source is not what was written.
    """
    gram = create_gram(group, tiling, origin)
    hashes: dict[Pair, bytes] = {}

    def add(pair: Pair) -> dict[Pair, bytes]:
        total = np.zeros(tuple(tiling.width(index) for index in pair), gram.dtype)
        for source in sources:
            (np.add if source.sign > 0 else np.subtract)(total, source.read(*pair), out=total)
        gram.write(*pair, total)
        return dict(block_hashes(tiling, *pair, total))

    pairs = list(tiling.upper())
    for pair, found in zip(pairs, side_by_side(add, pairs), strict=True):
        hashes.update(found)
        yield pair
    for source in sources:
        source.check()
    sums = np.zeros(tiling.size, gram.dtype)
    for source in sources:
        sums += source.sign * source.sum()
    count = sum(source.sign * source.count for source in sources)
    finish(group, count, sums, origin, hashes, total_norms(sources, tiling.size))


def total_norms(sources: Iterable[Source], size: int) -> Norms | None:
    """Return the sums of norms over all sources; None where one has none."""
    total = Norms.none(size)
    for source in sources:
        found = source.norms()
        if found is None:
            return None
        total += found if source.sign > 0 else -found
    return total


def finish(
    group: zarr.Group,
    count: int,
    sums: Array,
    origin: Array,
    hashes: Mapping[Pair, bytes] | None,
    norms: Norms | None,
) -> None:
    """Complete moments whose gram is written, or that have none (no hashes); their attributes come last."""
    write_vector(group, "sum", sums)
    write_vector(group, "origin", origin)
    found: dict[str, Any] = {"format": 1, "count": count}
    if hashes is not None:
        found["digest"] = digest_of_hashes(len(sums), count, sums, hashes)
    if norms is not None:
        limbs = norms.limbs().reshape(-1)
        write_vector(group, "third", limbs)
        found |= {"fourth": str(norms.fourth), "third": _sha256(limbs)}
    group.attrs.update(found)


def _sha256(values: Array) -> str:
    return sha256(np.ascontiguousarray(values).data.cast("B")).hexdigest()


def parts_of(run: RunFolder, records: Iterable[Mapping[str, Any]]) -> dict[str, list[Source]]:
    """Return the parts in commit records, by group."""
    found: dict[str, list[Source]] = {}
    for record in records:
        partial = Partial(run.folder(record["prefix"]))
        for part in record["parts"]:
            tiles = {(i, j): tile for i, j, tile in part["tiles"]}
            found.setdefault(part["group"], []).append(
                Part(partial, part["count"], part["sum"], tiles, part.get("norms"))
            )
    return found


def uint8_origin() -> Array:
    """Return the origin of uint8 rows, (1,) int64."""
    return np.array([ORIGIN], np.int64)
