"""Curves over the rank as the templates draw them: paths and ticks in the units of an SVG's view box."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

WIDTH, HEIGHT = 480, 320
LEFT, RIGHT, TOP, BOTTOM = 62, 470, 14, 270
_POINTS = 400  # of a curve: more than a screen shows
_TICKS = 7  # labels on an axis at most


@dataclass(frozen=True, slots=True)
class Tick:
    """A grid line and its label; ``raised`` is the exponent of a power of ten.

    Parameters
    ----------
    at : float
    text : str
    raised : str
    """

    at: float
    text: str
    raised: str = ""


@dataclass(frozen=True, slots=True)
class Mark:
    """A point of a curve that is worth a dot.

    Parameters
    ----------
    x, y : float
    text : str
    """

    x: float
    y: float
    text: str


@dataclass(frozen=True, slots=True)
class Plot:
    """A curve over the rank.

    Parameters
    ----------
    title, x_name, y_name, summary : str
        ``summary`` says in words what the curve shows.
    path : str
        What an SVG path takes as ``d``.
    x_ticks, y_ticks : sequence of Tick
    marks : sequence of Mark
    """

    title: str
    x_name: str
    y_name: str
    summary: str
    path: str
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    marks: Sequence[Mark] = ()


@dataclass(frozen=True, slots=True)
class _Axis:
    """Maps numbers to places along an axis; the logarithm is taken before."""

    low: float
    high: float
    start: float
    stop: float

    def place(self, number: Array | float) -> Any:
        share = (number - self.low) / ((self.high - self.low) or 1.0)
        return self.start + share * (self.stop - self.start)


def thinned(count: int, points: int = _POINTS) -> Array:
    """Return some of the ranks 1 to ``count``, evenly spread on a logarithmic axis, the first and last among them."""
    if count <= points:
        return np.arange(1, count + 1)
    return np.unique(np.rint(np.geomspace(1, count, points)).astype(np.int64))


def spectrum_plot(values: Array) -> Plot:
    """Plot eigenvalues (k,), descending, against their rank, both logarithmic; those of 0 have no place on it."""
    positive = np.asarray(values, np.float64)[: int(np.count_nonzero(values > 0))]
    ranks = thinned(len(positive))
    logs = np.log10(positive[ranks - 1])
    low, high = math.floor(logs.min()), math.ceil(logs.max())
    y = _Axis(low, max(high, low + 1), BOTTOM, TOP)
    x = _rank_axis(len(positive))
    summary = (
        f"{len(positive):,} eigenvalues above 0, from {positive[0]:.4g} down to {positive[-1]:.4g}, against their rank"
    )
    return Plot(
        "Spectrum", "rank", "eigenvalue", summary, _path(x.place(np.log10(ranks)), y.place(logs)),
        _decades(x), _decades(y),
    )  # fmt: skip


def energy_plot(values: Array, trace: float, marks: Sequence[float] = (0.5, 0.9, 0.99, 0.999)) -> Plot:
    """Plot the share of the trace that the leading eigenvalues hold against their number."""
    kept = np.minimum(np.cumsum(values, dtype=np.float64) / trace, 1.0)
    ranks = thinned(len(kept))
    x, y = _rank_axis(len(kept)), _Axis(0.0, 1.0, BOTTOM, TOP)
    found = [(share, int(np.searchsorted(kept, share)) + 1) for share in marks if share <= kept[-1]]
    dots = [
        Mark(float(x.place(math.log10(rank))), float(y.place(kept[rank - 1])), f"{share:.1%} at rank {rank:,}")
        for share, rank in found
    ]
    ticks = [Tick(float(y.place(share / 4)), f"{25 * share}%") for share in range(5)]
    said = "; ".join(mark.text for mark in dots) or f"{kept[-1]:.1%} at rank {len(kept):,}"
    return Plot(
        "Energy kept against rank", "rank", "share of the trace", said,
        _path(x.place(np.log10(ranks)), y.place(kept[ranks - 1])), _decades(x), ticks, dots,
    )  # fmt: skip


def _rank_axis(count: int) -> _Axis:
    return _Axis(0.0, max(math.log10(count), 0.3), LEFT, RIGHT)


def _decades(axis: _Axis) -> list[Tick]:
    """Return a tick a decade, or every few where there are many."""
    first, last = math.ceil(axis.low - 1e-9), math.floor(axis.high + 1e-9)
    step = -(-(last - first + 1) // _TICKS)
    return [Tick(float(axis.place(power)), "10", str(power)) for power in range(first, last + 1, step)]


def _path(xs: Array, ys: Array) -> str:
    places = [f"{x:.1f} {y:.1f}" for x, y in zip(xs, ys, strict=True)]
    return "M" + " L".join(places if len(places) > 1 else places * 2)
