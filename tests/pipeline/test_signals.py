"""What stops a run, in a real process: SIGTERM as Ctrl-C, and neither is lost in a finalizer."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tilecov.pipeline.cli import run_safely

STOPPED = """
import os, signal, sys, time, weakref
import tilecov.pipeline.tasks as tasks
from tilecov.pipeline.cli import main

def stop(*_):
    os.kill(os.getpid(), getattr(signal, os.environ["SIGNAL"]))

class Finalized:
    __del__ = stop

def finalize():
    Finalized()
    time.sleep(60)  # which the interrupt that was lost ends when it comes again

def call_back():
    lost = type("Referenced", (), {})()
    reference = weakref.ref(lost, stop)
    del lost
    time.sleep(60)

original = tasks.BlockReader.__iter__

def stopped(self):
    assert os.path.exists(os.environ["LEASE"])
    {"plainly": stop, "finalizer": finalize, "weak reference": call_back}[os.environ["WHERE"]]()
    yield from original(self)

tasks.BlockReader.__iter__ = stopped
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell runs in the background
main()
"""


@pytest.mark.parametrize(
    ("number", "where", "how"),
    [
        (signal.SIGTERM, "plainly", ["--quiet"]),
        (signal.SIGTERM, "plainly", ["--log", "json"]),
        (signal.SIGINT, "finalizer", ["--quiet"]),
        (signal.SIGTERM, "weak reference", ["--quiet"]),
    ],
)
def test_a_signal_frees_the_lease_and_says_how_to_go_on(
    tmp_path: Path, shards: Callable[..., list[str]], number: signal.Signals, where: str, how: list[str]
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
    environment = {**os.environ, "LEASE": str(run / "lease.json"), "SIGNAL": number.name, "WHERE": where}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 130, done.stderr
    assert "interrupted; the same command goes on where it stopped" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1 or "json" in how, done.stderr
    assert not (run / "lease.json").exists()
    assert json.loads((run / "run.json").read_text())["state"] == "running"
    assert run_safely([*arguments, "--quiet"]) == 0
