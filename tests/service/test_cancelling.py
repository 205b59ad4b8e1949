"""Cancelling: whatever else happens at the time, and wherever a kill cuts it short."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fakes import JOB, WORKERS, end, service, state, submit, supervisor_of, until, workers_of
from fastapi.testclient import TestClient

from tilecov.pipeline.service.records import Queue, Record, new_id
from tilecov.pipeline.service.settings import Settings
from tilecov.storage.objects import Folder


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    with service(Settings(str(tmp_path / "root")), monkeypatch) as found:
        yield found


def test_a_queued_and_a_running_run_are_cancelled(client: TestClient, tmp_path: Path) -> None:
    running, queued = submit(client), submit(client)
    (worker,) = workers_of(client, 1)
    (tmp_path / "root" / "runs" / running).mkdir(parents=True)
    assert client.delete(f"/runs/{queued}").status_code == 202
    assert state(client, queued) == "cancelled"
    assert client.delete(f"/runs/{running}").status_code == 202
    until(lambda: state(client, running) == "cancelled")
    assert worker.stopped
    assert not (tmp_path / "root" / "runs" / running).exists()
    assert client.delete(f"/runs/{running}").status_code == 200  # as often as one likes
    assert len(WORKERS) == 1


@pytest.mark.parametrize("before", ["running", "queued"])
def test_a_cancelling_that_a_kill_cut_short_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: Any
) -> None:
    root = Folder(str(tmp_path / "root"))
    record = Record(
        id=new_id(), state=before, submitted="2026", job=JOB, plan={}, share=1, memory=1, disk=1,
        cancel=True,
    )  # fmt: skip
    Queue(root).create(record)
    (tmp_path / "root" / record.folder).mkdir(parents=True)
    with service(Settings(root.address), monkeypatch) as client:
        assert supervisor_of(client).queue.records[record.id].state == "cancelled"
    assert not (tmp_path / "root" / record.folder).exists()
    assert WORKERS == []


def test_a_run_is_cancelled_while_it_is_settled_how_its_worker_ended(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor, reached, go_on = supervisor_of(client), threading.Event(), threading.Event()
    save = supervisor.queue.save

    def slow(record: Record) -> None:
        if record.cancel and not reached.is_set():
            reached.set()
            assert go_on.wait(5)
        save(record)

    monkeypatch.setattr(supervisor.queue, "save", slow)
    run = submit(client)
    (worker,) = workers_of(client, 1)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(client.delete, f"/runs/{run}")
        assert reached.wait(5)
        end(client, worker, -9)  # seen before the record says that it was cancelled
        until(lambda: supervisor._writing._waiters)
        go_on.set()
        assert asked.result().status_code == 202
    until(lambda: state(client, run) == "cancelled")
    assert json.loads((tmp_path / "root" / "queue" / f"{run}.json").read_text())["state"] == "cancelled"
    assert len(WORKERS) == 1


def test_a_run_that_is_to_be_cancelled_is_never_begun(client: TestClient) -> None:
    first, second = submit(client), submit(client)
    (worker,) = workers_of(client, 1)
    supervisor = supervisor_of(client)
    supervisor.queue.keep(supervisor.queue.records[second].but(cancel=True))  # its folder could not be removed
    end(client, worker)
    until(lambda: state(client, first) == "complete" and not supervisor.running)
    third = submit(client)
    end(client, workers_of(client, 2)[1])
    until(lambda: state(client, third) == "complete")
    assert client.delete(f"/runs/{second}").status_code == 202
    assert state(client, second) == "cancelled"
