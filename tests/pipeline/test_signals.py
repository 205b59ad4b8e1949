"""What stops a container, in a real process: SIGTERM ends a run as Ctrl-C does."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tilecov.pipeline.cli import run_safely

STOPPED = """
import os, signal, sys
import tilecov.pipeline.tasks as tasks
from tilecov.pipeline.cli import main

original = tasks.BlockReader.__iter__

def stopped(self):
    assert os.path.exists(os.environ["LEASE"])
    os.kill(os.getpid(), signal.SIGTERM)
    yield from original(self)

tasks.BlockReader.__iter__ = stopped
main()
"""


@pytest.mark.parametrize("how", [(), ("--log", "json")])
def test_sigterm_frees_the_lease_and_says_how_to_go_on(
    tmp_path: Path, shards: Callable[..., list[str]], how: tuple[str, ...]
) -> None:
    run = tmp_path / "run"
    arguments = [
        "run",
        *shards(count=40, resolution=8, shards=3),
        "--resolution",
        "8",
        "--rank",
        "0",
        "--out",
        str(run),
    ]
    command = [sys.executable, "-c", STOPPED, *arguments, *how]
    environment = {**os.environ, "LEASE": str(run / "lease.json")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 130, done.stderr
    assert "interrupted; the same command goes on where it stopped" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (run / "lease.json").exists()
    assert json.loads((run / "run.json").read_text())["state"] == "running"
    assert run_safely([*arguments, "--quiet"]) == 0
