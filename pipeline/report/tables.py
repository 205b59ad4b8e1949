"""What the page says in numbers: totals of the ledger, stages, certificate, files."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tilecov.storage.runs import ARTIFACTS, LEDGER, RunFolder

from ..sizes import show_size, show_time

Manifest = Mapping[str, Any]

NAMED = 50
"""Skipped samples that are named on the page; the ledger has all."""
SHARDS = 20
"""Shards whose totals are on the page."""

MEASURES = (
    ("residual", "||S U - U diag(LA)|| / ||S||"),
    ("orthogonality", "||U^T U - I|| / sqrt(k)"),
    ("trace", "|sum LA - trace S| / trace S"),
    ("frobenius", "| ||LA|| - ||S|| | / ||S||"),
    ("eigenvalue_error", "no eigenvalue is further off, relative to the largest"),
    ("energy", "sum LA / trace S"),
    ("condition", "largest / smallest eigenvalue"),
    ("rank", "eigenvalues above 0"),
    ("tail", "mean of the eigenvalues that were cut"),
)


@dataclass
class LedgerTotals:
    """The head of the ledger, and what was left out."""

    shards: list[dict[str, Any]] = field(default_factory=list)
    more_shards: int = 0
    skipped: list[tuple[str, str, str]] = field(default_factory=list)
    more_skipped: int = 0
    errors: list[tuple[str, str]] = field(default_factory=list)


def read_ledger(run: RunFolder) -> LedgerTotals:
    """Return what the page says of the ledger, read line by line; nothing where there is none yet."""
    found = LedgerTotals()
    for line in _lines(run):
        if len(found.shards) < SHARDS:
            found.shards.append({**line, "skipped": len(line["skipped"])})
        else:
            found.more_shards += 1
        for item in line["skipped"]:
            if len(found.skipped) < NAMED:
                found.skipped.append((line["url"], item["key"], item["reason"]))
            else:
                found.more_skipped += 1
        if line["error"] and len(found.errors) < NAMED:
            found.errors.append((line["url"], line["error"]))
    return found


def _lines(run: RunFolder) -> Iterator[dict[str, Any]]:
    try:
        with run.root.open(LEDGER) as stream:
            for line in stream:
                yield json.loads(line)
    except FileNotFoundError:
        return


@dataclass(frozen=True, slots=True)
class Compared:
    """A quantity as measured beside the prediction; shares are of the larger of all, for a bar.

    Parameters
    ----------
    measured, predicted : str
    share, predicted_share : float
        In percent.
    """

    measured: str
    predicted: str
    share: float
    predicted_share: float


def stages_of(manifest: Manifest) -> list[tuple[str, Compared, Compared]]:
    """Return (name, seconds, memory) of every stage of the plan; one to do has nothing measured."""
    planned = manifest["plan"]["stages"]
    done = {stage["name"]: manifest["stages"].get(stage["name"]) for stage in planned}
    longest = max([stage["seconds"] for stage in planned] + [found["seconds"] for found in done.values() if found])
    largest = max([stage["memory"] for stage in planned] + [found["peak_memory"] for found in done.values() if found])
    return [
        (
            stage["name"],
            _compare((done[stage["name"]] or {}).get("seconds"), stage["seconds"], longest, show_time),
            _compare((done[stage["name"]] or {}).get("peak_memory"), stage["memory"], largest, show_size),
        )
        for stage in planned
    ]


def _compare(measured: float | None, predicted: float, most: float, show: Any) -> Compared:
    shown = "to do" if measured is None else show(measured)
    part, expected = (
        value / (most or 1) for value in (measured or 0.0, predicted)
    )  # so that the largest is 100 exactly
    return Compared(shown, show(predicted), 100 * part, 100 * expected)


def certificate_of(manifest: Manifest) -> list[tuple[str, str, str]]:
    """Return (measure, value, what it is)."""
    found = manifest.get("certificate", {})
    return [(name.replace("_", " "), _number(found.get(name)), meaning) for name, meaning in MEASURES if found]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


@dataclass(frozen=True, slots=True)
class File:
    """A file of the run.

    Parameters
    ----------
    name, path, shape, size, sha256 : str
        ``path`` from the run folder.
    """

    name: str
    path: str
    shape: str
    size: str
    sha256: str


def files_of(manifest: Manifest) -> list[File]:
    """Return the artifacts."""
    size = manifest["plan"]["size"]
    rank = (manifest.get("spectrum") or {}).get("rank", size)
    shapes = {"U.pt": (size, rank), "LA.pt": (rank,), "Vh.pt": (rank, size), "mean.pt": (size,)}
    found = manifest.get("artifacts", {})
    return [
        File(
            name,
            f"{ARTIFACTS}/{name}",
            " x ".join(f"{n:,}" for n in shapes[name]),
            _bytes(shapes[name]),
            item["sha256"],
        )
        for name, item in found.items()
        if name in shapes
    ]


def _bytes(shape: tuple[int, ...]) -> str:
    count = 4
    for length in shape:
        count *= length
    return show_size(count)
