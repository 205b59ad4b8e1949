"""What a container may use is read from its cgroup, of either version; what is freed is kept, or is not."""

import gc
import platform
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tilecov.pipeline import Job, machine, run


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


FAULTS = """
import resource
import numpy as np
from tilecov.pipeline.machine import reset_peak

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        np.zeros(1 << 20, np.int64)[:] = 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

for keep in (False, True, False):
    reset_peak(keep=keep)
    faults()
    print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator than glibc's")
def test_freed_arrays_are_kept_for_the_next_ones_or_given_back() -> None:
    """Pages that come from the system anew are faulted in: 20 arrays of 8 MiB."""
    out = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True).stdout
    given_back, kept, again = map(int, out.split())
    assert 10 * kept < min(given_back, again), out


@pytest.fixture
def unfrozen() -> Iterator[None]:
    """Begin and end with no object frozen, whatever fails."""
    assert gc.get_freeze_count() == 0
    yield
    gc.unfreeze()


class Knot:
    """What only a garbage collection frees."""

    def __init__(self) -> None:
        self.itself = self


@pytest.mark.usefixtures("unfrozen")
def test_objects_are_frozen_for_a_while_and_young_garbage_goes_before() -> None:
    knot = weakref.ref(Knot())
    with machine.old_objects_at_rest():
        assert knot() is None
        frozen = gc.get_freeze_count()
        assert frozen > 1000
        with machine.old_objects_at_rest():  # of another run, say
            pass
        assert gc.get_freeze_count() == frozen
    assert gc.get_freeze_count() == 0


@pytest.mark.usefixtures("unfrozen")
def test_what_a_caller_froze_stays_frozen_and_what_fails_is_undone() -> None:
    with pytest.raises(KeyError), machine.old_objects_at_rest():
        raise KeyError
    assert gc.get_freeze_count() == 0
    gc.freeze()
    with machine.old_objects_at_rest():
        pass
    assert gc.get_freeze_count() > 0


@pytest.mark.usefixtures("unfrozen")
def test_a_run_is_not_disturbed_by_the_objects_of_before(
    shards: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor are they frozen afterwards."""
    frozen: list[int] = []
    monkeypatch.setattr("tilecov.pipeline.report.write_report", lambda _: frozen.append(gc.get_freeze_count()))
    run(Job(shards=tuple(shards()), resolution=8, out=str(tmp_path / "run")))
    assert frozen[0] > 100_000  # torch's among them
    assert gc.get_freeze_count() == 0
