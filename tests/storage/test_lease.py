"""A lease: one owner at a time, a dead one forgotten."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tilecov.storage.lease import NAME, LeaseHeldError, lease
from tilecov.storage.objects import Folder


def write(folder: Path, **fields: object) -> None:
    held = {"id": "other", "host": socket.gethostname(), "pid": os.getpid(), "until": time.time() + 60, **fields}
    folder.mkdir(exist_ok=True)
    (folder / NAME).write_text(json.dumps(held))


def test_it_is_held_and_given_back(tmp_path: Path) -> None:
    with lease(Folder(str(tmp_path))):
        assert (tmp_path / NAME).exists()
        with pytest.raises(LeaseHeldError, match=str(os.getpid())), lease(Folder(str(tmp_path))):
            pass
        assert (tmp_path / NAME).exists()
    assert list(tmp_path.iterdir()) == []


def test_an_owner_on_another_machine_blocks_until_its_time_is_over(tmp_path: Path) -> None:
    write(tmp_path, host="elsewhere")
    with pytest.raises(LeaseHeldError, match="elsewhere"), lease(Folder(str(tmp_path))):
        pass
    write(tmp_path, host="elsewhere", until=time.time() - 1)
    with lease(Folder(str(tmp_path))):
        assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()


def test_a_dead_process_of_this_machine_does_not_block(tmp_path: Path) -> None:
    write(tmp_path, pid=2**22 + 1)  # above the largest process id
    with lease(Folder(str(tmp_path))):
        pass


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc here")
def test_a_dead_process_that_nobody_has_asked_after_does_not_block(tmp_path: Path) -> None:
    """As an orphan whose init is slow: it still has its number and its start."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and stays to be waited for
    held = Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    assert held[0] == "Z"
    write(tmp_path, pid=process.pid, started=held[19])
    with lease(Folder(str(tmp_path))):
        pass
    process.wait()


def test_a_dead_process_whose_number_another_has_does_not_block(tmp_path: Path) -> None:
    """As where a container is started again, whose processes have the numbers of those before."""
    write(tmp_path, started="1")
    with lease(Folder(str(tmp_path))):
        pass


@pytest.mark.parametrize("content", ["{", "", "5", "[]", "null"])
def test_a_damaged_lease_is_taken_over(tmp_path: Path, content: str) -> None:
    (tmp_path / NAME).write_text(content)
    with lease(Folder(str(tmp_path))):
        pass


def test_it_is_renewed(tmp_path: Path) -> None:
    with lease(Folder(str(tmp_path)), lifetime=5, renewal=0.02):
        first = json.loads((tmp_path / NAME).read_text())["until"]
        patience = time.monotonic() + 60
        while json.loads((tmp_path / NAME).read_text())["until"] <= first:
            assert time.monotonic() < patience
            time.sleep(0.02)


def test_one_of_many_wins(tmp_path: Path) -> None:
    tried = threading.Barrier(8, timeout=60)

    def work(_: int) -> bool:
        try:
            with lease(Folder(str(tmp_path))):
                tried.wait()
        except LeaseHeldError:
            tried.wait()
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(work, range(8))) == 1


def test_only_the_lease_that_was_looked_at_is_taken_over(tmp_path: Path) -> None:
    """A second process that saw the dead lease does not remove the one of the first."""
    from tilecov.storage.lease import _read, _take_over

    write(tmp_path, pid=2**22 + 1)
    folder = Folder(str(tmp_path))
    dead = _read(folder)
    with lease(folder):
        _take_over(folder, dead or {})
        assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_lease_that_follows_one_given_back_is_not_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where one process looks between two others, of which the first ends and the second begins."""
    from tilecov.storage.lease import _remove_if_over

    folder = Folder(str(tmp_path))
    with lease(folder), monkeypatch.context() as patch:
        patch.setattr("tilecov.storage.lease._read", lambda _: None)
        _remove_if_over(folder)
        assert (tmp_path / NAME).exists()


def test_a_take_over_that_died_is_forgotten(tmp_path: Path) -> None:
    write(tmp_path, pid=2**22 + 1)
    (tmp_path / f"{NAME}.other").write_text(f"{time.time() - 100} x")
    with lease(Folder(str(tmp_path))):
        pass
