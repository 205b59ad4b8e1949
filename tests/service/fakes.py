"""A service without processes: plans are made up, and workers do what a test tells them."""

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tilecov.pipeline.service.app import create_app
from tilecov.pipeline.service.settings import Settings
from tilecov.pipeline.service.supervisor import Supervisor
from tilecov.pipeline.service.work import Ending

STAGE = {"name": "moments", "memory": 1 << 28, "disk": 1000, "read": 1, "written": 1000, "seconds": 1.0}
PLAN = {
    "size": 48, "tile": 48, "strategy": "resident", "method": "direct", "precision": "float64", "reason": "it fits",
    "block_rows": 8, "decode_threads": 1, "memory": 1 << 30, "units": 1, "seconds": 1.0, "peak": 1 << 28, "disk": 1000,
    "stages": [STAGE],
}  # fmt: skip
JOB = {"shards": ["/data/x.tar"], "resolution": 4}


def leave_a_run(folder: str) -> None:
    """Write what a worker would."""
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    manifest = {"format": 1, "state": "complete", "moments_digest": "d1ge57", "dataset": {"used": 5}}
    (out / "run.json").write_text(json.dumps(manifest))
    (out / "report.html").write_text("<p>a report</p>")


@dataclass
class FakeWork:
    """Stands for a worker: writes what a run would leave, or ends as it is told."""

    listener: Callable[[Mapping[str, Any]], None]
    stopped: bool = False
    pid: int | None = None
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    status: int = 0
    request: Mapping[str, Any] = field(default_factory=dict)

    async def run(self, request: Mapping[str, Any], shares: int) -> Ending:
        self.request = request
        WORKERS.append(self)
        self.listener({"event": "stage_started", "stage": "moments", "total": 2, "unit": "units"})
        await self.go_on.wait()
        if self.status == 0 and not self.stopped:
            leave_a_run(request["job"]["out"])
        return Ending(130 if self.stopped else self.status, self.stopped, ())

    async def stop(self, *, at_once: bool = False) -> None:
        self.stopped = True
        self.go_on.set()

    def end(self, status: int = 0) -> None:
        self.status = status
        self.go_on.set()


WORKERS: list[FakeWork] = []


@contextmanager
def service(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    """Give a client of a service whose workers are fakes; they are in WORKERS."""

    async def plan(_self: Any, _job: Any) -> dict[str, Any]:
        return PLAN

    WORKERS.clear()
    monkeypatch.setattr("tilecov.pipeline.service.supervisor.Work", FakeWork)
    monkeypatch.setattr("tilecov.pipeline.service.intake.Intake.plan", plan)
    monkeypatch.setattr("tilecov.pipeline.service.supervisor._BUSY_PAUSE", 0.05)
    with TestClient(create_app(settings), base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        yield client


def supervisor_of(client: TestClient) -> Supervisor:
    found: Supervisor = client.app.state.supervisor  # type: ignore[attr-defined]
    return found


def until(condition: Callable[[], Any], seconds: float = 5.0) -> None:
    """Wait until a condition holds."""
    import time

    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.005)


def state(client: TestClient, run: str) -> str:
    return str(client.get(f"/runs/{run}").json()["state"])


def workers_of(client: TestClient, count: int) -> list[FakeWork]:
    """Return all workers begun so far, when there are ``count``."""
    until(lambda: len(WORKERS) >= count)
    assert len(WORKERS) == count
    return WORKERS


def end(client: TestClient, worker: FakeWork, status: int = 0) -> None:
    """Let a worker end, on the service's own loop."""
    assert client.portal is not None
    client.portal.call(worker.end, status)


def submit(client: TestClient, **changes: Any) -> str:
    answer = client.post("/runs", json={**JOB, **changes})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])
