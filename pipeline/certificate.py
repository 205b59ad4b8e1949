"""The certificate: the measured quality of a spectrum, streamed over tiles."""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tilecov.storage.tiling import Tiling

from .svd.direct import SymmetricTiles

RESIDUAL_LIMIT = 3e-5
ORTHOGONALITY_LIMIT = 1e-5
IDENTITY_LIMIT = 1e-5
"""What a spectrum in float32 may fall short by; LAPACK itself reaches 1.3e-5, 1e-6 and 1e-6 at d = 12,288."""

Array = npt.NDArray[Any]
Slabs = Callable[[], Iterator[tuple[slice, Array]]]
"""Yields (rows, (n, k) values) of U from the first row to the last, anew at each call, in steps of the tile."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """How well U (d, k) and LA (k,) decompose S (d, d).

    Parameters
    ----------
    residual : float
        ``||S U - U diag(LA)||_F / ||S||_F``.
    orthogonality : float
        ``||U^T U - I||_F / sqrt(k)``.
    trace : float
        ``|sum(LA) - trace(S)| / trace(S)``; None where k < d.
    frobenius : float
        ``| ||LA||_2 - ||S||_F | / ||S||_F``; None where k < d.
    eigenvalue_error : float
        No eigenvalue is further from one of S than this, relative to the largest: Weyl's bound from the residual.
    energy : float
        ``sum(LA) / trace(S)``.
    condition : float or None
        Largest over smallest eigenvalue; None where the smallest is 0.
    rank : int
        Eigenvalues above 0.
    """

    residual: float
    orthogonality: float
    trace: float | None
    frobenius: float | None
    eigenvalue_error: float
    energy: float
    condition: float | None
    rank: int

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON takes them."""
        return asdict(self)

    def breaches(self) -> list[str]:
        """Return a line for each measure that falls short; none for a good spectrum."""
        limits = {
            "residual": RESIDUAL_LIMIT,
            "orthogonality": ORTHOGONALITY_LIMIT,
            "trace": IDENTITY_LIMIT,
            "frobenius": IDENTITY_LIMIT,
        }
        found = {name: getattr(self, name) for name in limits}
        # `not <=` rather than `>`: a NaN is a breach too.
        return [
            f"{name} is {value:.2e}, over its limit of {limits[name]:.0e}"
            for name, value in found.items()
            if value is not None and not value <= limits[name]
        ]


def measure(matrix: SymmetricTiles, slabs: Slabs, values: Array, budget: int) -> Certificate:
    """Measure a spectrum against its matrix.

    Parameters
    ----------
    matrix : SymmetricTiles
        S, (d, d).
    slabs : callable
        U, (d, k), in slabs of the matrix's tile.
    values : array
        LA, (k,).
    budget : int
        Bytes that bands may take beside one slab and one tile.
    """
    size, rank = matrix.tiling.size, len(values)
    largest = float(values.max(initial=0.0))
    trace, frobenius = _sums(matrix)
    residual = math.sqrt(sum(_residuals(matrix, slabs, values, budget)))
    orthogonality = math.sqrt(sum(_deviations(slabs, rank, budget)) / max(1, rank))
    total, norm = float(values.sum(dtype=np.float64)), float(np.linalg.norm(values.astype(np.float64)))
    smallest = float(values.min(initial=math.inf))
    return Certificate(
        residual=_ratio(residual, frobenius),
        orthogonality=orthogonality,
        trace=_ratio(abs(total - trace), trace) if rank == size else None,
        frobenius=_ratio(abs(norm - frobenius), frobenius) if rank == size else None,
        eigenvalue_error=_ratio(residual, largest),
        energy=total / trace if trace > 0 else 1.0,
        condition=largest / smallest if 0 < smallest < math.inf else None,
        rank=int((values > 0).sum()),
    )


def _ratio(error: float, scale: float) -> float:
    """Return error / scale; a zero matrix has no scale, so its errors count as they are."""
    return error / scale if scale > 0 else error


def _sums(matrix: SymmetricTiles) -> tuple[float, float]:
    """Return the trace and the Frobenius norm."""
    trace = squares = 0.0
    for i, j in matrix.tiling.upper():
        tile = np.asarray(matrix.read(i, j), np.float64)
        trace += float(np.trace(tile)) if i == j else 0.0
        squares += float(np.vdot(tile, tile)) * (1 if i == j else 2)
    return trace, math.sqrt(squares)


def _residuals(matrix: SymmetricTiles, slabs: Slabs, values: Array, budget: int) -> Iterator[float]:
    """Yield the squared norm of ``S U - U diag(LA)``, a band of tile rows at a time."""
    tiling, scale = matrix.tiling, torch.tensor(values, dtype=torch.float64)
    step = max(1, budget // (2 * 8 * max(1, len(values)) * tiling.tile))
    for first in range(0, len(tiling), step):
        band = range(first, min(first + step, len(tiling)))
        rest = [torch.zeros((tiling.width(i), len(values)), dtype=torch.float64) for i in band]
        for j, (_, slab) in enumerate(slabs()):
            columns = torch.tensor(slab)
            for total, i in zip(rest, band, strict=True):
                # One tile deep, a product in the slab's own precision rounds far below the limits.
                tile = torch.from_numpy(np.ascontiguousarray(matrix.read(i, j))).to(columns.dtype)
                total.add_(tile @ columns)
                if i == j:
                    total.sub_(columns * scale)
        yield from (float(torch.sum(total * total)) for total in rest)


def _deviations(slabs: Slabs, rank: int, budget: int) -> Iterator[float]:
    """Yield the squared norm of ``U^T U - I``, a band of its rows at a time."""
    bands = Tiling(rank, max(1, min(rank, budget // (3 * 8 * max(1, rank))))).spans() if rank else ()
    for columns in bands:
        gram = torch.zeros((columns.stop - columns.start, rank - columns.start), dtype=torch.float64)
        for _, slab in slabs():
            block = torch.tensor(slab)
            gram += block[:, columns].T @ block[:, columns.start :]
        gram.diagonal().sub_(1)
        width = len(gram)
        squares = gram.square_()
        yield float(squares[:, :width].sum() + 2 * squares[:, width:].sum())
