"""The fits of docs/bench/growth.md carried to the two jobs of docs/scaling.md: what one core of it takes.

Usage: carried.py

Pure arithmetic, as scaling.py. The randomized spectrum is carried as its operations grow, d^2 k: the exponent that its
sizes show is one of small sizes.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from growth import MIB, Grown, gained_by_two, of, peak_fit, points, products_fit
from scaling import RANK, Cluster, Dataset, size, table, time

from tilecov.pipeline.methods import LAPACK_LIMIT

GROWTH = Path(__file__).parents[2] / "docs" / "bench" / "growth.json"
_RANK = 256
"""Of the series that was measured."""


def main() -> None:
    """Print the table."""
    sys.stdout.write(table(carried, "what | fit") + "\n")


def carried(data: Dataset, _: Cluster) -> Iterator[tuple[str, str, str]]:
    """Yield what the fits say of a dataset."""
    measured = json.loads(GROWTH.read_text())["points"]
    found = [Grown(point, measured[point.name]) for point in points(quick=False)]
    full, part = of(found, "d, full rank"), of(found, f"d, rank {_RANK}")
    last, d, direct = full[-1].point.size, data.size, data.size < LAPACK_LIMIT
    _, slope, _ = products_fit(full)
    yield "moments, products", f"2 N E / {1e-9 / slope:.0f}e9", time(data.products * slope)
    gained = gained_by_two(found)
    yield "by 2 workers, a core each", f"/ {gained:.2f}", time(data.products * slope / gained)
    seconds = full[-1].stage("spectrum")
    cube = time(seconds * (d / last) ** 3) if direct else "LAPACK ends before"
    yield "spectrum, direct", f"{seconds:.1f} s (d / {last:,})^3", cube
    start, slope, _ = peak_fit(full)
    peak = size((start + slope * d**2) * MIB) if direct else "not possible"
    yield "its peak memory", f"{start:.0f} MiB + {slope * MIB:.1f} d^2", peak
    seconds = part[-1].stage("spectrum")
    square = seconds * (d / last) ** 2 * RANK / _RANK
    yield f"spectrum, rank {RANK:,}", f"{seconds:.2f} s (d / {last:,})^2 k / {_RANK}", time(square)


if __name__ == "__main__":
    main()
