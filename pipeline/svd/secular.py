"""The secular equation: the eigenvalues and eigenvectors of a diagonal matrix plus a rank-one matrix.

``diag(poles) + rho z z^T`` has its eigenvalues at the roots of ``1/rho + sum_i z_i^2 / (poles_i - x)``. Each is held as
the pole next to it and the offset from that pole, so that its distance to every pole is accurate to all digits however
close they lie. The eigenvectors are those of a nearby ``z`` to which the computed roots belong exactly, and come out
orthogonal without any orthogonalisation (Gu and Eisenstat, A stable and efficient algorithm for the rank-one
modification of the symmetric eigenproblem, 1994). They are generated when wanted and never kept.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

_EPSILON = float(torch.finfo(torch.float64).eps)
_CHUNK = 1 << 16  # float64 numbers worked on at a time: a core's cache holds them
_STEPS = 200  # bisection alone gets from the widest bracket to the smallest offset in fewer


@dataclass(frozen=True, slots=True)
class Secular:
    """The eigenvectors W (n, n) of ``diag(poles) + rho z z^T`` as 5 n numbers.

    ``W[i, j] = weights_i / (scales_j D_ij)``, where ``D_ij = (poles_i - poles[anchors_j]) - offsets_j`` is the distance
    of pole i from root j.

    Parameters
    ----------
    poles : torch.Tensor
        (n,) float64, ascending, no two alike.
    weights : torch.Tensor
        (n,) float64, z as the computed roots would have it.
    anchors : torch.Tensor
        (n,) int64, the pole next to each root.
    offsets : torch.Tensor
        (n,) float64, each root less that pole.
    scales : torch.Tensor
        (n,) float64, what makes the columns unit vectors.
    """

    poles: torch.Tensor
    weights: torch.Tensor
    anchors: torch.Tensor
    offsets: torch.Tensor
    scales: torch.Tensor

    def __len__(self) -> int:
        return len(self.poles)

    @property
    def values(self) -> torch.Tensor:
        """The eigenvalues (n,), ascending."""
        return self.poles[self.anchors] + self.offsets

    def to(self, device: torch.device) -> "Secular":
        """Return the same on ``device``."""
        moved = (self.poles, self.weights, self.anchors, self.offsets, self.scales)
        return Secular(*(numbers.to(device) for numbers in moved))

    def columns(self, chosen: torch.Tensor) -> "Secular":
        """Return what generates the columns ``chosen`` (m,) int64 of W only."""
        return Secular(self.poles, self.weights, self.anchors[chosen], self.offsets[chosen], self.scales[chosen])

    def unscaled(self, room: torch.Tensor, most: int | None = None) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield rows and ``(W * scales)[rows]``; each block is overwritten by the next.

        Distances are taken in float64 whatever the dtype. A block lies in ``room`` (n,), of which it has the dtype, or,
        where that has no room for one row, in memory of its own; it has at most ``most`` rows.
        """
        width, nearest, weights = len(self.offsets), self.poles[self.anchors], self.weights.to(room.dtype)
        height = min(len(self.poles), _height(width, len(room)), most or len(self.poles))
        room = room if height * width <= len(room) else room.new_empty(height * width)
        block = room[: height * width].view(height, width)
        strip = torch.empty((min(height, _height(width)), width), dtype=torch.float64, device=self.poles.device)
        for rows in _spans(0, len(self.poles), height):
            part = block[: rows.stop - rows.start]
            for here in _spans(rows.start, rows.stop, len(strip)):
                distances = strip[: here.stop - here.start]
                torch.sub(self.poles[here, None], nearest, out=distances).sub_(self.offsets)
                part[here.start - rows.start : here.stop - rows.start] = distances
            yield rows, torch.div(weights[rows, None], part, out=part)


def decompose_update(
    poles: torch.Tensor, z: torch.Tensor, rho: float, rows: torch.Tensor
) -> tuple[Secular, torch.Tensor]:
    """Decompose ``diag(poles) + rho z z^T = W diag(values) W^T`` in O(n^2) time and O(n) memory.

    Parameters
    ----------
    poles : torch.Tensor
        (n,) float64, ascending. No two may be so close, and no entry of z so small, that a rotation or
        zero in its place would do (deflation); otherwise roots are not separated from the poles.
    z : torch.Tensor
        (n,) float64.
    rho : float
        Positive.
    rows : torch.Tensor
        (m, n) float64, a few vectors that are wanted in the new coordinates.

    Returns
    -------
    Secular
    torch.Tensor
        ``rows @ W`` (m, n).

    Raises
    ------
    RuntimeError
        Where a root is not found, which happens to non-finite numbers only.
    """
    if len(poles) == 0:
        return Secular(poles, z, torch.empty(0, dtype=torch.int64), poles, poles), rows
    anchors, offsets = _roots(poles, z.square(), rho)
    weights = _weights(poles, anchors, offsets).copysign(z)
    scales, turned = _normalise(poles, weights, anchors, offsets, rows)
    return Secular(poles, weights, anchors, offsets, scales), turned


def _height(width: int, most: int = _CHUNK) -> int:
    """Return how many rows of ``width`` numbers make ``most`` numbers, at least one."""
    return max(1, most // max(1, width))


def _spans(start: int, stop: int, step: int) -> Iterator[slice]:
    return (slice(first, min(first + step, stop)) for first in range(start, stop, max(1, step)))


def _distances(
    poles: torch.Tensor, nearest: torch.Tensor, offsets: torch.Tensor
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield roots and poles - root (roots, n), overwritten by the next."""
    buffer = torch.empty((min(len(offsets), _height(len(poles))), len(poles)), dtype=torch.float64)
    for chosen in _spans(0, len(offsets), len(buffer)):
        part = buffer[: chosen.stop - chosen.start]
        yield chosen, torch.sub(poles, nearest[chosen, None], out=part).sub_(offsets[chosen, None])


def _sums(
    poles: torch.Tensor, squares: torch.Tensor, nearest: torch.Tensor, offsets: torch.Tensor, roots: torch.Tensor
) -> torch.Tensor:
    """Return the sums of z^2 / D over the poles below the root and above it, and those of z^2 / D^2: (4, m).

    ``roots`` (m,) int64, ascending: root j lies between poles j and j + 1.
    """
    sums = torch.empty((4, len(roots)), dtype=torch.float64)
    places = roots.tolist()
    indices = torch.arange(len(poles))
    for chosen, part in _distances(poles, nearest, offsets):
        low, high = places[chosen.start], places[chosen.stop - 1] + 1
        part.reciprocal_()
        upper = indices[low:high] > roots[chosen, None]
        for below, above in (sums[:2, chosen], sums[2:, chosen]):
            torch.mv(part[:, :low], squares[:low], out=below)
            torch.mv(part[:, high:], squares[high:], out=above)
            middle = part[:, low:high] * squares[low:high]
            below.add_(middle.masked_fill(upper, 0).sum(dim=1))
            above.add_(middle.masked_fill_(upper.logical_not(), 0).sum(dim=1))
            part.square_()
    return sums


class _Search(NamedTuple):
    """The roots that are still looked for, each as an offset from the pole it is anchored to.

    All are (m,): ``roots`` and ``anchors`` int64, ``fitted`` bool, the rest float64. ``low`` and ``high`` bracket the
    offset, ``left`` and ``right`` are the poles beside the root as offsets (one of them is 0), ``before`` is how far
    from 0 the function last was, and ``fitted`` says by which of two rules the root moves.
    """

    roots: torch.Tensor
    anchors: torch.Tensor
    offsets: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor
    left: torch.Tensor
    right: torch.Tensor
    before: torch.Tensor
    fitted: torch.Tensor

    def where(self, chosen: torch.Tensor) -> "_Search":
        """Return those of the roots that ``chosen`` (m,) bool says."""
        return _Search(*(part[chosen] for part in self))


def _between(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """Return the root of ``c x^2 - a x + b`` that lies between the poles, without cancellation (LAPACK's dlaed4)."""
    root = (a.square() - 4 * b * c).abs_().sqrt_()
    return torch.where(a <= 0, (a - root) / (2 * c), 2 * b / (a + root))


def _within(offsets: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Return ``offsets``, or the middle of the bracket for those outside it or not a number."""
    return torch.where((offsets > low) & (offsets < high), offsets, (low + high) / 2)


def _roots(poles: torch.Tensor, squares: torch.Tensor, rho: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the nearest pole (n,) int64 of every root of the secular equation and the offset (n,) from it."""
    search = _begin(poles, squares, rho)
    anchors, offsets = search.anchors, torch.empty_like(poles)
    for _ in range(_STEPS):
        found, moved, search = _step(poles, squares, rho, search)
        offsets[search.roots[found]] = search.offsets[found]
        search = search._replace(offsets=moved).where(~found)
        if len(search.roots) == 0:
            return anchors, offsets
    raise RuntimeError(f"{len(search.roots)} of {len(poles)} roots of a secular equation were not found")


def _begin(poles: torch.Tensor, squares: torch.Tensor, rho: float) -> _Search:
    """Return for every root the pole next to it, a bracket, and the guess of LAPACK's dlaed4.

    The sign of the function half way between two poles says which of them is next to the root; all other poles count
    for the guess as they do there.
    """
    index = torch.arange(len(poles))
    # The last root lies between the last pole and this bound on it, which stands for a pole that weighs nothing.
    bound = rho * squares.sum(dim=0, keepdim=True) * (1 + 4 * _EPSILON)
    gaps = torch.cat([poles.diff(), bound])
    middle = gaps / 2
    below, above, _, _ = _sums(poles, squares, poles, middle, index)
    value = 1 / rho + below + above
    leftward = (value >= 0) | (index == len(poles) - 1)
    left, right = torch.where(leftward, 0, -gaps), torch.where(leftward, gaps, 0)
    low, high = torch.where(value >= 0, left, left + middle), torch.where(value >= 0, left + middle, right)
    following = torch.cat([squares[1:], squares.new_zeros(1)])
    rest = value + (squares - following) / middle
    guess = _between(rest * (left + right) + squares + following, squares * right + following * left, rest)
    return _Search(
        roots=index,
        anchors=torch.where(leftward, index, index + 1),
        offsets=_within(guess, low, high),
        low=low,
        high=high,
        left=left,
        right=right,
        before=torch.full_like(value, torch.inf),
        fitted=torch.zeros_like(leftward),
    )


def _step(
    poles: torch.Tensor, squares: torch.Tensor, rho: float, search: _Search
) -> tuple[torch.Tensor, torch.Tensor, _Search]:
    """Return which roots are found (m,) bool, where the others move (m,), and what was learned about them.

    A step replaces the equation by one with only the two poles beside the root and solves that. The pole next to the
    root keeps its weight and the rest is fitted to value and slope, or each side is fitted by itself ("the middle
    way"); a root changes from one to the other where a step gains less than a digit (R.-C. Li, Solving secular
    equations stably and efficiently, LAPACK Working Note 89, 1993).
    """
    _, anchors, offsets, _, _, left, right, _, _ = search
    below, above, below_slope, above_slope = _sums(poles, squares, poles[anchors], offsets, search.roots)
    value, slope = 1 / rho + below + above, below_slope + above_slope
    low = torch.where(value <= 0, offsets, search.low)
    high = torch.where(value <= 0, search.high, offsets)
    # What rounding may have made of the value, as LAPACK counts it: below that there is nothing to gain.
    doubt = _EPSILON * (8 * (1 / rho + above - below) + offsets.abs() * slope)
    found = (value.abs() <= doubt) | (high - low <= 2 * _EPSILON * torch.maximum(low.abs(), high.abs()))
    to_left, to_right = left - offsets, right - offsets
    fitted = search.fitted ^ (value.abs() > 0.1 * search.before)
    own = (right - left) * squares[anchors] / offsets.square()
    kept = value + torch.where(left == 0, own - to_right * slope, -own - to_left * slope)
    constant = torch.where(fitted, value - to_left * below_slope - to_right * above_slope, kept)
    move = _between((to_left + to_right) * value - to_left * to_right * slope, to_left * to_right * value, constant)
    move = torch.where(move * value < 0, move, -value / slope)
    learned = search._replace(low=low, high=high, before=value.abs(), fitted=fitted)
    return found, _within(offsets + move, low, high), learned


def _weights(poles: torch.Tensor, anchors: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Return |z| (n,), up to a common factor, such that the roots are the exact eigenvalues (Loewner's formula).

    ``z_i^2 = prod_j (root_j - pole_i) / prod_{j != i} (pole_j - pole_i)``. Root j is paired with pole j where that is
    below pole i and with pole j + 1 otherwise, so that every factor lies between 0 and 1 and none overflows.
    """
    product = torch.ones_like(poles)
    index = torch.arange(len(poles))
    upper = torch.cat([poles[1:], poles.new_zeros(1)])
    for chosen, part in _distances(poles, poles[anchors], offsets):
        first, stop = chosen.start, chosen.stop
        last = part[-1].neg() if stop == len(poles) else None
        part[:, :first] /= poles[:first] - upper[chosen, None]
        part[:, stop:] /= poles[stop:] - poles[chosen, None]
        under = index[chosen] <= index[chosen, None]
        part[:, chosen] /= poles[chosen] - torch.where(under, upper[chosen, None], poles[chosen, None])
        if last is not None:
            part[-1] = last
        product *= part.prod(dim=0)
    return product.abs_().sqrt_()


def _normalise(
    poles: torch.Tensor, weights: torch.Tensor, anchors: torch.Tensor, offsets: torch.Tensor, rows: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the norms (n,) of the columns ``weights / D`` and ``rows @ W`` (m, n)."""
    scales = torch.empty_like(poles)
    turned = torch.empty((len(poles), len(rows)), dtype=torch.float64)
    weighted, squares = (rows * weights).T.contiguous(), weights.square()
    for chosen, part in _distances(poles, poles[anchors], offsets):
        torch.mm(part.reciprocal_(), weighted, out=turned[chosen])
        torch.mv(part.square_(), squares, out=scales[chosen])
    scales.sqrt_()
    return scales, (turned / scales[:, None]).T
