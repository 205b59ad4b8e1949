"""What clients are told: the answers' models."""

from typing import Any

from pydantic import BaseModel, Field

from tilecov.storage.redact import redact, redact_url

from .names import FILES
from .records import Record, State
from .supervisor import Supervisor


class Refused(BaseModel):
    """Why a request was not done."""

    detail: str


class Fault(BaseModel):
    """What is wrong with one field."""

    loc: list[str | int] = Field(description="where: body, and the field", examples=[["body", "shards"]])
    msg: str
    type: str


class Faults(BaseModel):
    """What is wrong with a job."""

    detail: list[Fault]


class StageView(BaseModel):
    """A stage as planned: bytes and seconds."""

    name: str
    memory: int
    disk: int
    read: int
    written: int
    seconds: float


class PlanView(BaseModel):
    """How a job will be done. ``peak`` bytes are those of a process, ``memory`` bytes are allowed to it."""

    size: int
    tile: int
    strategy: str
    method: str
    precision: str
    reason: str
    block_rows: int
    decode_threads: int
    memory: int
    units: int
    seconds: float
    peak: int
    disk: int
    stages: list[StageView]


class ProgressView(BaseModel):
    """Where a run under way is; ``rate`` is in rows a second."""

    stage: str | None = None
    unit: str | None = None
    done: int = 0
    total: int = 0
    rows: int = 0
    rate: float | None = None
    stages_done: dict[str, float] = Field(default_factory=dict)
    notes: list[str] = Field(default_factory=list)


class RunView(BaseModel):
    """A run."""

    id: str = Field(examples=["20261124T040102-3fa9c1d2e4b5"])
    state: State
    submitted: str
    started: str | None
    ended: str | None
    position: int | None = Field(description="runs that come before it in the queue; null once it has begun")
    waits_for: str | None
    job: dict[str, Any]
    plan: PlanView
    progress: ProgressView | None
    error: str | None
    result: dict[str, Any] | None = Field(description="samples, moments digest, certificate and checksums")
    files: list[str] = Field(description="names that /runs/{id}/artifacts/{name} takes now")


class RunLine(BaseModel):
    """A run in a list."""

    id: str
    state: State
    submitted: str
    started: str | None
    ended: str | None
    shards: list[str] = Field(description="the first patterns that its job names")
    resolution: int
    channels: int
    progress: ProgressView | None
    error: str | None


class RunList(BaseModel):
    """Runs, the newest first."""

    runs: list[RunLine]
    total: int
    next: str | None = Field(description="what `before` takes for the runs that follow; null at the end")


def view_of(record: Record, supervisor: Supervisor) -> RunView:
    """Return all that a client may know of a run."""
    position = supervisor.position_of(record)
    return RunView(
        id=record.id, state=record.state, submitted=record.submitted, started=record.started, ended=record.ended,
        position=position, waits_for=supervisor.waits_for(record) if position == 0 else None, job=_shown(record.job),
        plan=PlanView(**record.plan), progress=_progress_of(record, supervisor),
        error=record.error and redact(record.error), result=record.result, files=_files_of(record),
    )  # fmt: skip


def json_of(record: Record, supervisor: Supervisor) -> bytes:
    """Return the view as JSON, made once for all who ask before anything moves."""
    if record.id not in supervisor.told:
        supervisor.told[record.id] = view_of(record, supervisor).model_dump_json().encode()
    return supervisor.told[record.id]


def line_of(record: Record, supervisor: Supervisor) -> RunLine:
    """Return what a list says of a run."""
    job = _shown(record.job)
    return RunLine(
        id=record.id, state=record.state, submitted=record.submitted, started=record.started, ended=record.ended,
        shards=job["shards"][:3], resolution=job["resolution"], channels=job.get("channels", 3),
        progress=_progress_of(record, supervisor), error=record.error and redact(record.error),
    )  # fmt: skip


def _shown(job: dict[str, Any]) -> dict[str, Any]:
    return {**job, "shards": [redact_url(url) for url in job["shards"]]}


def _progress_of(record: Record, supervisor: Supervisor) -> ProgressView | None:
    found = supervisor.progress.get(record.id) if record.state == "running" else None
    return None if found is None else ProgressView(**found.as_dict())


def _files_of(record: Record) -> list[str]:
    if record.state != "complete":
        return list(record.left)
    made = set((record.result or {}).get("artifacts", ()))
    return [name for name in FILES if not name.endswith(".pt") or name in made]
