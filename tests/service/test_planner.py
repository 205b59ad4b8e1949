"""The process that plans: kept as long as it may be, and what it says goes through the log."""

import asyncio
import json
import logging
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import random_images, write_shards

from tilecov.pipeline.service.planner import Planner, PlannerError

SECRET = "hunter2hunter2"


def planner_that(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> Planner:
    """Return a planner whose process is a script: ``code`` is done for each line, the request ``asked``."""
    script = folder / "planner"
    script.write_text(
        f"#!{sys.executable}\nimport json, os, sys\nfor line in sys.stdin:\n    asked = json.loads(line)\n"
        f"    {code}\n    sys.stdout.flush()\n"
    )
    script.chmod(0o755)
    monkeypatch.setattr("tilecov.pipeline.service.planner.sys", SimpleNamespace(executable=str(script)))
    return Planner()


def ask(planner: Planner, *requests: dict[str, Any]) -> list[dict[str, Any]]:
    async def every() -> list[dict[str, Any]]:
        try:
            return [await planner.ask(request) for request in requests]
        finally:
            await planner.close()

    return asyncio.run(every())


def test_a_process_whose_answer_is_its_last_is_not_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "print(json.dumps({'pid': os.getpid(), 'spent': asked['web']}))"
    planner = planner_that(tmp_path, monkeypatch, code)
    found = ask(planner, *({"web": web} for web in (False, True, False, False)))
    first, second, third, fourth = (answer["pid"] for answer in found)
    assert first == second != third == fourth
    assert all(set(answer) == {"pid"} for answer in found)


def test_what_the_process_says_goes_through_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    planner = planner_that(tmp_path, monkeypatch, "print('words', file=sys.stderr, flush=True); print('{}')")
    with caplog.at_level(logging.WARNING, "tilecov.service"):
        ask(planner, {})
    assert "planner: words" in caplog.text
    assert "words" not in capfd.readouterr().err


def test_a_process_that_ends_is_begun_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planner = planner_that(tmp_path, monkeypatch, "print('{}') if asked else sys.exit(1)")

    async def both() -> dict[str, Any]:
        with pytest.raises(PlannerError, match="ended"):
            await planner.ask({})
        try:
            return await planner.ask({"a": 1})
        finally:
            await planner.close()

    assert asyncio.run(both()) == {}


def plan(code: str, *requests: dict[str, Any]) -> tuple[list[dict[str, Any]], str]:
    """Return what the real process answers and what it says, after ``code``."""
    program = f"from tilecov.pipeline.service import worker\n{code}\nworker.plan_for_ever()"
    lines = "".join(json.dumps(request) + "\n" for request in requests)
    done = subprocess.run(
        [sys.executable, "-c", program], input=lines, capture_output=True, text=True, check=True, timeout=120
    )
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def test_only_a_plan_over_the_web_is_the_last_of_its_process(tmp_path: Path) -> None:
    write_shards(tmp_path / "data", random_images(20, 4), 1)
    given = {"options": {}, "allow": [str(tmp_path / "data"), "http://127.0.0.1:1"], "limit": 4 << 30}
    shards = (f"{tmp_path}/data/*.tar", "http://127.0.0.1:1/x.tar")
    local, web = plan("", *({"job": {"shards": [name], "resolution": 4}, **given} for name in shards))[0]
    assert (local["plan"]["size"], local["spent"]) == (48, False)
    assert (web["field"], web["spent"]) == ("shards", True)


def test_a_bug_is_told_without_credentials() -> None:
    broken = f"def broken(request): raise KeyError('at {SECRET}, in vain')\nworker.answer = broken"
    request = {"job": {}, "options": {"secret": SECRET}, "allow": [], "limit": 1}
    (answered,), said = plan(broken, request)
    assert answered["bug"]
    assert "planning failed: KeyError" in said
    assert SECRET not in said
