"""How many eigenpairs are asked for, what their panels take, how well they are known, and what the others cost."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch

_BLOCKS = (256, 128, 64, 32, 16, 8)
"""Columns multiplied in a pass, the most that fit: wide ones read less often, narrow ones multiply fewer columns."""

_USUAL = 128  # of them; wider only where a quarter of the rank is
WIDE = _BLOCKS[0]
NARROW = 64
"""Columns where reading costs nothing: narrower ones find as much with fewer columns, but their products are slower."""

_WORK = 5  # blocks of memory beside the basis: the product, its QR, and copies of them
_SPARE = 4  # blocks of the basis beside the wanted pairs, at least
_SMALL = 4  # float64 matrices of the order of the basis that a Rayleigh-Ritz step needs
_NOISE = 0.01  # of the dtype's epsilon


@dataclass(frozen=True, slots=True)
class Target:
    """What is asked of a partial decomposition: exactly one of the three.

    Parameters
    ----------
    rank : int, optional
        The k largest eigenvalues; all d of them where k is larger.
    energy : float, optional
        The fewest eigenvalues whose sum is at least this part of the trace, 0 < energy <= 1.
    noise : float, optional
        The eigenvalues above its square: the components that a Wiener filter, for white noise of this standard
        deviation in the units of the data, takes more from than from the mean.
    """

    rank: int | None = None
    energy: float | None = None
    noise: float | None = None

    def __post_init__(self) -> None:
        if sum(part is not None for part in (self.rank, self.energy, self.noise)) != 1:
            raise ValueError(f"ask for one of rank, energy and noise, not {self}")
        if self.rank is not None and self.rank < 1:
            raise ValueError(f"the rank is {self.rank}; it is at least 1")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise ValueError(f"the energy is {self.energy}; it is above 0 and at most 1")
        if self.noise is not None and not 0 < self.noise < math.inf:
            raise ValueError(f"the noise is {self.noise}; it is above 0 and finite")

    def wanted(self, values: torch.Tensor, trace: float, size: int, rounding: float) -> int | None:
        """Return how many of the largest eigenvalues are asked for, as far as ``values`` tell; None where they do not.

        Parameters
        ----------
        values : torch.Tensor
            (m,), descending, float64: Ritz values, none above the eigenvalue that it stands for.
        trace : float
            Sum of all eigenvalues.
        size : int
            How many eigenvalues there are, d.
        rounding : float
            By how much of itself the trace may be wrong.
        """
        if self.rank is not None:
            rank = min(self.rank, size)
            return rank if len(values) >= rank else None
        if self.noise is not None:
            above = int((values > self.noise**2).sum())
            return above if above < len(values) or len(values) == size else None
        if trace <= 0:
            return 0
        needed = ((self.energy or 0.0) - rounding) * trace
        enough = int((values.clamp(min=0).cumsum(0) < needed).sum()) + 1
        return min(enough, size) if enough <= len(values) or len(values) == size else None

    def watched(self, wanted: int, size: int) -> int:
        """Return how many of the largest eigenvalues must have settled for ``wanted`` of them to be certain."""
        # The first one at or below the noise's square is watched too, so that it is known to stay there.
        return min(size, wanted + 1) if self.noise is not None else wanted


@dataclass(frozen=True, slots=True)
class DenoisingError:
    """The expected squared error of the Wiener estimate, summed over components, in the units of the covariance.

    Parameters
    ----------
    kept : float
        ``sum(LA s^2 / (LA + s^2))`` over the kept components, s the noise: what the full filter errs there too.
    excess : float
        Upper bound of ``sum(LA^2 / (LA + s^2))`` over the components that were cut, which are set to the mean:
        what that adds to the error of the full filter.
    """

    kept: float
    excess: float


def denoising_error(
    values: torch.Tensor, noise: float, *, trace: float, squares: float, size: int, rounding: float
) -> DenoisingError:
    """Return what the Wiener filter errs with the components of ``values`` only, all others at most ``noise ** 2``.

    Parameters
    ----------
    values : torch.Tensor
        (k,), the eigenvalues that are kept, all above ``noise ** 2``.
    noise : float
        Standard deviation of the noise.
    trace, squares : float
        Sum of all eigenvalues, and of their squares: the squared Frobenius norm.
    size : int
        How many eigenvalues there are, d.
    rounding : float
        By how much of themselves the sums may be wrong; it is added to what was cut.

    Notes
    -----
    Let the n cut eigenvalues have the sum T and the sum of squares X. ``f(l) = l^2 / (l + s^2)`` is convex and 0 at 0,
    so on [0, s^2] it lies below its chord: the excess is at most T / 2. As a function of ``l^2`` it is concave, so by
    Jensen's inequality the excess is at most ``n f(sqrt(X / n))``, which is below X / s^2.
    """
    variance, found = noise**2, values.double().clamp(min=0)
    kept = float((found / (found / variance + 1)).sum())
    cut = size - len(values)
    if cut == 0:
        return DenoisingError(kept, 0.0)
    total = max(0.0, trace - float(found.sum())) + rounding * trace
    spread = math.sqrt((max(0.0, squares - float(found.square().sum())) + rounding * squares) / cut)
    typical = spread * (spread / (spread + variance))
    return DenoisingError(kept, min(total / 2, cut * typical))


@dataclass(frozen=True, slots=True)
class Record:
    """How a partial decomposition went.

    Parameters
    ----------
    passes : int
        Passes over the tiles.
    columns : int
        Columns of the basis at the end, n.
    residual : float
        Estimate of ``||S U - U diag(LA)||_F / ||S||_F`` from the Krylov relation.
    moved : float
        By how much of itself an eigenvalue moved at most since the look before.
    energy : float
        ``sum(LA) / trace(S)``.
    denoising : DenoisingError or None
        What the Wiener filter errs at the noise asked for.
    """

    passes: int
    columns: int
    residual: float
    moved: float
    energy: float
    denoising: DenoisingError | None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON takes them."""
        return asdict(self)


def sizes(target: Target, size: int, dtype: torch.dtype, budget: int, widest: int = WIDE) -> tuple[int, int]:
    """Return the columns of a block, at most ``widest``, and of the largest basis; ValueError where none fits."""
    least = min(size, target.rank or size)
    for block in _BLOCKS:
        if block > max(_BLOCKS[-1], min(2 * least - 1, max(_USUAL, (target.rank or 0) // 4), widest)):
            continue
        capacity = min(size, _capacity(block, size, dtype, budget))
        if capacity >= min(size, _SPARE * block + (least if target.rank else 0)):
            return min(size, block), capacity
    raise refused(least if target.rank else 1, size, dtype, budget)


def _need(columns: int, block: int, size: int, dtype: torch.dtype) -> int:
    """Return the bytes of a basis of ``columns`` and the work on it."""
    return (columns + _WORK * block) * size * dtype.itemsize + _SMALL * 8 * columns * columns


def _capacity(block: int, size: int, dtype: torch.dtype, budget: int) -> int:
    """Return the columns of the largest basis that fits: the root of ``_need(columns) = budget``."""
    row, small = size * dtype.itemsize, _SMALL * 8
    spare = budget - _WORK * block * row
    return int((math.sqrt(row * row + 4 * small * spare) - row) / (2 * small)) if spare > 0 else 0


def refused(pairs: int, size: int, dtype: torch.dtype, budget: int) -> ValueError:
    """Return the error that ``pairs`` eigenpairs do not fit the budget, with both sizes."""
    block = min(size, _BLOCKS[-1])
    need = _need(min(size, pairs + _SPARE * block), block, size, dtype)
    return ValueError(
        f"{pairs} eigenpairs of a {size} x {size} matrix take at least {need:,} bytes of panels, and {budget:,} are"
        " allowed; allow more memory or ask for fewer eigenpairs"
    )


def ratio(part: float, whole: float) -> float:
    """Return part / whole; a zero matrix has no scale, so its parts count as they are."""
    return part / whole if whole > 0 else part


def moved(before: torch.Tensor, values: torch.Tensor, residuals: torch.Tensor, dtype: torch.dtype) -> float:
    """Return by how much of itself a Ritz value moved at most, or can still move where its residual says less."""
    if not len(values) or float(values[0]) <= 0:
        return 0.0
    known = torch.full_like(values, math.inf)
    known[: len(before)] = before[: len(values)]
    moves = torch.minimum((values - known).abs(), residuals)
    # The rounding of S itself moves the small ones by this.
    return float((moves / (values.abs() + _NOISE * torch.finfo(dtype).eps * values[0])).max())
