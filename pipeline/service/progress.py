"""What a run under way is doing, as its worker's log tells, and who listens to it."""

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

_WAITING = 256  # events that a slow listener may be behind before it is let go
_PRIVATE = {"traceback", "shards"}  # a traceback is for the operator; the ledger names the shards
_PASSED_ON = {
    "plan", "stage_started", "progress", "unit_done", "skipped", "retry", "stage_done", "note", "run_complete",
    "run_failed",
}  # fmt: skip

Event = dict[str, Any]


@dataclass
class Progress:
    """Where a run is; what its last events said."""

    stage: str | None = None
    unit: str | None = None
    done: int = 0
    total: int = 0
    rows: int = 0
    seconds: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    error: str | None = None

    def take(self, event: Mapping[str, Any]) -> None:
        """Learn from an event of the worker's log."""
        kind = event["event"]
        if kind == "stage_started":
            self.stage, self.unit, self.total = event["stage"], event["unit"], event["total"]
            self.done, self.rows, self.seconds = 0, 0, 0.0
        elif kind == "progress":
            self.done, self.rows, self.seconds = event["done"], event["rows"], event["seconds"]
        elif kind == "stage_done":
            self.stages[event["stage"]] = event["seconds"]
        elif kind == "note":
            self.notes = [*self.notes[-9:], event["text"]]
        elif kind == "run_failed":
            self.error = event["error"]

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON takes them; the rate is rows a second of the stage."""
        rate = self.rows / self.seconds if self.rows and self.seconds else None
        return {
            "stage": self.stage, "unit": self.unit, "done": self.done, "total": self.total, "rows": self.rows,
            "rate": rate and round(rate, 1), "stages_done": dict(self.stages), "notes": list(self.notes),
        }  # fmt: skip


@dataclass
class Hub:
    """Gives events of a run to all who listen to it."""

    _listeners: dict[str, set[asyncio.Queue[Event | None]]] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Listeners in all."""
        return sum(map(len, self._listeners.values()))

    def tell(self, run: str, event: Mapping[str, Any]) -> None:
        """Give an event to the listeners of ``run``; one that is too far behind is let go, and may ask again."""
        if event["event"] not in _PASSED_ON | {"state"}:
            return
        public = {name: value for name, value in event.items() if name not in _PRIVATE}
        for queue in list(self._listeners.get(run, ())):
            if queue.qsize() >= _WAITING:
                self._listeners[run].discard(queue)
                queue.put_nowait(None)
            else:
                queue.put_nowait(public)

    def close(self, run: str | None = None) -> None:
        """End the listening to ``run``, or to all."""
        for queues in [self._listeners.pop(run, set())] if run else list(self._listeners.values()):
            for queue in queues:
                queue.put_nowait(None)

    @contextmanager
    def listening(self, run: str) -> Iterator[asyncio.Queue[Event | None]]:
        """Give a queue of the run's events; None is its end."""
        queue: asyncio.Queue[Event | None] = asyncio.Queue()
        self._listeners.setdefault(run, set()).add(queue)
        try:
            yield queue
        finally:
            left = self._listeners.get(run, set())
            left.discard(queue)
            if not left:
                self._listeners.pop(run, None)
