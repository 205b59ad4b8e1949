"""Sums of the rows' norms, exact: what Ledoit and Wolf's shrinkage needs beside the gram.

Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance matrices" (2004), need the sum of
||x||^4 over centred rows; moved to another origin it takes the sum of ||y||^2 y too. Both are integers for uint8 rows,
and so do not depend on the order of the rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch

from tilecov.storage.partials import Partial

from .bounds import ORIGIN, ROWS_ALWAYS_EXACT

_VALUES = 1 << 21  # centred values in memory at a time
_ROWS = 256  # 256 rows of an 8-bit limb times 128 stay below 2**24
_LIMB = 32

Integers = npt.NDArray[np.object_]


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


def norms_of(rows: npt.NDArray[np.uint8]) -> Norms:
    """Return the sums over uint8 rows (n, d).

    Float32 holds every step: 1,024 squares are at most 2^24, and so are 256 products of an 8-bit limb of ||y||^2.
    """
    count, size = rows.shape
    limbs = max(1, ((size << 14).bit_length() + 7) // 8)
    fourth, third = 0, torch.zeros((limbs, size), dtype=torch.int64)
    step = max(1, min(_ROWS, _VALUES // size))
    for start in range(0, count, step):
        y = torch.from_numpy(rows[start : start + step]).to(torch.float32).sub_(ORIGIN)
        parts = [y[:, first : first + ROWS_ALWAYS_EXACT] for first in range(0, size, ROWS_ALWAYS_EXACT)]
        squares = torch.stack([torch.linalg.vecdot(part, part).to(torch.int64) for part in parts]).sum(dim=0)
        digits = torch.stack([(squares >> (8 * limb)) & 255 for limb in range(limbs)]).to(torch.float32)
        third += (digits @ y).to(torch.int64)
        high, low = squares >> 16, squares & 0xFFFF
        fourth += (int(high @ high) << 32) + (int(high @ low) << 17) + int(low @ low)
    whole = sum((part.numpy().astype(object) << (8 * limb) for limb, part in enumerate(third)), np.zeros(size, object))
    return Norms(fourth, whole)
