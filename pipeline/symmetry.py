"""Symmetries of images: the moments of a dataset with its flips and rotations, by permuting tiles of the moments.

A symmetry g permutes the pixels of a row, so it takes the gram G to P G P^T and the sum s to P s. The moments of the
dataset together with its image under g are G + P G P^T and s + P s. Doubling once for each generator gives the whole
group: the quarter turns are {1, r^2}{1, r}, and the eight symmetries of the square are {1, h}{1, v}{1, r}.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import cast

import numpy as np
import numpy.typing as npt
import zarr

from tilecov.storage.tiles import TileMatrix

from .accumulate import Pair
from .covariance import Array, shift_of_tile
from .moments import block_hashes
from .momentstore import MomentsStore, create_gram, finish

GENERATORS = {"hflip": ("hflip",), "vflip": ("vflip",), "rot90": ("rot180", "rot90"), "d4": ("hflip", "vflip", "rot90")}

Permutation = npt.NDArray[np.int64]


def permutation(name: str, shape: tuple[int, int, int]) -> Permutation:
    """Return p with ``row_of(g(image)) = row_of(image)[p]`` for rows of (C, H, W) images."""
    index = np.arange(np.prod(shape)).reshape(shape)
    turned = {
        "hflip": index[:, :, ::-1],
        "vflip": index[:, ::-1],
        "rot90": np.rot90(index, axes=(1, 2)),
        "rot180": index[:, ::-1, ::-1],
    }
    return turned[name].reshape(-1)


def add_symmetries(root: zarr.Group, name: str, shape: tuple[int, int, int]) -> list[Callable[[], None]]:
    """Return the steps that make ``root/augmented`` of the moments in ``root``, in order.

    A step reads the moments before it, and writes them with one more generator. Each needs three bands of tiles in
    memory and room for two more matrices in the store.
    """
    generators = GENERATORS[name]
    names = [*(f"augmenting-{number}" for number in range(1, len(generators))), "augmented"]
    steps = zip(["", *names[:-1]], names, generators, strict=True)
    return [partial(_double, root, before, after, permutation(generator, shape)) for before, after, generator in steps]


def _double(root: zarr.Group, before: str, after: str, p: Permutation) -> None:
    """Write the moments of ``before`` together with their image under p into ``after``."""
    store = MomentsStore(cast("zarr.Group", root[before]) if before else root)
    group = root.require_group(after)
    gram = create_gram(group, store.tiling, store.origin)
    hashes: dict[Pair, bytes] = {}
    half = TileMatrix.create(root.require_group("permuted"), "gram", gram.shape, _tile(gram), gram.dtype.str)
    for i, band in _bands(store.gram):  # G P^T: columns permuted, whole rows at a time
        for j, span in enumerate(half.columns.spans()):
            half.write(i, j, band[:, p[span]])
    shift = _Shift.of(store, p)
    # Tile column j of G P^T, its rows permuted, is tile column j of P G P^T.
    for j in range(len(store.tiling)):
        column = np.concatenate([half.read(i, j) for i in range(len(store.tiling))])[p]
        for i in range(j + 1):
            rows, columns = store.tiling.span(i), store.tiling.span(j)
            total = store.gram.read(i, j) + column[rows] + shift.tile(rows, columns)
            gram.write(i, j, total)
            hashes.update(block_hashes(store.tiling, i, j, total))
    sums, norms = store.sum + shift.sums + store.count * shift.origin, store.norms
    both = None if norms is None else norms + norms.permuted(p)
    finish(group, 2 * store.count, sums, store.origin, hashes, both)
    del root["permuted"]
    if before:
        del root[before]


@dataclass(frozen=True)
class _Shift:
    """What moving the permuted moments from the permuted origin back to the origin adds.

    Parameters
    ----------
    count : int
    sums : array
        (d,), P s.
    origin : array
        (d,), P o - o: zero where all pixels have one origin.
    """

    count: int
    sums: Array
    origin: Array

    @classmethod
    def of(cls, store: MomentsStore, p: Permutation) -> "_Shift":
        origin = np.broadcast_to(store.origin, p.shape)
        return cls(store.count, store.sum[p], origin[p] - origin)

    def tile(self, rows: slice, columns: slice) -> Array | int:
        return shift_of_tile(self.count, self.sums, self.origin, rows, columns) if self.origin.any() else 0


def _tile(matrix: TileMatrix) -> tuple[int, int]:
    return matrix.rows.tile, matrix.columns.tile


def _bands(gram: TileMatrix) -> Iterator[tuple[int, Array]]:
    """Yield (i, tile row i) of a symmetric matrix whose upper tiles are stored."""
    tiles = range(len(gram.columns))
    for i in tiles:
        yield i, np.concatenate([gram.read(i, j) if i <= j else gram.read(j, i).T for j in tiles], axis=1)
