"""How time and peak memory grow with N, d and workers: measured, fitted and drawn.

Whole runs, one thread for each worker. ``peers.py --table growth`` runs it.
"""

import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from contests import ALONE, Scale
from here import code, machine
from turns import Entry, measure

from tilecov.pipeline.costs import upper_entries

MIB = 2**20
ROUNDS = 2


@dataclass(frozen=True)
class Point:
    """One size.

    Parameters
    ----------
    series : str
        What grows: ``N, 1 worker``, ``N, 2 workers``, ``d, full rank`` or ``d, rank 256``.
    count, side : int
    job : mapping
        What else the contender is told.
    """

    series: str
    count: int
    side: int
    job: dict[str, Any]

    @property
    def size(self) -> int:
        """Values of a row, d."""
        return 3 * self.side**2

    @property
    def name(self) -> str:
        """Its name among what is kept."""
        return f"{self.series}: {self.count} of {self.side}"

    def entry(self, scale: Scale) -> Entry:
        """Return what is measured; shorter series read the first shards of the longest."""
        most = {"N": 40_000, "d": 4_000}[self.series[0]] if not scale.quick else self.count
        shards = scale.shards(most, self.side, 3)[: -(-self.count // 1000)]
        same = {"shards": shards, "count": self.count, "resolution": self.side, "channels": 3}
        arguments = {**same, "folder": str(Path(shards[0]).parent), "threads": 1, **self.job}
        return Entry(self.name, "jobs.tilecov", arguments, environment=ALONE)


def points(*, quick: bool) -> Iterator[Point]:
    """Yield all sizes, the small ones first."""
    counts = (200, 400) if quick else (2_000, 5_000, 10_000, 20_000, 40_000)
    sides = (4, 8) if quick else (16, 24, 32, 40, 48)
    count, side, rank = (200, 8, 4) if quick else (4_000, 32, 256)
    for rows in counts:
        for workers in (1, 2):
            yield Point(f"N, {workers} worker{'s'[: workers - 1]}", rows, side, {"rank": 0, "workers": workers})
    for grown in sides:
        yield Point("d, full rank", count, grown, {"svd": "direct"})
        yield Point("d, rank 256", count, grown, {"svd": "randomized", "rank": rank})


def grow(scale: Scale, out: Path, rounds: int | None, *, fresh: bool = False) -> str:
    """Measure, fit, draw; return the page. What is in ``out`` already is not measured again."""
    wanted, file = list(points(quick=scale.quick)), out / "growth.json"
    if fresh:
        file.unlink(missing_ok=True)
    measured = collect(wanted, scale, 1 if scale.quick else rounds or ROUNDS, file)
    found = [Grown(point, measured[point.name]) for point in wanted]
    (out / "growth.md").write_text(page(found))
    draw(found, out / "growth.png")
    return page(found)


def collect(wanted: Sequence[Point], scale: Scale, rounds: int, file: Path) -> dict[str, list[dict[str, Any]]]:
    """Measure every point once a round, what ``file`` has already counted in."""
    kept = json.loads(file.read_text()) if file.exists() else {}
    now = code()
    if (kept.get("machine"), kept.get("code", {}).get("sources")) != (machine(), now["sources"]):
        kept = {"machine": machine(), "code": now, "points": {}}
    found: dict[str, list[dict[str, Any]]] = kept["points"]
    for number in range(rounds):
        for point in wanted:
            if len(found.setdefault(point.name, [])) <= number:
                measured = measure(point.entry(scale))
                if measured["proof"]["rows"] != [point.count]:
                    raise RuntimeError(f"{point.name}: {measured['proof']['rows']} rows were used")
                found[point.name].append({name: measured[name] for name in ("seconds", "peak", "detail")})
                file.write_text(json.dumps(kept, indent=1) + "\n")
    return found


@dataclass(frozen=True)
class Grown:
    """A point and what was measured there."""

    point: Point
    rounds: Sequence[dict[str, Any]]

    @property
    def seconds(self) -> float:
        """Median of the whole job."""
        return statistics.median(found["seconds"] for found in self.rounds)

    @property
    def peak(self) -> float:
        """Median peak memory, MiB."""
        return statistics.median(found["peak"] for found in self.rounds) / MIB

    def stage(self, name: str) -> float:
        """Median seconds of a stage."""
        return statistics.median(found["detail"][name] for found in self.rounds)


def line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float]:
    """Return a, b and R^2 of y = a + b x, by least squares."""
    slope, start = np.polyfit(x, y, 1)
    rest = np.asarray(y) - start - slope * np.asarray(x)
    return float(start), float(slope), float(1 - rest.var() / np.var(y))


def power(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the exponent p of y = c x^p."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def of(found: Sequence[Grown], series: str) -> list[Grown]:
    """Return the points of a series."""
    return [grown for grown in found if grown.point.series == series]


def gained_by_two(found: Sequence[Grown]) -> float:
    """Return how many times as many rows a second two workers take as one, start-up apart."""
    one, two = (line([g.point.count for g in of(found, s)], [g.seconds for g in of(found, s)])[1] for s in SERIES)
    return one / two


def products_fit(found: Sequence[Grown]) -> tuple[float, float, float]:
    """Return `line` of the moments' seconds against the operations of their products, 2 N E."""
    products = [2.0 * grown.point.count * upper_entries(grown.point.size) for grown in found]
    return line(products, [grown.stage("moments") for grown in found])


def peak_fit(found: Sequence[Grown]) -> tuple[float, float, float]:
    """Return `line` of the peak memory, MiB, against d^2."""
    return line([grown.point.size**2 for grown in found], [grown.peak for grown in found])


HEADING = """\
# How cost grows

{machine}

Whole runs, {rounds} of each size, medians; one thread for each worker. Peak memory is that of the process tree. E is
the number of entries of the upper tiles, about d (d + 1,024) / 2.

![growth](growth.png)

| what grows | N | d | seconds | moments | spectrum | peak MiB |
| --- | ---: | ---: | ---: | ---: | ---: | ---: |
"""


def page(found: Sequence[Grown]) -> str:
    """Return the measures and their fits as markdown."""
    lines = HEADING.format(machine=machine(), rounds=len(found[0].rounds)).splitlines()
    for grown in found:
        point = grown.point
        spectrum = f"{grown.stage('spectrum'):.2f}" if "spectrum" in grown.rounds[0]["detail"] else ""
        times = f"{grown.seconds:.2f} | {grown.stage('moments'):.2f} | {spectrum}"
        lines.append(f"| {point.series} | {point.count:,} | {point.size:,} | {times} | {grown.peak:,.0f} |")
    return "\n".join([*lines, "", *fits(found)]) + "\n"


def fits(found: Sequence[Grown]) -> Iterator[str]:
    """Yield the fits, a line each."""
    for series in ("N, 1 worker", "N, 2 workers"):
        grown = of(found, series)
        counts = [one.point.count for one in grown]
        start, slope, good = line(counts, [one.seconds for one in grown])
        yield f"- {series}: {start:.2f} s + {1e6 * slope:.0f} us x N (R^2 {good:.4f})"
        start, slope, _ = line(counts, [one.peak for one in grown])
        yield f"- {series}: peak {start:,.0f} MiB + {1000 * slope:.2f} MiB x N / 1,000"
    yield f"- 2 workers take {gained_by_two(found):.2f} times as many rows a second as 1, start-up apart"
    full, part = of(found, "d, full rank"), of(found, "d, rank 256")
    start, slope, good = products_fit(full)
    rate = 1e-9 / slope
    yield f"- moments, N = {full[0].point.count:,}: {start:.2f} s + 2 N E / {rate:.0f} GFLOPS (R^2 {good:.4f})"
    for name, series in (("direct, d x d", full), ("randomized, rank 256", part)):
        sizes, seconds = [g.point.size for g in series], [g.stage("spectrum") for g in series]
        steep = power(sizes[-3:], seconds[-3:])
        yield f"- spectrum, {name}: {seconds[-1]:.2f} s at d = {sizes[-1]:,}, as d^{steep:.2f}"
        start, slope, good = peak_fit(series)
        yield f"- peak, {name}: {start:,.0f} MiB + {slope * MIB:.1f} bytes x d^2 (R^2 {good:.4f})"


SERIES = ("N, 1 worker", "N, 2 workers")


def draw(found: Sequence[Grown], path: Path) -> None:
    """Draw time and memory against N and d, fits as lines."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, ((time_n, time_d), (peak_n, peak_d)) = plt.subplots(2, 2, figsize=(10, 7.5), layout="constrained")
    for series, colour in zip(SERIES, ("#1b6ca8", "#d1662b"), strict=True):
        grown = of(found, series)
        counts = np.array([one.point.count for one in grown])
        for panel, values in ((time_n, [one.seconds for one in grown]), (peak_n, [one.peak for one in grown])):
            start, slope, _ = line(counts, values)
            panel.plot(counts, start + slope * counts, color=colour, lw=1)
            panel.plot(counts, values, "o", color=colour, label=series[3:])
    full, part = of(found, "d, full rank"), of(found, "d, rank 256")
    sizes = np.array([one.point.size for one in full])
    parts = [("moments", full, "moments", 2, "#1b6ca8"), ("direct", full, "spectrum", 3, "#d1662b"),
             ("rank 256", part, "spectrum", 2, "#4a8f3c")]  # fmt: skip
    for label, series, stage, order, colour in parts:
        values = np.array([one.stage(stage) for one in series])
        time_d.loglog(sizes, values[-1] * (sizes / sizes[-1]) ** order, color=colour, lw=1, ls="--")
        time_d.loglog(sizes, values, "o", color=colour, label=f"{label} (line: d^{order})")
    time_d.set_xticks(sizes, [f"{size:,}" for size in sizes])
    time_d.minorticks_off()
    for label, series, colour in (("direct", full, "#d1662b"), ("rank 256", part, "#4a8f3c")):
        values = [one.peak for one in series]
        start, slope, _ = peak_fit(series)
        grid = np.linspace(sizes[0], sizes[-1], 50)
        peak_d.plot(grid, start + slope * grid**2, color=colour, lw=1)
        peak_d.plot(sizes, values, "o", color=colour, label=label)
    for panel, title, across, up in (
        (time_n, f"Time against N, d = {of(found, SERIES[0])[0].point.size:,}", "images", "seconds"),
        (time_d, f"Stages against d, N = {full[0].point.count:,}", "d", "seconds"),
        (peak_n, "Peak memory against N", "images", "MiB"),
        (peak_d, "Peak memory against d", "d", "MiB"),
    ):
        panel.set(title=title, xlabel=across, ylabel=up)
        panel.legend(frameon=False)
        panel.spines[["top", "right"]].set_visible(False)
    for panel in (time_n, peak_n, peak_d):
        panel.set_ylim(bottom=0)
    figure.savefig(path, dpi=110)
    plt.close(figure)
