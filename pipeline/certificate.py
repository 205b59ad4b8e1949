"""The certificate: the measured quality of a spectrum, streamed over tiles of the covariance or over its rows."""

import math
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch

from tilecov.storage.tiling import Tiling

from .shrinkage import trace_and_squares
from .sliced import Multiplier
from .slicedvectors import SlicedVectors
from .svd.direct import SymmetricTiles
from .svd.dual import Rows, centred
from .units import units
from .vectors import Array, Room, Slabs, Vectors, add, multiply, strips, sum_over

RESIDUAL_LIMIT = 3e-5
ORTHOGONALITY_LIMIT = 1e-5
IDENTITY_LIMIT = 1e-5
"""What a spectrum in float32 may fall short by; LAPACK itself reaches 1.3e-5, 1e-6 and 1e-6 at d = 12,288."""

_STRIP = 512
"""Rows of ``U^T U`` that are summed together: half of it, the lower triangle, is left out strip by strip."""
_SLAB = 1024
"""Rows of a slab of U, as tiles have them where nobody says otherwise."""
_BAND = 2 * 8
"""Bytes of a number of a band over rows: in float64, and what is made of it."""
_DEEPEST = 4
"""Slabs of U that one product takes at the most."""


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
        ``|sum(LA) - trace(S)| / trace(S)``; None where eigenvalues above 0 may have been cut.
    frobenius : float
        ``| ||LA||_2 - ||S||_F | / ||S||_F``; None likewise.
    eigenvalue_error : float
        No eigenvalue is further from one of S than this, relative to the largest: Weyl's bound from the residual.
    energy : float
        ``sum(LA) / trace(S)``.
    condition : float or None
        Largest over smallest eigenvalue; None where the smallest is 0.
    rank : int
        Eigenvalues above 0.
    tail : float or None
        Mean of the eigenvalues that were cut, ``(trace(S) - sum(LA)) / (d - k)``, 0 where rounding would make it
        negative; None where k = d, and in certificates of earlier versions.
    """

    residual: float
    orthogonality: float
    trace: float | None
    frobenius: float | None
    eigenvalue_error: float
    energy: float
    condition: float | None
    rank: int
    tail: float | None = None

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


class Source(Protocol):
    """What a certificate needs to know of S (d, d)."""

    @property
    def size(self) -> int:
        """Rows and columns of S, d."""

    def norms(self) -> tuple[float, float]:
        """Return the trace and the Frobenius norm."""

    def beside(self, rank: int) -> int:
        """Return the bytes of the budget that ``rank`` residuals want beside U."""

    def residuals(self, vectors: Vectors, values: Array) -> Iterator[float]:
        """Yield parts of the squared Frobenius norm of ``S U - U diag(LA)``."""


@dataclass(frozen=True)
class OverTiles:
    """A covariance that is there in tiles.

    Parameters
    ----------
    matrix : SymmetricTiles
    """

    matrix: SymmetricTiles

    @property
    def size(self) -> int:
        """Rows and columns, d."""
        return self.matrix.tiling.size

    def norms(self) -> tuple[float, float]:
        """Return the trace and the Frobenius norm, in one pass."""
        trace, squares = trace_and_squares(self.matrix)
        return trace, math.sqrt(squares)

    def beside(self, rank: int) -> int:  # noqa: ARG002  (a tile row at a time is no slower where U is held)
        """Return 0: bands are for fewer passes over U."""
        return 0

    def residuals(self, vectors: Vectors, values: Array) -> Iterator[float]:
        """Yield the squared norm of ``S U - U diag(LA)``, a band of tile rows at a time."""
        tiling, scale = self.matrix.tiling, torch.tensor(values, dtype=torch.float64)
        slab = 4 * tiling.tile * max(1, len(values))
        deep = _depth(vectors, slab)
        # Going over U again costs a pass where it is not held, so as many rows of float64 as there is room for.
        step = 1 if vectors.is_held else max(1, (vectors.left - (deep - 1) * slab) // (2 * slab))
        rest, read, multiplied = torch.empty(0, dtype=torch.float64), Room(), Room()
        for first in range(0, len(tiling), step):
            band = range(first, min(first + step, len(tiling)))
            start, squares = tiling.span(first).start, 0.0
            for rows, columns in vectors.groups(deep):
                is_last = rows.stop == tiling.size
                if not rows.start and not is_last:
                    if not len(rest):
                        rest = torch.empty((min(step * tiling.tile, tiling.size), len(values)), dtype=torch.float64)
                    rest.zero_()
                for i in band:
                    own = tiling.span(i)
                    strip = read.take(own.stop - own.start, len(columns), columns.dtype)
                    self._read(i, rows, strip)
                    # A few tiles deep, a product in U's own precision rounds far below the limits.
                    product = multiply(strip, columns, multiplied)
                    total = rest[own.start - start : own.stop - start] if len(rest) else None
                    is_own = rows.start <= own.start < rows.stop
                    same = columns[own.start - rows.start : own.stop - rows.start] if is_own else None
                    if is_last:
                        squares += sum_over(product, total, partial(_squared_rest, same, scale))
                    elif total is not None:
                        add(total, product)
                        if same is not None:
                            for part in strips(total):
                                total[part].sub_(same[part] * scale)
            yield squares

    def _read(self, i: int, columns: slice, strip: torch.Tensor) -> None:
        """Read tile row ``i`` of these columns, whole tiles, into ``strip``."""
        tiling = self.matrix.tiling
        for j in range(columns.start // tiling.tile, -(-columns.stop // tiling.tile)):
            span = tiling.span(j)
            strip.numpy()[:, span.start - columns.start : span.stop - columns.start] = self.matrix.read(i, j)


@dataclass(frozen=True)
class OverRows:
    """A covariance that is known by its rows only: ``S = scale^2 Yc^T Yc / (N - 1)``, Yc their (N, d) centred values.

    Parameters
    ----------
    rows : Rows
    trace, frobenius : float
        Of S: the gram of the rows has both.
    """

    rows: Rows
    trace: float
    frobenius: float

    @property
    def size(self) -> int:
        """Rows and columns, d."""
        return self.rows.tiling.size

    def norms(self) -> tuple[float, float]:
        """Return the trace and the Frobenius norm."""
        return self.trace, self.frobenius

    def beside(self, rank: int) -> int:
        """Return the bytes of a band of all columns: each band is two passes over the rows."""
        return _BAND * self.rows.count * rank

    def residuals(self, vectors: Vectors, values: Array) -> Iterator[float]:
        """Yield the squared norm of ``S U - U diag(LA)``: two passes over the rows and U for a band of U's columns.

        The band, (N, columns) in float64 with a copy in U's precision, is what the budget allows.
        """
        width = max(1, min(len(values), vectors.left // (_BAND * self.rows.count)))
        for start in range(0, len(values), width):
            band = slice(start, start + width)
            scale = torch.tensor(values[band], dtype=torch.float64)
            product = self._product(vectors, band, len(scale))
            for block, y in self._pairs(vectors, band):
                rest = (y.T @ product).double().sub_(block * scale)
                yield float(torch.sum(rest * rest))

    def _product(self, vectors: Vectors, band: slice, width: int) -> torch.Tensor:
        """Return ``scale^2 Yc U / (N - 1)`` for a band of U's columns, (N, width), in the precision of U."""
        total, dtype = torch.zeros((self.rows.count, width), dtype=torch.float64), torch.float64
        for block, y in self._pairs(vectors, band):
            total.add_(y @ block)
            dtype = block.dtype
        # Its columns differ in size as LA do, but each is rounded by itself.
        return total.mul_(self.rows.scale**2 / (self.rows.count - 1)).to(dtype)

    def _pairs(self, vectors: Vectors, band: slice) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield (width, columns) of U and (N, width) of the centred rows, in the precision of U."""
        for (_, slab), (_, y) in zip(vectors.groups(1), centred(self.rows, torch.device("cpu")), strict=True):
            yield slab[:, band], y.to(slab.dtype)


def measure(matrix: SymmetricTiles, slabs: Slabs, values: Array, budget: int) -> Certificate:
    """Measure a spectrum against its matrix in tiles; see ``certify``."""
    return certify(OverTiles(matrix), slabs, values, budget)


def certify(source: Source, slabs: Slabs, values: Array, budget: int, *, complete: bool = False) -> Certificate:
    """Measure a spectrum against what it is of.

    Parameters
    ----------
    source : Source
        S, (d, d).
    slabs : callable
        U, (d, k), in slabs of the source's tile.
    values : array
        LA, (k,).
    budget : int
        Bytes that U or bands may take beside a few slabs and a few tiles of S or of the rows.
    complete : bool
        Whether all eigenvalues left out are numerically zero, so that LA must add up to the trace although k < d.
    """
    size, rank = source.size, len(values)
    whole = complete or rank == size
    largest = float(values.max(initial=0.0))
    trace, frobenius = source.norms()
    residual, orthogonality = _deviation(source, slabs, values, budget)
    total, norm = float(values.sum(dtype=np.float64)), float(np.linalg.norm(values.astype(np.float64)))
    smallest = float(values.min(initial=math.inf))
    return Certificate(
        residual=_ratio(residual, frobenius),
        orthogonality=orthogonality,
        trace=_ratio(abs(total - trace), trace) if whole else None,
        frobenius=_ratio(abs(norm - frobenius), frobenius) if whole else None,
        eigenvalue_error=_ratio(residual, largest),
        energy=total / trace if trace > 0 else 1.0,
        condition=largest / smallest if 0 < smallest < math.inf else None,
        rank=int((values > 0).sum()),
        tail=max(trace - total, 0.0) / (size - rank) if rank < size else None,
    )


def orthogonality_of(slabs: Slabs, size: int, rank: int, budget: int) -> float:
    """Return ``||U^T U - I||_F / sqrt(k)`` of U (d, k); the parameters are those of ``certify``."""
    with _cut(slabs, size, rank, budget) as cut:
        return _orthogonality(cut.deviations() if cut else _deviations(Vectors(slabs, size, rank, budget), rank), rank)


def _deviation(source: Source, slabs: Slabs, values: Array, budget: int) -> tuple[float, float]:
    """Return ``||S U - U diag(LA)||_F`` and the orthogonality of U."""
    size, rank = source.size, len(values)
    if isinstance(source, OverTiles):
        with _cut(slabs, size, rank, budget) as cut:
            if cut:
                residual = math.sqrt(sum(cut.residuals(source.matrix, values)))
                return residual, _orthogonality(cut.deviations(), rank)
    vectors = Vectors(slabs, size, rank, budget, source.beside(rank))
    return math.sqrt(sum(source.residuals(vectors, values))), _orthogonality(_deviations(vectors, rank), rank)


@contextmanager
def _cut(slabs: Slabs, size: int, rank: int, budget: int) -> Iterator[SlicedVectors | None]:
    """Yield U cut for int8 matrix units, where this machine has them and the budget takes it."""
    functions = units()
    if functions is None:
        yield None
        return
    with Multiplier(functions) as multiplier:
        yield SlicedVectors.hold(multiplier, slabs, size, rank, budget)


def _orthogonality(squares: Iterator[float], rank: int) -> float:
    return math.sqrt(sum(squares) / max(1, rank))


def _ratio(error: float, scale: float) -> float:
    """Return error / scale; a zero matrix has no scale, so its errors count as they are."""
    return error / scale if scale > 0 else error


def _deviations(vectors: Vectors, rank: int) -> Iterator[float]:
    """Yield the squared norm of ``U^T U - I``, strip by strip of its rows; a pass for as many as there is room for."""
    most = _STRIP if vectors.is_held else vectors.left // (3 * 8 * max(1, rank))
    width = max(1, min(rank, _STRIP, most))
    todo, room = deque(Tiling(rank, width).spans() if rank else ()), Room()
    while todo:
        grams: list[slice] = []
        totals: dict[int, torch.Tensor] = {}
        left = 0 if vectors.is_held else vectors.left // 2
        while todo and (not grams or left >= 8 * width * (rank - todo[0].start)):
            grams.append(todo.popleft())
            left -= 8 * width * (rank - grams[-1].start)
        for rows, block in vectors.groups(_depth(vectors, 4 * _SLAB * rank)):
            for columns in grams:
                product = multiply(block[:, columns].T, block[:, columns.start :], room)
                total = totals.get(columns.start)
                if rows.stop == vectors.size:
                    yield sum_over(product, total, partial(_squared_deviation, len(product)))
                elif total is None:
                    totals[columns.start] = product.to(torch.float64, copy=True)
                else:
                    add(total, product)


def _squared_deviation(width: int, values: torch.Tensor, rows: slice) -> float:
    """Return the squared norm of some ``rows`` of a strip of ``U^T U - I``, from its square on the diagonal on.

    What lies beside the square, of ``width`` columns, is there twice.
    """
    values.diagonal(rows.start).sub_(1)
    squares = values.square_()
    return float(squares[:, :width].sum() + 2 * squares[:, width:].sum())


def _squared_rest(same: torch.Tensor | None, scale: torch.Tensor, values: torch.Tensor, rows: slice) -> float:
    """Return the squared norm of some ``rows`` of ``S U - U diag(LA)``, whose second part may be subtracted already."""
    if same is not None:
        values.sub_(same[rows] * scale)
    return float(values.square_().sum())


def _depth(vectors: Vectors, slab: int) -> int:
    """Return how many slabs of so many bytes are multiplied at a time: fewer additions in float64, more memory."""
    return _DEEPEST if vectors.is_held else max(1, min(_DEEPEST, vectors.left // (8 * max(1, slab))))
