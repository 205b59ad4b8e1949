"""Benchmarks are programs too: each runs tiny, so that none rots. No figure is checked."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[1] / "bench"


def bench(name: str, *arguments: str) -> str:
    command = [sys.executable, str(BENCH / name), *arguments, "--rounds", "1"]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


@pytest.mark.slow
def test_resident_runs_small(shards: Callable[..., list[str]]) -> None:
    pattern = str(Path(shards(count=40, resolution=4)[0]).parent / "*.tar")
    said = bench("resident.py", "--shards", pattern, "--resolution", "4", "--copies", "1")
    assert "tilecov is 1.00 x" in said
    assert "reference loop" in said


@pytest.mark.slow
def test_remote_reading_runs_small() -> None:
    said = bench("remote_reading.py", "--latency", "0.001", "--mib", "3")
    assert "plain fsspec streams" in said
    assert "ratio" in said


@pytest.mark.parametrize(("name", "count"), [("scaling.py", 3), ("carried.py", 1)])
def test_the_page_on_scaling_has_what_the_formulas_give(name: str, count: int) -> None:
    said = subprocess.check_output([sys.executable, str(BENCH / name)], text=True)
    page = (BENCH.parents[1] / "docs" / "scaling.md").read_text(encoding="utf-8")
    tables = said.strip().split("\n\n")
    assert len(tables) == count
    assert [table for table in tables if table not in page] == []


@pytest.mark.slow
def test_walls_run_small(tmp_path: Path) -> None:
    said = bench("walls.py", "--quick", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "walls.md"))
    assert "| certificate |" in said
    assert (tmp_path / "walls.md").read_text() == said


@pytest.mark.slow
def test_startup_runs(tmp_path: Path) -> None:
    said = bench("startup.py", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "startup.md"))
    assert "beyond importing torch" in said
    assert (tmp_path / "startup.md").read_text() == said
