"""Sums of the rows' norms, exact: what Ledoit and Wolf's shrinkage needs beside the gram.

Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance matrices" (2004), need the sum of
||x||^4 over centred rows; moved to another origin it takes the sum of ||y||^2 y too. Both are integers for uint8 rows,
and so do not depend on the order of the rows.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch

from tilecov.storage.partials import Partial

from .bounds import ORIGIN, ROWS_ALWAYS_EXACT
from .pixels import is_compiled, row_norms

_EXACT = 1 << 32  # values at a time in C: rows times d times 2**14 times 2**7 stay below 2**53
_VALUES = 1 << 21  # centred values in memory at a time, without C
_ROWS = 256  # 256 rows of an 8-bit limb times 128 stay below 2**24
_LIMB = 32

Integers = npt.NDArray[np.object_]
Sums = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]


@dataclass(frozen=True)
class Norms:
    """Sums over rows y = x - 128.

    Parameters
    ----------
    fourth : int
        Sum of ||y||^4.
    third : array of int
        (d,) sum of ||y||^2 y, in Python's integers: they pass 2^63 for a billion rows of a million columns.
    """

    fourth: int
    third: Integers

    def __add__(self, other: "Norms") -> "Norms":
        return Norms(self.fourth + other.fourth, self.third + other.third)

    def __neg__(self) -> "Norms":
        return Norms(-self.fourth, -self.third)

    def permuted(self, order: npt.NDArray[np.int64]) -> "Norms":
        """Return the sums over rows ``y[order]``."""
        return Norms(self.fourth, self.third[order])

    @classmethod
    def none(cls, size: int) -> Self:
        """Return the sums over no rows of ``size`` columns."""
        return cls(0, np.zeros(size, np.int64).astype(object))

    def limbs(self) -> npt.NDArray[np.int64]:
        """Return ``third`` as (2, d) int64: high and low with ``high * 2**32 + low``, 0 <= low < 2**32."""
        return np.array([self.third >> _LIMB, self.third & ((1 << _LIMB) - 1)]).astype(np.int64)

    @classmethod
    def from_limbs(cls, fourth: int, limbs: npt.NDArray[np.int64]) -> Self:
        """Return what ``limbs`` was made of."""
        high, low = limbs.astype(object)
        return cls(fourth, high * (1 << _LIMB) + low)

    def write(self, partial: Partial, name: str) -> dict[str, Any]:
        """Write into a partial; return the record that ``read`` takes."""
        return {"fourth": str(self.fourth), "third": partial.write(name, self.limbs())}

    @classmethod
    def read(cls, partial: Partial, record: Mapping[str, Any]) -> Self:
        """Read what ``write`` wrote; DamagedTileError where it is not what it was."""
        return cls.from_limbs(int(record["fourth"]), partial.read(record["third"]))


class NormsSum:
    """Adds up the norms of blocks of uint8 rows, exactly, in limbs of 32 bits: int64 holds 2^31 of them."""

    def __init__(self, size: int) -> None:
        self._fourth, self._limbs = 0, np.zeros((2, size), np.int64)

    def add(self, rows: npt.NDArray[np.uint8]) -> None:
        """Add uint8 rows (n, d)."""
        for squares, third in (_in_c if is_compiled() else _by_torch)(rows):
            self._limbs += third >> _LIMB, third & ((1 << _LIMB) - 1)
            high, low = squares >> 16, squares & 0xFFFF
            self._fourth += (int(high @ high) << 32) + (int(high @ low) << 17) + int(low @ low)

    def total(self) -> Norms:
        """Return the sums over all rows that were added."""
        return Norms.from_limbs(self._fourth, self._limbs)


def _in_c(rows: npt.NDArray[np.uint8]) -> Iterator[Sums]:
    """Yield ||y||^2 of rows and the sum of ||y||^2 y, part by part."""
    step = max(1, _EXACT // rows.shape[1])
    yield from (row_norms(rows[start : start + step]) for start in range(0, len(rows), step))


def _by_torch(rows: npt.NDArray[np.uint8]) -> Iterator[Sums]:
    """Yield the same.

    Float32 holds every step: 1,024 squares are at most 2^24, and so are 256 products of an 8-bit limb of ||y||^2.
    """
    step = max(1, min(_ROWS, _VALUES // rows.shape[1], len(rows)))
    shifts = 8 * torch.arange(-(-(rows.shape[1] << 14).bit_length() // 8)).unsqueeze(1)
    scratch = torch.empty((step, rows.shape[1]))  # fresh memory for each part would cost page faults
    for part in torch.split(torch.from_numpy(rows), step):
        y = scratch[: len(part)].copy_(part).sub_(ORIGIN)
        pieces = [torch.linalg.vecdot(piece, piece) for piece in torch.split(y, ROWS_ALWAYS_EXACT, dim=1)]
        squares = torch.stack(pieces).to(torch.int64).sum(dim=0)
        limbs = (((squares >> shifts) & 255).to(torch.float32) @ y).to(torch.int64)
        yield squares.numpy(), (limbs << shifts).sum(dim=0).numpy()
