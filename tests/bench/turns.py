"""Contenders measured turn by turn, each in a process of its own, and what was measured, kept on disk."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
LIMIT = 3600.0
"""Seconds that one measure may take."""
SLOW_BLAS = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")

Measured = dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """A line of a table.

    Parameters
    ----------
    name, function : str
    arguments : mapping
    tolerance : float
        Of its proof against the first line's, relative to the largest number of each group; 0 for equality.
    environment : mapping
    """

    name: str
    function: str
    arguments: Mapping[str, Any]
    tolerance: float = 1e-3
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Contest:
    """Entries at the same work; the first is ours.

    Parameters
    ----------
    name, title : str
    note : str
        What a reader must know: who does what.
    entries : callable
        () -> the entries; makes their data.
    rounds : int
    """

    name: str
    title: str
    note: str
    entries: Callable[[], Sequence[Entry]]
    rounds: int = 5


class WrongResultError(RuntimeError):
    """A contender found other numbers than ours: no table is made of that."""


def take_turns(contest: Contest, rounds: int, kept: list[dict[str, Measured]], save: Callable[[], None]) -> None:
    """Measure every contender once a round, forwards and backwards in turn, until there are ``rounds``."""
    if len(kept) >= rounds:
        return
    entries = contest.entries()
    while len(kept) < rounds:
        backwards = len(kept) % 2
        found = {entry.name: measure(entry, first=not kept) for entry in (entries[::-1] if backwards else entries)}
        check(entries, found)
        kept.append({entry.name: found[entry.name] for entry in entries})
        save()


def measure(entry: Entry, *, first: bool = True) -> Measured:
    """Measure once; what takes another reading is proven in the ``first`` round alone.

    Raises
    ------
    RuntimeError
        With the contender's last words.
    """
    arguments = dict(entry.arguments)
    if "check" in arguments:
        arguments["check"] = first
    environment = {name: value for name, value in os.environ.items() if name not in SLOW_BLAS}
    command = [sys.executable, "-W", "ignore", str(HERE / "measure.py"), entry.function, json.dumps(arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=LIMIT, check=False,
        env={**environment, **entry.environment},
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{entry.name}: {done.stderr[-2000:]}")
    measured: Measured = json.loads(done.stdout.splitlines()[-1])
    return measured


def check(entries: Sequence[Entry], found: Mapping[str, Measured]) -> None:
    """Raise WrongResultError where a proof differs from ours: in rows at all, else by more than the tolerance."""
    ours = found[entries[0].name]["proof"]
    for entry in entries:
        theirs = found[entry.name]["proof"]
        for group, numbers in theirs.items():
            allowed = 0.0 if group == "rows" else entry.tolerance * max(map(abs, ours[group]))
            worst = max(abs(a - b) for a, b in zip(ours[group], numbers, strict=True))
            if not worst <= allowed:
                raise WrongResultError(
                    f"{entry.name} found {group} {numbers}, {entries[0].name} {ours[group]}: {worst} apart, "
                    f"{allowed} allowed"
                )
