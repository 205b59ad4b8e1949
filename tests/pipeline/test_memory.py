"""Memory is a promise: measured peaks stay below the plan, and the plan below --memory."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tilecov.pipeline.sizes import parse_size, show_size
from tilecov.pipeline.synth import synth

CASES = [
    pytest.param("resident", 64, 1500, "1GiB", id="resident, d = 12,288, 1 GiB"),
    pytest.param("staged", 64, 1500, "1GiB", id="staged, d = 12,288, 1 GiB"),
    pytest.param("staged", 128, 1000, "2GiB", id="staged, d = 49,152, 2 GiB"),
]


def run_measured(arguments: list[str]) -> int:
    """Run the command line in a process of its own; return the most memory that it held, in bytes."""
    process = subprocess.Popen([sys.executable, "-m", "tilecov.pipeline.cli", *arguments, "--quiet"])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_maxrss * 1024


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("strategy", "resolution", "count", "memory"), CASES)
def test_statistics_keep_inside_their_memory(
    tmp_path: Path, strategy: str, resolution: int, count: int, memory: str
) -> None:
    shards = str(tmp_path / "shards" / "leaves-{000..003}.tar")
    synth(shards, count=count, resolution=resolution)
    out = tmp_path / "run"
    common = ["--resolution", str(resolution), "--rank", "0", "--out", str(out)]
    peak = run_measured(["run", shards, *common, "--memory", memory, "--strategy", strategy])
    manifest = json.loads((out / "run.json").read_text())
    peak = max(peak, *(stage["peak_memory"] for stage in manifest["stages"].values()))
    assert manifest["plan"]["strategy"] == strategy
    shutil.rmtree(out)  # up to 20 GB, which pytest would keep
    assert peak <= parse_size(memory), show_size(peak)
    check_stages(manifest)


def check_stages(manifest: dict[str, Any]) -> None:
    """No stage takes more than was predicted for it, nor was more than a fifth too much predicted where it matters."""
    found = {
        name: (stage["peak_memory"], stage["predicted"]["peak_memory"]) for name, stage in manifest["stages"].items()
    }
    shown = {name: f"{show_size(peak)} of {show_size(predicted)}" for name, (peak, predicted) in found.items()}
    assert all(peak <= predicted for peak, predicted in found.values()), shown
    assert all(predicted <= 1.2 * peak for peak, predicted in found.values()), shown


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_whole_job_keeps_inside_its_memory(tmp_path: Path) -> None:
    shards = str(tmp_path / "shards" / "leaves-{000..003}.tar")
    synth(shards, count=1500, resolution=32)
    out = tmp_path / "run"
    peak = run_measured(["run", shards, "--resolution", "32", "--out", str(out), "--memory", "900MiB"])
    manifest = json.loads((out / "run.json").read_text())
    assert peak <= 900 << 20, show_size(peak)
    found = {
        name: (stage["peak_memory"], stage["predicted"]["peak_memory"]) for name, stage in manifest["stages"].items()
    }
    assert all(measured <= predicted for measured, predicted in found.values()), found
