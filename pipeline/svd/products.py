"""Products of panels with a symmetric matrix in tiles, a pass over the tiles each."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from ..ahead import ahead
from ..blas import quick_products
from .direct import SymmetricTiles


def trace_of(matrix: SymmetricTiles) -> float:
    """Return the trace; ValueError where it is not a number."""
    total = math.fsum(float(np.trace(matrix.read(i, i), dtype=np.float64)) for i in range(len(matrix.tiling)))
    if not math.isfinite(total):
        raise ValueError(f"the trace of the matrix is {total}; the covariance must be finite")
    return total


@dataclass
class Products:
    """Products with S, scaled by a power of two to a trace in [1/2, 1): no scale of S over- or underflows float32."""

    matrix: SymmetricTiles
    scale: float
    dtype: torch.dtype
    device: torch.device
    keep: int = 0

    squares: float = 0.0
    """Squared Frobenius norm of the scaled S, once the first pass was made: it takes a third of a pass."""

    kept: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)
    """Tiles that stay."""

    @property
    def stay(self) -> bool:
        """Whether all tiles will stay, or do."""
        tiling = self.matrix.tiling
        left = sum(tiling.width(i) * tiling.width(j) for i, j in tiling.upper() if (i, j) not in self.kept)
        return left * self.dtype.itemsize <= self.keep

    def multiply(self, block: torch.Tensor) -> torch.Tensor:
        """Return ``block S`` (b, d)."""
        tiling, product, squares = self.matrix.tiling, torch.zeros_like(block), self.squares
        complete = len(self.kept) == len(tiling) * (len(tiling) + 1) // 2
        # Reading beside the products takes their cores, so nothing is read ahead where nothing is read.
        with quick_products(self.device) as add_product:
            for i, j, tile in self._tiles() if complete else ahead(self._tiles()):
                rows, columns = tiling.span(i), tiling.span(j)
                add_product(product[:, columns], block[:, rows], tile)
                if i != j:
                    add_product(product[:, rows], block[:, columns], tile.T)
                if not self.squares:
                    squares += float(torch.linalg.vector_norm(tile, dtype=torch.float64)) ** 2 * (1 if i == j else 2)
        if not math.isfinite(squares):
            raise ValueError(f"the Frobenius norm of the matrix is {math.sqrt(squares)}; the covariance must be finite")
        self.squares = squares
        return product

    def _tiles(self) -> Iterator[tuple[int, int, torch.Tensor]]:
        kind = np.float64 if self.dtype == torch.float64 else np.float32
        for i, j in self.matrix.tiling.upper():
            if (i, j) in self.kept:
                yield i, j, self.kept[i, j]
                continue
            raw = self.matrix.read(i, j)
            values = np.empty(raw.shape, kind)
            np.multiply(raw, self.scale, out=values, casting="same_kind")
            del raw
            tile = torch.from_numpy(values).to(self.device)
            if tile.nbytes <= self.keep:
                self.keep -= tile.nbytes
                self.kept[i, j] = tile
            yield i, j, tile
