"""The queue: one small JSON object a run, below the root; what is in memory is what is on the store."""

import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tilecov.storage.objects import Folder

State = Literal["queued", "running", "complete", "failed", "cancelled"]
ENDED = frozenset({"complete", "failed", "cancelled"})
ID = re.compile(r"\d{8}T\d{6}-[0-9a-f]{12}")
QUEUE, RUNS = "queue", "runs"


class Record(BaseModel):
    """A run as the queue keeps it. A change makes a new one, which is saved before it counts.

    Notes
    -----
    ``job`` holds no storage options. ``begun`` counts the times that a worker was started on it, ``crashed`` those that
    ended by a signal that nobody here sent.
    """

    model_config = ConfigDict(frozen=True)

    format: Literal[1] = 1
    id: str
    state: State = "queued"
    submitted: str
    started: str | None = None
    ended: str | None = None
    key: str | None = None
    job: dict[str, Any]
    plan: dict[str, Any]
    share: int = Field(description="bytes that each process may take")
    memory: int = Field(description="bytes that all processes are planned to take")
    disk: int = Field(description="bytes: of the run folder as planned, then as measured")
    begun: int = 0
    crashed: int = 0
    cancel: bool = False
    error: str | None = None
    result: dict[str, Any] | None = None
    left: list[str] = Field(default_factory=list, description="files that a failed run has left, for who asks why")

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.state in ENDED

    @property
    def folder(self) -> str:
        """The run folder, below the root."""
        return f"{RUNS}/{self.id}"

    def but(self, **changes: Any) -> "Record":
        """Return this record with other values."""
        return self.model_copy(update=changes)


def now() -> str:
    """Return the time, UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def new_id() -> str:
    """Return an id that nobody guesses; ids sort by the second in which they were made."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(6)}"


@dataclass
class Queue:
    """The records of a root.

    What asks the store may be called on threads; what changes ``records`` may not, for the loop goes through them.

    Parameters
    ----------
    root : Folder
    """

    root: Folder
    records: dict[str, Record] = field(default_factory=dict)

    def load(self) -> list[str]:
        """Read all records; return the names of objects that are none, which are left alone."""
        odd = []
        for name in self.root.names(QUEUE):
            if name.startswith(".") or not name.endswith(".json"):
                continue
            try:
                record = Record(**json.loads(self.root.read(f"{QUEUE}/{name}")))
            except (ValueError, TypeError):
                odd.append(name)
                continue
            self.records[record.id] = record
        return odd

    def create(self, record: Record) -> None:
        """Write a new record to the store; FileExistsError where its id is taken."""
        self.root.create(_name(record.id), _bytes(record))

    def save(self, record: Record) -> None:
        """Write a record to the store, in the place of the one with its id."""
        self.root.write(_name(record.id), _bytes(record))

    def erase(self, run: str) -> None:
        """Remove a record from the store."""
        self.root.remove(_name(run))

    def keep(self, record: Record) -> None:
        """Know a record, which is on the store now."""
        self.records[record.id] = record

    def forget(self, run: str) -> None:
        """Know a record no more, which has been erased."""
        self.records.pop(run, None)

    def in_order(self) -> list[Record]:
        """Return all records, the one that was submitted first before the others."""
        return sorted(self.records.values(), key=lambda record: (record.submitted, record.id))

    def with_key(self, key: str) -> Record | None:
        """Return the record that was submitted with an idempotency key."""
        return next((record for record in self.records.values() if record.key == key), None)


def _name(run: str) -> str:
    if not ID.fullmatch(run):
        raise ValueError(f"{run!r} is no id of a run")
    return f"{QUEUE}/{run}.json"


def _bytes(record: Record) -> bytes:
    return json.dumps(record.model_dump(mode="json")).encode()


def summary_of(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a plan (`Plan.as_dict`) people want to know."""
    kept = ("size", "tile", "strategy", "method", "precision", "reason", "block_rows", "decode_threads", "memory")
    stages = [
        {name: stage[name] for name in ("name", "memory", "disk", "read", "written", "seconds")}
        for stage in plan["stages"]
    ]
    return {
        **{name: plan[name] for name in kept},
        "units": len(plan["units"]),
        "seconds": sum(stage["seconds"] for stage in stages),
        "peak": max(stage["memory"] for stage in stages),
        "disk": sum(stage["disk"] for stage in stages),
        "stages": stages,
    }
