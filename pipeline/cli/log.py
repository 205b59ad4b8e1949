"""A run as a program reads it: one JSON object a line on stderr, each with its time and event."""

import json
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import typer
from pydantic import ValidationError

from tilecov.storage.redact import redact, redact_url
from tilecov.storage.retries import Retry, telling

from ..observer import Observer
from .failures import EXPECTED, explain, explain_usage

if TYPE_CHECKING:
    from ..plan import Plan

_EVERY = 5.0  # seconds between two lines of progress
_KEYS = 20  # samples of a shard that are named; the ledger has all


class Log(Observer):
    """Writes events; from any thread.

    Parameters
    ----------
    secrets : iterable of str
        Values that are hidden wherever they would be written.
    every : float
        Seconds between two lines of progress.
    """

    def __init__(self, secrets: Iterable[str] = (), every: float = _EVERY) -> None:
        self._secrets, self._every = frozenset(secrets), every
        self._lock = threading.Lock()
        self._began = self._started = self._last = time.monotonic()
        self._stage: dict[str, Any] = {}
        self._done = self._rows = 0

    def emit(self, event: str, **fields: Any) -> None:
        """Write one line."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps(self._clean({"time": now, "event": event, **fields}))
        with self._lock:
            print(line, file=sys.stderr, flush=True)

    def _clean(self, value: Any) -> Any:
        if isinstance(value, str):
            return redact(value, self._secrets)
        if isinstance(value, Mapping):
            return {name: self._clean(inner) for name, inner in value.items()}
        return [self._clean(inner) for inner in value] if isinstance(value, list | tuple) else value

    def note(self, text: str) -> None:
        """Write what is told to people."""
        self.emit("note", text=text)

    def planned(self, plan: "Plan") -> None:
        """Write the sizes of the plan and what each stage is predicted to take."""
        stages = [
            {"stage": stage.name, "seconds": round(stage.seconds, 3), "memory": stage.memory, "read": stage.read,
             "written": stage.written}
            for stage in plan.stages
        ]  # fmt: skip
        self.emit(
            "plan", size=plan.size, tile=plan.tile, strategy=plan.strategy, method=plan.method, units=len(plan.units),
            seconds=round(plan.seconds, 3), memory=plan.peak, disk=plan.disk, stages=stages,
        )  # fmt: skip

    def stage(self, name: str, total: int, unit: str) -> None:
        """Write the start of a stage."""
        with self._lock:
            self._stage, self._done, self._rows = {"stage": name, "total": total, "unit": unit}, 0, 0
            self._started = self._last = time.monotonic()
        self.emit("stage_started", stage=name, total=total, unit=unit)

    def advance(self, done: int, rows: int = 0) -> None:
        """Write progress where the last line is a while ago."""
        now = time.monotonic()
        with self._lock:
            self._done += done
            self._rows += rows
            if now - self._last < self._every:
                return
            self._last = now
            found = {**self._stage, "done": self._done, "rows": self._rows, "seconds": round(now - self._started, 3)}
        self.emit("progress", **found)

    def unit(self, stage: str, name: str, record: Mapping[str, Any]) -> None:
        """Write a committed task, and what was left out of its shards."""
        fields = {"stage": stage, "name": name, "seconds": record.get("seconds"), "memory": record.get("peak_memory")}
        ledger = record.get("ledger", ())
        if ledger:
            fields |= {
                "rows": sum(line["used"] for line in ledger),
                "bytes": sum(line["size"] for line in ledger),
                "shards": [line["url"] for line in ledger],
            }
        self.emit("unit_done", **fields)
        for line in ledger:
            if line["skipped"] or line["error"]:
                self._skipped(line)

    def _skipped(self, line: Mapping[str, Any]) -> None:
        skipped = line["skipped"]
        self.emit(
            "skipped", shard=line["url"], error=line["error"], samples=len(skipped), rows=line["used"],
            first=skipped[:_KEYS],
        )  # fmt: skip

    def retried(self, retry: Retry) -> None:
        """Write what a store refused for a moment."""
        where = {"worker": retry.worker} if retry.worker else {}
        self.emit("retry", attempt=retry.attempt, pause=retry.pause, error=retry.error, **where)

    def finished(self, name: str, seconds: float) -> None:
        """Write the end of a stage."""
        with self._lock:
            rows = self._rows if self._stage.get("stage") == name else 0
        self.emit("stage_done", stage=name, seconds=seconds, rows=rows)

    def completed(self, manifest: Mapping[str, Any], run: str) -> None:
        """Write what the run found."""
        data = manifest["dataset"]
        counts = {name: data.get(name) for name in ("shards", "bytes", "samples", "used", "skipped", "passed_over")}
        self.emit(
            "run_complete", run=redact_url(run), seconds=self._elapsed(), **counts,
            moments_digest=manifest.get("moments_digest"),
        )  # fmt: skip

    def failed(self, error: str, **fields: Any) -> None:
        """Write why the run failed."""
        self.emit("run_failed", error=error, seconds=self._elapsed(), **fields)

    def _elapsed(self) -> float:
        return round(time.monotonic() - self._began, 3)


@contextmanager
def logging(secrets: Iterable[str], every: float = _EVERY) -> Iterator[Log]:
    """Give a log that retries are told to; a failure becomes its last line, and the exit status."""
    log = Log(secrets, every)
    try:
        with telling(log.retried):
            yield log
    except ValidationError as error:
        log.failed(explain_usage(error))
        raise typer.Exit(2) from None
    except EXPECTED as error:
        log.failed(explain(error))
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        log.failed("interrupted; the same command goes on where it stopped")
        raise SystemExit(130) from None  # typer.Exit would have it said again, in words
    except Exception as error:  # noqa: BLE001  (a bug; its traceback is in the log)
        log.failed(explain(error), traceback=traceback.format_exc())
        raise typer.Exit(1) from None
