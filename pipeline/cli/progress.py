"""Progress: a bar on a terminal, plain lines elsewhere, nothing where it is quiet, or JSON. It goes to stderr."""

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ..observer import Observer
from ..sizes import show_time
from .tables import print_plan

if TYPE_CHECKING:
    from ..plan import Plan

_EVERY = 5.0  # seconds between two plain lines


@contextmanager
def make_observer(*, quiet: bool, log: str = "text", secrets: Iterable[str] = ()) -> Iterator[Observer]:
    """Give the observer that suits where the output goes; ``log="json"`` is asked for and not silenced by ``quiet``."""
    if log == "json":
        from .log import logging

        with logging(secrets) as observer:
            yield observer
        return
    if quiet:
        yield Observer()
        return
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield Lines()
        return
    columns = (
        TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[unit]}"),
        TextColumn("{task.fields[rate]}"), TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console) as progress:
        yield Bar(progress)


class _Counting(Observer):
    """Shows the plan, and counts what is done in the stage under way."""

    def planned(self, plan: "Plan") -> None:
        """Print the plan."""
        print_plan(plan, stderr=True)

    def stage(self, name: str, total: int, unit: str) -> None:
        self.name, self.total, self.things = name, total, unit
        self.done = self.rows = 0
        self.started = time.monotonic()

    def advance(self, done: int, rows: int = 0) -> None:
        self.done += done
        self.rows += rows

    @property
    def rate(self) -> str:
        elapsed = time.monotonic() - self.started
        return f"{self.rows / elapsed:,.0f} rows/s" if self.rows and elapsed > 0 else ""


class Bar(_Counting):
    """Draws a bar a stage."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task: TaskID | None = None

    def note(self, text: str) -> None:
        """Print a line above the bars."""
        self._progress.console.print(text, soft_wrap=True)

    def stage(self, name: str, total: int, unit: str) -> None:
        """Start a bar."""
        super().stage(name, total, unit)
        self._task = self._progress.add_task(name, total=total or None, unit=unit, rate="")

    def advance(self, done: int, rows: int = 0) -> None:
        """Move the bar."""
        super().advance(done, rows)
        if self._task is not None:
            self._progress.update(self._task, advance=done, rate=self.rate)


class Lines(_Counting):
    """Prints a line now and then."""

    def __init__(self) -> None:
        self._last = 0.0

    def note(self, text: str) -> None:
        """Print a line."""
        print(text, file=sys.stderr, flush=True)

    def advance(self, done: int, rows: int = 0) -> None:
        """Print a line where the last one is a while ago."""
        super().advance(done, rows)
        if time.monotonic() - max(self._last, self.started) >= _EVERY:
            self._last = time.monotonic()
            left = (
                (self._last - self.started) * (self.total - self.done) / self.done if self.done and self.total else None
            )
            eta = f", {show_time(left)} left" if left is not None else ""
            self.note(f"{self.name}: {self.done}/{self.total} {self.things} {self.rate}{eta}")

    def finished(self, name: str, seconds: float) -> None:
        """Print the stage's time."""
        rate = f", {self.rows / seconds:,.0f} rows/s" if self.rows and seconds else ""
        self.note(f"{name}: done in {show_time(seconds)}{rate}")
