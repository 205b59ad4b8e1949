"""The queue: its limits, its order, what is cancelled, and what a service that was killed finds again."""

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from fakes import JOB, WORKERS, end, service, state, submit, supervisor_of, until, workers_of
from fastapi.testclient import TestClient

from tilecov.pipeline.service.records import Queue, Record, new_id
from tilecov.pipeline.service.settings import Settings
from tilecov.pipeline.service.worker import BUSY
from tilecov.storage.objects import Folder


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    with service(Settings(str(tmp_path / "root")), monkeypatch) as found:
        yield found


def test_a_run_from_its_submission_to_its_end(client: TestClient, tmp_path: Path) -> None:
    run = submit(client)
    (worker,) = workers_of(client, 1)
    assert worker.request["job"] == {
        **JOB,
        "out": str(tmp_path / "root" / "runs" / run),
        "scheduler": None,
        "memory": supervisor_of(client).settings.share,
    }
    found = client.get(f"/runs/{run}").json()
    assert (found["state"], found["progress"]["stage"], found["files"]) == ("running", "moments", [])
    assert client.get(f"/runs/{run}/artifacts/run.json").status_code == 404
    end(client, worker)
    until(lambda: state(client, run) == "complete")
    found = client.get(f"/runs/{run}").json()
    assert found["result"]["moments_digest"] == "d1ge57"
    assert found["files"] == ["run.json", "ledger.jsonl", "report.html"]
    assert client.get(f"/runs/{run}/report").text == "<p>a report</p>"
    assert client.get(f"/runs/{run}/report").headers["content-type"] == "text/html; charset=utf-8"
    assert client.get(f"/runs/{run}/artifacts/ledger.jsonl").status_code == 404
    assert json.loads((tmp_path / "root" / "queue" / f"{run}.json").read_text())["state"] == "complete"


def test_runs_begin_in_order_and_one_at_a_time(client: TestClient) -> None:
    runs = [submit(client) for _ in range(3)]
    workers_of(client, 1)
    assert [client.get(f"/runs/{run}").json()["position"] for run in runs] == [None, 0, 1]
    assert "1 of 1 runs" in client.get(f"/runs/{runs[1]}").json()["waits_for"]
    for count, run in enumerate(runs, 1):
        worker = workers_of(client, count)[-1]
        assert worker.request["job"]["out"].endswith(run)
        end(client, worker)
        until(lambda run=run: state(client, run) == "complete")  # type: ignore[misc]
    assert [line["id"] for line in client.get("/runs").json()["runs"]] == runs[::-1]


def test_memory_and_disk_of_all_runs_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(str(tmp_path / "root"), concurrent=3, memory=800 << 20, disk=2500)
    with service(settings, monkeypatch) as client:
        runs = [submit(client) for _ in range(3)]  # each takes 256 MiB and 1,000 bytes
        first, second = workers_of(client, 2)
        assert "of disk and" in client.get(f"/runs/{runs[2]}").json()["waits_for"]
        end(client, first)
        end(client, second)
        workers_of(client, 3)  # what two runs really left is less than was planned
        big = submit(client, workers=3)
        small = submit(client)
        assert "MiB are free" in client.get(f"/runs/{big}").json()["waits_for"]
        assert state(client, small) == "queued"  # it would fit, but none passes another
        end(client, WORKERS[2])
        workers_of(client, 4)
        until(lambda: state(client, big) == "running")
        assert state(client, small) == "queued"


def test_what_is_over_is_removed_only_where_that_is_said(client: TestClient, tmp_path: Path) -> None:
    run = submit(client)
    assert client.delete(f"/runs/{run}?remove=true").status_code == 409
    end(client, workers_of(client, 1)[0])
    until(lambda: state(client, run) == "complete")
    assert client.delete(f"/runs/{run}").status_code == 409
    assert (tmp_path / "root" / "runs" / run).is_dir()
    assert client.delete(f"/runs/{run}?remove=true").status_code == 204
    assert client.get(f"/runs/{run}").status_code == 404
    assert not (tmp_path / "root" / "runs" / run).exists()
    assert list((tmp_path / "root" / "queue").iterdir()) == []


def test_a_worker_that_is_killed_is_begun_again_twice(client: TestClient) -> None:
    run = submit(client)
    for count in (1, 2, 3):
        end(client, workers_of(client, count)[-1], -9)
        if count < 3:
            until(lambda count=count: len(WORKERS) == count + 1)  # type: ignore[misc]
    until(lambda: state(client, run) == "failed")
    assert "signal 9" in client.get(f"/runs/{run}").json()["error"]


def test_a_worker_that_fails_says_why(client: TestClient) -> None:
    run = submit(client)
    (worker,) = workers_of(client, 1)
    worker.listener({"event": "run_failed", "error": "shard x: bad", "traceback": "Traceback: secret code"})
    end(client, worker, 1)
    until(lambda: state(client, run) == "failed")
    text = client.get(f"/runs/{run}").text
    assert "shard x: bad" in text
    assert "Traceback" not in text


def test_a_failed_run_gives_what_it_has_left(client: TestClient, tmp_path: Path) -> None:
    run, other = submit(client), submit(client)
    place = tmp_path / "root" / "runs" / run
    place.mkdir(parents=True)
    for name in ("ledger.jsonl", "report.html", "run.json"):
        (place / name).write_text(f"<!-- report begins --><p>{name} of it</p><!-- report ends -->")
    end(client, workers_of(client, 1)[0], 1)
    until(lambda: state(client, run) == "failed")
    assert client.get(f"/runs/{run}").json()["files"] == ["ledger.jsonl", "report.html"]
    assert "ledger.jsonl of it" in client.get(f"/runs/{run}/artifacts/ledger.jsonl").text
    assert "report.html of it" in client.get(f"/runs/{run}/report").text
    page = client.get(f"/runs/{run}/page").text
    assert "report.html of it" in page
    assert f"/runs/{run}/artifacts/ledger.jsonl" in page
    assert client.get(f"/runs/{run}/artifacts/run.json").status_code == 404
    end(client, workers_of(client, 2)[1], 1)
    until(lambda: state(client, other) == "failed")
    assert client.get(f"/runs/{other}").json()["files"] == []
    assert client.get(f"/runs/{other}/artifacts/ledger.jsonl").status_code == 404
    assert client.get(f"/runs/{other}/page").status_code == 200


def test_a_run_that_the_service_cannot_carry_out_fails_in_the_end(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(*_arguments: Any) -> None:
        raise ValueError("a bug at s3://key:hunter2hunter2@bucket")

    monkeypatch.setattr("tilecov.pipeline.service.supervisor._size_of", broken)
    run = submit(client)
    for count in (1, 2, 3):
        end(client, workers_of(client, count)[-1])
    until(lambda: state(client, run) == "failed")
    assert "its log has more" in client.get(f"/runs/{run}").json()["error"]
    assert len(WORKERS) == 3
    assert json.loads((tmp_path / "root" / "queue" / f"{run}.json").read_text())["state"] == "failed"


def test_a_store_that_is_away_is_no_fault_of_the_run(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    supervisor, tries = supervisor_of(client), []
    save = supervisor.queue.save

    def away(record: Record) -> None:
        tries.append(record)
        if len(tries) <= 5:
            raise OSError("the store is away")
        save(record)

    monkeypatch.setattr("tilecov.pipeline.service.supervisor._TRIES", 1)
    monkeypatch.setattr(supervisor.queue, "save", away)
    run = submit(client)
    end(client, workers_of(client, 1)[0])
    until(lambda: state(client, run) == "complete")
    assert supervisor.queue.records[run].crashed == 0


def test_what_a_run_was_doing_is_forgotten_when_it_ends(client: TestClient) -> None:
    run = submit(client)
    (worker,) = workers_of(client, 1)
    assert set(supervisor_of(client).progress) == {run}
    end(client, worker)
    until(lambda: state(client, run) == "complete" and not supervisor_of(client).running)
    assert supervisor_of(client).progress == {}


def test_only_the_loop_changes_what_it_goes_through(client: TestClient) -> None:
    """A dictionary that a thread changes while the loop goes through it ends the loop's work."""
    threads = set()

    class Watched(dict[str, Record]):
        def __setitem__(self, run: str, record: Record) -> None:
            threads.add(threading.get_ident())
            super().__setitem__(run, record)

        def pop(self, *arguments: Any) -> Any:
            threads.add(threading.get_ident())
            return super().pop(*arguments)

    supervisor_of(client).queue.records = Watched()
    run = submit(client)
    end(client, workers_of(client, 1)[0])
    until(lambda: state(client, run) == "complete")
    assert client.delete(f"/runs/{run}?remove=true").status_code == 204
    assert client.portal is not None
    assert threads == {client.portal.call(threading.get_ident)}


def test_a_run_that_is_still_held_is_tried_again(client: TestClient) -> None:
    run = submit(client)
    end(client, workers_of(client, 1)[0], BUSY)
    end(client, workers_of(client, 2)[1])
    until(lambda: state(client, run) == "complete")


def test_a_service_that_was_killed_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(str(tmp_path / "root"))
    with service(settings, monkeypatch) as client:
        runs = [submit(client) for _ in range(3)]
        workers_of(client, 1)
        client.delete(f"/runs/{runs[2]}")
        left = {path.name: path.read_bytes() for path in (tmp_path / "root" / "queue").iterdir()}
    for name, data in left.items():  # as a kill would have left it
        (tmp_path / "root" / "queue" / name).write_bytes(data)
    (tmp_path / "root" / "queue" / "other.json").write_text("{no record")
    (tmp_path / "root" / "queue" / ".tmp").write_text("")
    with service(settings, monkeypatch) as client:
        assert client.get("/runs").json()["total"] == 3
        end(client, workers_of(client, 1)[0])
        end(client, workers_of(client, 2)[1])
        until(lambda: [state(client, run) for run in runs] == ["complete", "complete", "cancelled"])
        assert len(WORKERS) == 2


def test_a_run_that_fits_no_more_holds_up_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with service(Settings(str(tmp_path / "root"), memory=2 << 30), monkeypatch) as client:
        submit(client)
        workers_of(client, 1)
        big = submit(client, workers=4)  # 1 GiB
        small = submit(client)
    with service(Settings(str(tmp_path / "root"), memory=900 << 20), monkeypatch) as client:
        for count in (1, 2):
            end(client, workers_of(client, count)[-1])
        until(lambda: state(client, small) == "complete")
        assert "larger limits" in client.get(f"/runs/{big}").json()["waits_for"]


def test_ending_the_service_leaves_its_runs_queued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with service(Settings(str(tmp_path / "root")), monkeypatch) as client:
        run = submit(client)
        (worker,) = workers_of(client, 1)
    assert worker.stopped
    assert json.loads((tmp_path / "root" / "queue" / f"{run}.json").read_text())["state"] == "queued"


def test_a_key_makes_one_run(client: TestClient) -> None:
    first = client.post("/runs", json=JOB, headers={"Idempotency-Key": "k"})
    again = client.post("/runs", json=JOB, headers={"Idempotency-Key": "k"})
    other = client.post("/runs", json={**JOB, "resolution": 8}, headers={"Idempotency-Key": "k"})
    assert (first.status_code, again.status_code, other.status_code) == (201, 200, 409)
    assert first.json()["id"] == again.json()["id"]
    assert first.headers["location"] == f"/runs/{first.json()['id']}"


def test_the_queue_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with service(Settings(str(tmp_path / "root"), waiting=2), monkeypatch) as client:
        submit(client)
        workers_of(client, 1)
        submit(client)
        submit(client)
        assert client.post("/runs", json=JOB).status_code == 429


def test_runs_are_listed_in_pages(client: TestClient) -> None:
    runs = [submit(client) for _ in range(5)][::-1]
    workers_of(client, 1)
    first = client.get("/runs?limit=2").json()
    second = client.get(f"/runs?limit=2&before={first['next']}").json()
    third = client.get(f"/runs?limit=2&before={second['next']}").json()
    assert [line["id"] for page in (first, second, third) for line in page["runs"]] == runs
    assert third["next"] is None
    assert [line["id"] for line in client.get("/runs?state=running").json()["runs"]] == runs[-1:]


def test_only_complete_runs_of_the_service_are_extended(tmp_path: Path) -> None:
    from tilecov.pipeline.service.intake import FaultError, Intake
    from tilecov.pipeline.service.supervisor import Supervisor

    settings = Settings(str(tmp_path / "root"))
    intake = Intake(settings, Supervisor(settings, Queue(Folder(settings.root))))
    for run in ("/etc", "../x", new_id()):
        with pytest.raises(FaultError, match="extend"):
            intake._check_extended(run)


def test_ids_that_are_paths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no id"):
        Queue(Folder(str(tmp_path))).erase("../../etc")


def test_events_of_a_run_are_streamed_until_its_end(client: TestClient) -> None:
    run = submit(client)
    (worker,) = workers_of(client, 1)
    assert client.portal is not None
    client.portal.call(worker.listener, {"event": "progress", "stage": "moments", "done": 1, "rows": 9, "seconds": 1.0})
    end(client, worker)
    until(lambda: state(client, run) == "complete")
    lines = client.get(f"/runs/{run}/events").text.split("\n")
    assert [line for line in lines if line.startswith("event")] == ["event: snapshot", "event: end"]
    assert json.loads(next(line for line in lines if line.startswith("data")).removeprefix("data: "))["id"] == run


def test_only_so_many_clients_stream_at_a_time(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    run = submit(client)
    (worker,) = workers_of(client, 1)
    monkeypatch.setattr("tilecov.pipeline.service.api.LISTENERS", 3)
    hub = supervisor_of(client).hub
    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(hub.listening(run))
        answer = client.get(f"/runs/{run}/events")
        assert answer.status_code == 503
        assert "3 clients" in answer.json()["detail"]
        assert client.get(f"/runs/{run}").status_code == 200
    assert hub.count == 0
    end(client, worker)
    until(lambda: state(client, run) == "complete")
    answer = client.get(f"/runs/{run}/events")
    assert answer.status_code == 200
    assert answer.headers["x-accel-buffering"] == "no"


def test_the_metrics_are_what_prometheus_reads(client: TestClient) -> None:
    submit(client)
    workers_of(client, 1)
    client.get("/runs/x")
    text = client.get("/metrics").text
    names = {line.split("{")[0].split(" ")[0] for line in text.splitlines() if not line.startswith("#")}
    typed = {line.split(" ")[2] for line in text.splitlines() if line.startswith("# TYPE")}
    assert {name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count") for name in names} == typed
    assert 'tilecov_runs{state="running"} 1' in text
    assert 'tilecov_http_requests_total{method="POST",route="/runs",status="201"} 1' in text
    assert 'route="/runs/{id}",status="422"' in text
    assert 'le="+Inf"' in text
