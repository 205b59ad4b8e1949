"""What a container may use is read from its cgroup, of either version."""

from pathlib import Path

import pytest

from tilecov.pipeline import machine


@pytest.fixture
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    return tmp_path


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(f"{text}\n")


@pytest.mark.parametrize("files", [{"memory.max": "123456"}, {"memory/memory.limit_in_bytes": "123456"}])
def test_memory(cgroup: Path, files: dict[str, str]) -> None:
    write(cgroup, files)
    assert machine.memory_bytes() == 123456


@pytest.mark.parametrize("files", [{}, {"memory.max": "max"}, {"memory/memory.limit_in_bytes": str(2**63 - 4096)}])
def test_memory_without_a_limit_is_the_machine_s(cgroup: Path, files: dict[str, str]) -> None:
    write(cgroup, files)
    total = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal:"))
    assert machine.memory_bytes() == int(total.split()[1]) * 1024


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ({}, 8),
    ],
)
def test_cores(cgroup: Path, files: dict[str, str], expected: int) -> None:
    write(cgroup, files)
    assert machine.cores() == expected
