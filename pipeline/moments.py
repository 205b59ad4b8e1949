"""Moments: what a set of rows adds up to. Mergeable, subtractable, and for uint8 rows exact."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch

from tilecov.storage.tiling import Tiling

from .accumulate import IntegerAccumulator, Pair, panels_of
from .bounds import ORIGIN
from .covariance import covariance_tile, mean_vector
from .device import Kernel, kernel_of

DIGEST_BLOCK = 256
"""Columns of a digest block. Tiles are multiples of it, so that the digest does not depend on the tile."""

Array = npt.NDArray[Any]
Tiles = Callable[[int, int], Array]


@dataclass(frozen=True)
class Moments:
    """Count, sum and gram of rows about an origin.

    Parameters
    ----------
    tiling : Tiling
        How the d columns are cut.
    count : int
        Rows, N.
    sum : array
        (d,), the sum of x - origin: int64 for uint8 rows.
    gram : mapping of (int, int) to array
        The upper tiles of the sum of (x - origin)(x - origin)^T: int64 for uint8 rows.

    Notes
    -----
    For uint8 rows everything is an exact integer, so ``merge`` is associative and commutative to the bit.
    """

    tiling: Tiling
    count: int
    sum: Array
    gram: Mapping[Pair, Array]

    @classmethod
    def empty(cls, size: int, tile: int = 1024) -> Self:
        """Return the moments of no rows of ``size`` columns: the identity of ``merge``."""
        tiling = Tiling(size, tile)
        shapes = {pair: tuple(tiling.width(index) for index in pair) for pair in tiling.upper()}
        gram = {pair: np.zeros(shape, np.int64) for pair, shape in shapes.items()}
        return cls(tiling, 0, np.zeros(size, np.int64), gram)

    def update(self, rows: npt.NDArray[np.uint8], kernel: Kernel | None = None) -> Self:
        """Return these moments with ``rows``, (n, d) uint8, added."""
        if rows.dtype != np.uint8 or rows.ndim != 2 or rows.shape[1] != self.tiling.size:
            raise ValueError(f"rows are {rows.dtype} {rows.shape}; uint8 (n, {self.tiling.size}) is needed")
        accumulator = IntegerAccumulator(self.tiling, self.tiling.upper(), kernel or kernel_of("cpu"))
        moments = self
        block = 4096
        for start in range(0, len(rows), block):
            accumulator.add(panels_of(torch.from_numpy(np.array(rows[start : start + block], order="C")), self.tiling))
            if accumulator.room() < block or start + block >= len(rows):
                count, sums, tiles = accumulator.take()
                gram = {pair: tile.astype(np.int64) for pair, tile in tiles}
                moments = moments.merge(type(self)(self.tiling, count, sums, gram))
        return moments

    def merge(self, other: Self) -> Self:
        """Return the moments of both sets of rows."""
        return self._combine(other, 1)

    def subtract(self, other: Self) -> Self:
        """Return the moments without the rows of ``other``, which must be among these."""
        if other.count > self.count:
            raise ValueError(f"cannot take {other.count} rows from {self.count}")
        return self._combine(other, -1)

    def _combine(self, other: Self, sign: int) -> Self:
        if self.tiling != other.tiling:
            raise ValueError(f"moments of {self.tiling} and {other.tiling} do not add up")
        gram = {pair: tile + sign * other.gram[pair] for pair, tile in self.gram.items()}
        return type(self)(self.tiling, self.count + sign * other.count, self.sum + sign * other.sum, gram)

    def digest(self) -> str:
        """Return the moments digest, in hex; see ``moments_digest``."""
        return moments_digest(self.tiling, self.count, self.sum, lambda i, j: self.gram[i, j])

    def finalise(self, scale: float = 1.0, offset: float = 0.0) -> tuple[Array, Array]:
        """Return mean (d,) and covariance (d, d), float64, of scale * x + offset.

        Raises
        ------
        ValueError
            With fewer than two rows, where the covariance is undefined.
        """
        mean = mean_vector(self.count, self.sum, ORIGIN, scale, offset)
        covariance = np.empty((self.tiling.size,) * 2)
        for (i, j), tile in self.gram.items():
            rows, columns = self.tiling.span(i), self.tiling.span(j)
            block = covariance_tile(self.count, self.sum[rows], self.sum[columns], tile, scale)
            covariance[rows, columns], covariance[columns, rows] = block, block.T
        return mean, covariance


def moments_digest(tiling: Tiling, count: int, sums: Array, tiles: Tiles) -> str:
    """Return the SHA-256, in hex, of the canonical bytes of moments.

    The bytes are, in this order: the line ``tilecov moments 1 d=<d> count=<N> dtype=<int64|float64>`` with its newline;
    the sum as little-endian values; then for every pair of blocks of 256 columns (i, j), i <= j, row by row, the 32
    bytes of the SHA-256 of that block of the gram (C order, little-endian). Hashing blocks first makes the digest
    independent of the tile, which is a multiple of 256, and lets it be taken tile by tile.
    """
    hashes = {pair: found for tile in tiling.upper() for pair, found in block_hashes(tiling, *tile, tiles(*tile))}
    return digest_of_hashes(tiling.size, count, sums, hashes)


def digest_of_hashes(size: int, count: int, sums: Array, hashes: Mapping[Pair, bytes]) -> str:
    """Return the moments digest from the hashes of its blocks."""
    kind = np.dtype(sums.dtype)
    digest = hashlib.sha256(f"tilecov moments 1 d={size} count={count} dtype={kind.name}\n".encode())
    digest.update(np.ascontiguousarray(sums, kind.newbyteorder("<")).data)
    for pair in Tiling(size, DIGEST_BLOCK).upper():
        digest.update(hashes[pair])
    return digest.hexdigest()


def block_hashes(tiling: Tiling, i: int, j: int, tile: Array) -> Iterator[tuple[Pair, bytes]]:
    """Yield (block pair, SHA-256) of the upper digest blocks inside gram tile (i, j).

    Raises
    ------
    ValueError
        Where the tile is neither a multiple of the digest block nor the whole matrix.
    """
    if len(tiling) > 1 and tiling.tile % DIGEST_BLOCK:
        raise ValueError(f"tiles of {tiling.tile} columns do not fall into digest blocks of {DIGEST_BLOCK}")
    first_row, first_column = (index * tiling.tile // DIGEST_BLOCK for index in (i, j))
    for a, rows in enumerate(Tiling(tile.shape[0], DIGEST_BLOCK).spans(), first_row):
        for b, columns in enumerate(Tiling(tile.shape[1], DIGEST_BLOCK).spans(), first_column):
            if a <= b:
                block = np.ascontiguousarray(tile[rows, columns], tile.dtype.newbyteorder("<"))
                yield (a, b), hashlib.sha256(block.data).digest()
