"""Benchmarks are programs too: each runs tiny, so that none rots. No figure is checked."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

BENCH = Path(__file__).parents[1] / "bench"


def test_resident_runs_small(shards: Callable[..., list[str]]) -> None:
    pattern = str(Path(shards(count=40, resolution=4)[0]).parent / "*.tar")
    arguments = ["--shards", pattern, "--resolution", "4", "--copies", "1", "--rounds", "1"]
    done = subprocess.run(
        [sys.executable, str(BENCH / "resident.py"), *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert "tilecov is 1.00 x" in done.stdout
    assert "reference loop" in done.stdout


def test_remote_reading_runs_small() -> None:
    arguments = ["--latency", "0.001", "--mib", "3", "--rounds", "1"]
    done = subprocess.run(
        [sys.executable, str(BENCH / "remote_reading.py"), *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert "one fsspec stream" in done.stdout
    assert "ratio" in done.stdout
