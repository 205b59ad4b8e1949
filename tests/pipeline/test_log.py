"""The log that a program reads: JSON lines on stderr, and retries that are told to who watches."""

import json
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import fsspec
import pytest
from conftest import png, random_images, write_shards, write_tar
from fsspec.implementations.memory import MemoryFileSystem

from tilecov.pipeline.cli import run_safely
from tilecov.pipeline.cli.log import Log
from tilecov.pipeline.cli.progress import Lines
from tilecov.storage.retries import Retry, retry, telling

Event = dict[str, Any]


class Balking(MemoryFileSystem):  # type: ignore[misc]  # fsspec has no types
    """Refuses the first look at each file."""

    protocol = "balking"
    cachable = False
    refused: set[str] = set()  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(MemoryFileSystem._strip_protocol(path.replace("balking://", "memory://")))

    def info(self, path: str, **kwargs: Any) -> Any:
        if path not in self.refused:
            self.refused.add(path)
            raise OSError(16, f"503 Slow Down\nfor https://h{path}?X-Amz-Signature=hunter2hunter2")
        return super().info(path, **kwargs)


@pytest.fixture
def balking(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Balking]]:
    fsspec.register_implementation("balking", Balking, clobber=True)
    monkeypatch.setattr("tilecov.storage.retries.FIRST_PAUSE", 1e-4)
    monkeypatch.setattr(Balking, "refused", set())
    yield Balking
    Balking.store.clear()
    Balking.pseudo_dirs[:] = [""]


def events_of(capsys: pytest.CaptureFixture[str]) -> list[Event]:
    """Return what stderr holds, every line of it one event."""
    found: list[Event] = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    for event in found:
        assert abs(datetime.fromisoformat(event["time"]) - datetime.now(UTC)) < timedelta(minutes=5)
    return found


def named(events: list[Event], name: str) -> list[Event]:
    return [event for event in events if event["event"] == name]


def write_a_bad_sample(tmp_path: Path) -> list[str]:
    paths = write_shards(tmp_path / "shards", random_images(30, 4), 2)
    bad = write_tar(tmp_path / "shards" / "bad.tar", [("bad.png", b"no"), ("fine.png", png(random_images(1, 4)[0]))])
    return [*map(str, paths), str(bad)]


def test_a_run_from_its_plan_to_its_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards, out = write_a_bad_sample(tmp_path), str(tmp_path / "run")
    command = ["run", *shards, "-r", "4", "--out", out, "--on-error", "skip", "--max-skipped", "0.5", "--log", "json"]
    assert run_safely([*command, "--quiet"]) == 0
    events = events_of(capsys)
    manifest = json.loads((tmp_path / "run" / "run.json").read_text())
    assert [event["event"] for event in (events[0], events[-1])] == ["plan", "run_complete"]
    assert [event["stage"] for event in named(events, "stage_done")] == list(manifest["stages"])
    assert {event["stage"] for event in named(events, "stage_started")} <= set(manifest["stages"])
    assert events[0]["units"] == len(manifest["plan"]["units"])
    last, data = events[-1], manifest["dataset"]
    assert {name: last[name] for name in ("samples", "used", "skipped")} == {"samples": 32, "used": 31, "skipped": 1}
    assert (last["bytes"], last["moments_digest"]) == (data["bytes"], manifest["moments_digest"])
    assert run_safely(command) == 0
    assert [event["event"] for event in events_of(capsys)] == ["note", "run_complete"]


def test_text_is_the_default(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = [str(path) for path in write_shards(tmp_path / "shards", random_images(20, 4), 2)]
    assert run_safely(["run", *shards, "-r", "4", "--rank", "0", "--out", str(tmp_path / "run")]) == 0
    assert "moments: done in" in capsys.readouterr().err
    assert run_safely(["run", *shards, "-r", "4", "--rank", "0", "--out", str(tmp_path / "again"), "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_a_merge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, shard in zip("ab", write_shards(tmp_path / "shards", random_images(20, 4), 2), strict=True):
        assert run_safely(["run", str(shard), "-r", "4", "--rank", "0", "--out", str(tmp_path / name), "-q"]) == 0
    runs = [str(tmp_path / name) for name in "ab"]
    assert run_safely(["merge", *runs, "--out", str(tmp_path / "c"), "--log", "json", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(err.splitlines()[-1])["moments_digest"] == json.loads(out)["moments_digest"]
    assert run_safely(["merge", *runs, "--out", str(tmp_path / "d"), "--dtype", "no", "--log", "json"]) == 2
    assert "--dtype" in events_of(capsys)[-1]["error"]


def test_a_failure_is_the_last_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = write_a_bad_sample(tmp_path)
    assert run_safely(["run", *shards, "-r", "4", "--out", str(tmp_path / "run"), "--log", "json"]) == 1
    last = events_of(capsys)[-1]
    assert last["event"] == "run_failed"
    assert "'bad' of" in last["error"]


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt(), 130), (ZeroDivisionError("a bug"), 1)])
def test_other_ends_are_the_last_line_too(
    tmp_path: Path,
    error: BaseException,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_args: Any) -> None:
        raise error

    monkeypatch.setattr(sys.modules["tilecov.pipeline.run"], "go_on", fail)  # the package shows the function run
    shards = write_a_bad_sample(tmp_path)
    try:
        found = run_safely(["run", *shards, "-r", "4", "--out", str(tmp_path / "run"), "--log", "json"])
    except SystemExit as end:
        found = int(end.code or 0)
    assert found == status
    (last,) = events_of(capsys)
    assert last["event"] == "run_failed"
    assert ("traceback" in last) == (status == 1)


def test_a_unit_and_what_it_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    bad = [{"key": f"{index}", "reason": "damaged"} for index in range(50)]
    line = {"size": 10, "samples": 60, "passed_over": 0, "error": None}
    ledger = [{**line, "url": "a", "used": 60, "skipped": []}, {**line, "url": "b", "used": 10, "skipped": bad}]
    record = {"seconds": 1.5, "peak_memory": 7, "ledger": ledger}
    log = Log()
    log.unit("moments", "00003", record)
    log.unit("tiles", "0-0", {"seconds": 1.0, "peak_memory": 7, "tiles": 3})
    unit, skipped, tiles = events_of(capsys)
    assert (unit["name"], unit["rows"], unit["bytes"], unit["shards"]) == ("00003", 70, 20, ["a", "b"])
    assert (skipped["shard"], skipped["samples"], skipped["first"]) == ("b", 50, bad[:20])
    assert (tiles["stage"], "rows" in tiles) == ("tiles", False)


def test_progress_is_seldom(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = [0.0]
    monkeypatch.setattr("tilecov.pipeline.cli.log.time.monotonic", lambda: clock[0])
    log = Log()
    log.stage("moments", 100, "shards")
    for _ in range(100):
        clock[0] += 0.25
        log.advance(1, 10)
    found = named(events_of(capsys), "progress")
    assert [(event["done"], event["rows"], event["total"]) for event in found] == [
        (done, 10 * done, 100) for done in (20, 40, 60, 80, 100)
    ]


def test_retries_are_in_the_log(tmp_path: Path, balking: type[Balking], capsys: pytest.CaptureFixture[str]) -> None:
    for path in write_shards(tmp_path / "shards", random_images(20, 4), 2):
        fsspec.filesystem("memory").pipe_file(f"/shards/{path.name}", path.read_bytes())
    shards = ["balking://shards/part-000.tar", "balking://shards/part-001.tar"]
    command = ["run", *shards, "-r", "4", "--rank", "0", "--out", "balking://run", "--log", "json", "-q"]
    assert run_safely(command) == 0
    found = named(events_of(capsys), "retry")
    assert found
    for event in found:
        assert event["attempt"] == 1
        assert "503 Slow Down for https://h/" in event["error"]
        assert "hunter2" not in event["error"]


def test_retries_are_told_from_any_thread_and_only_while_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tilecov.storage.retries.FIRST_PAUSE", 1e-4)
    told: list[Retry] = []

    def call_twice() -> None:
        errors = [ConnectionError("cut")]

        def call() -> None:
            if errors:
                raise errors.pop()

        retry(call)

    with telling(told.append):
        threads = [threading.Thread(target=call_twice) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    call_twice()
    assert [(item.attempt, item.error) for item in told] == [(1, "cut")] * 8


def test_lines_take_what_a_log_takes(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines()
    lines.stage("moments", 2, "shards")
    lines.unit("moments", "00000", {"seconds": 1.0})
    lines.completed({}, "run")
    assert capsys.readouterr().err == ""
