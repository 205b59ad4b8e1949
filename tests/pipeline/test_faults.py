"""Crashes, full disks, busy stores: the run goes on or says why, and never gives a wrong number."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from conftest import npy, random_images, rows_of, write_shards, write_tar
from fsspec.implementations.memory import MemoryFileSystem

from tilecov.pipeline import Job, Moments, run
from tilecov.pipeline.cli import run_safely
from tilecov.pipeline.errors import OtherJobError
from tilecov.pipeline.merge import merge
from tilecov.pipeline.synth import synth
from tilecov.pipeline.verify import verify
from tilecov.storage.lease import NAME as LEASE
from tilecov.storage.objects import Folder
from tilecov.storage.runs import REPORT, WORK, RunFolder

Strategy = Any


class Crash(BaseException):
    """Stops a run where it stands, as kill -9 would: nothing catches it."""


def digest_of(images: np.ndarray[Any, Any]) -> str:
    rows = rows_of(images)
    return Moments.empty(rows.shape[1]).update(rows).digest()


@pytest.mark.parametrize("strategy", ["resident", "staged"])
def test_a_crash_at_any_write_is_resumed(tmp_path: Path, strategy: Strategy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Crash at the first write, the second, and so on, each time in the run that the crash before left behind."""
    images = random_images(24, 4)
    paths = tuple(str(path) for path in write_shards(tmp_path / "shards", images, 3))
    job = Job(shards=paths, resolution=4, rank=4, out=str(tmp_path / "run"), strategy=strategy)
    original, crashes = Folder.writing, 0
    for attempt in range(200):
        left = [attempt % 12]

        def writing(self: Folder, name: str, left: list[int] = left, **how: bool) -> Any:
            left[0] -= "lease" not in name
            if left[0] < 0:
                raise Crash
            return original(self, name, **how)

        monkeypatch.setattr(Folder, "writing", writing)
        try:
            manifest = run(job)
            break
        except Crash:
            crashes += 1
    monkeypatch.setattr(Folder, "writing", original)
    assert crashes >= 5
    assert manifest["moments_digest"] == digest_of(images)
    assert verify(RunFolder(Folder(str(tmp_path / "run"))))[1] == []


@pytest.mark.parametrize(("method", "at"), [("remove", WORK), ("writing", REPORT)])
def test_a_crash_at_the_very_end_leaves_nothing_undone(
    tmp_path: Path, method: str, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is called complete gets the report that it still lacks, and loses the lease of a process killed."""
    paths = tuple(str(path) for path in write_shards(tmp_path / "shards", random_images(24, 4), 2))
    job = Job(shards=paths, resolution=4, rank=4, out=str(tmp_path / "run"))
    original, lease, held = getattr(Folder, method), tmp_path / "run" / LEASE, {}

    def crashing(self: Folder, name: str = "", **how: bool) -> Any:
        if name == at:
            held.update(json.loads(lease.read_bytes()))
            raise Crash
        return original(self, name, **how)

    monkeypatch.setattr(Folder, method, crashing)
    with pytest.raises(Crash):
        run(job)
    monkeypatch.setattr(Folder, method, original)
    lease.write_text(json.dumps({**held, "started": "1"}))  # kill -9 leaves it, and its process is gone
    assert not (tmp_path / "run" / REPORT).exists()
    assert run(job)["state"] == "complete"
    assert not (tmp_path / "run" / WORK).exists()
    assert (tmp_path / "run" / REPORT).exists()
    assert not lease.exists()
    assert verify(RunFolder(Folder(str(tmp_path / "run"))))[1] == []


def test_a_shard_that_changed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [str(path) for path in write_shards(tmp_path / "shards", random_images(24, 4), 2)]
    job = Job(shards=tuple(paths), resolution=4, rank=0, out=str(tmp_path / "run"))
    run(job)
    os.utime(paths[1], ns=(1, 1))
    with pytest.raises(OtherJobError, match="has changed since"):
        run(job)


def test_another_format_is_refused_by_name(tmp_path: Path) -> None:
    paths = [str(path) for path in write_shards(tmp_path / "shards", random_images(24, 4), 2)]
    job = Job(shards=tuple(paths), resolution=4, rank=0, out=str(tmp_path / "run"))
    manifest = run(job)
    (tmp_path / "run" / "run.json").write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(ValueError, match="format 99"):
        run(job)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("strategy", ["resident", "staged"])
def test_kill_9_at_ten_random_moments(tmp_path: Path, strategy: str) -> None:
    shards = str(tmp_path / "shards" / "leaves-{000..011}.tar")
    paths = synth(shards, count=1200, resolution=24, seed=1, workers=1)
    expected = run(Job(shards=tuple(paths), resolution=24, rank=8, out=str(tmp_path / "expected")))
    rng, kills, number = random.Random(0), 0, 0
    while kills < 10:
        out = tmp_path / f"run{number}"
        command = [sys.executable, "-m", "tilecov.pipeline.cli", "run", shards, "--resolution", "24", "--rank", "8"]
        process = subprocess.Popen([*command, "--strategy", strategy, "--out", str(out), "--quiet"])
        try:
            process.wait(timeout=rng.uniform(1.0, 7.0))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            continue
        assert process.returncode == 0
        check_complete(out, expected)
        number += 1
    assert subprocess.run([*command, "--strategy", strategy, "--out", str(out), "--quiet"], check=False).returncode == 0
    check_complete(out, expected)


def check_complete(out: Path, expected: dict[str, Any]) -> None:
    manifest = json.loads((out / "run.json").read_text())
    assert manifest["state"] == "complete"
    assert manifest["moments_digest"] == expected["moments_digest"]
    assert not (out / "work").exists()
    assert verify(RunFolder(Folder(str(out))))[1] == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Return a function that mounts a memory disk of a size; skipped where that is not allowed."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(options: str) -> Path:
        already = os.path.ismount(place)
        options = f"remount,{options}" if already else options
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True, check=False
        )
        if done.returncode:
            pytest.skip("this process may not mount a memory disk")
        return place

    yield mount
    if os.path.ismount(place):
        subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk(
    tmp_path: Path,
    small_disk: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    images = random_images(60, 12)
    paths = [str(path) for path in write_shards(tmp_path / "shards", images, 3)]
    disk = small_disk("size=1m")
    arguments = ["run", *paths, "--resolution", "12", "--out", str(disk / "run"), "--quiet"]
    assert run_safely(arguments) == 1  # the plan sees it
    assert "disk" in capsys.readouterr().err
    monkeypatch.setattr("tilecov.pipeline.machine._disk_free", lambda folder: None)
    assert run_safely(arguments) == 1  # the plan does not, the disk does
    message = capsys.readouterr().err
    assert "No space left" in message
    assert message.count("\n") == 1
    small_disk("size=50m")
    assert run_safely(arguments) == 0
    assert json.loads((disk / "run" / "run.json").read_text())["moments_digest"] == digest_of(images)
    assert verify(RunFolder(Folder(str(disk / "run"))))[1] == []


def test_a_folder_that_cannot_be_written(
    tmp_path: Path, small_disk: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [str(path) for path in write_shards(tmp_path / "shards", random_images(24, 4), 1)]
    disk = small_disk("ro")
    assert run_safely(["run", *paths, "--resolution", "4", "--out", str(disk / "run"), "--quiet"]) == 1
    message = capsys.readouterr().err
    assert "Read-only" in message
    assert str(disk) in message


class BusyFileSystem(MemoryFileSystem):  # type: ignore[misc]
    """Answers half of all requests with 503."""

    protocol = "busy"
    cachable = False
    rng = random.Random(0)
    share = 0.5

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(MemoryFileSystem._strip_protocol(path.replace("busy://", "memory://")))

    def _busy(self) -> None:
        if self.rng.random() < self.share:
            raise OSError(16, "503 Slow Down")

    def cat_file(self, *args: Any, **kwargs: Any) -> Any:
        self._busy()
        return super().cat_file(*args, **kwargs)

    def pipe_file(self, *args: Any, **kwargs: Any) -> Any:
        self._busy()
        return super().pipe_file(*args, **kwargs)

    def info(self, *args: Any, **kwargs: Any) -> Any:
        self._busy()
        return super().info(*args, **kwargs)

    def ls(self, *args: Any, **kwargs: Any) -> Any:
        self._busy()
        return super().ls(*args, **kwargs)

    def _open(self, *args: Any, **kwargs: Any) -> Any:
        self._busy()
        return super()._open(*args, **kwargs)


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch) -> type[BusyFileSystem]:
    """Register busy:// for this test, with pauses that take no time."""
    fsspec.register_implementation("busy", BusyFileSystem, clobber=True)
    monkeypatch.setattr("tilecov.storage.retries.FIRST_PAUSE", 1e-4)
    monkeypatch.setattr("tilecov.storage.retries.LONGEST_PAUSE", 1e-3)
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    monkeypatch.setattr(MemoryFileSystem, "pseudo_dirs", [""])
    monkeypatch.setattr(BusyFileSystem, "share", 0.5)
    return BusyFileSystem


def test_a_store_that_answers_503_half_of_the_time(
    tmp_path: Path, busy: type[BusyFileSystem], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = random_images(40, 4)
    for path in write_shards(tmp_path, images, 2):
        MemoryFileSystem().pipe_file(f"/shards/{path.name}", path.read_bytes())
    monkeypatch.setattr("tilecov.storage.retries.TRIES", 40)
    job = Job(shards=("busy://shards/part-*.tar",), resolution=4, out="busy://run", rank=5)
    assert run(job)["moments_digest"] == digest_of(images)
    assert verify(RunFolder(Folder("busy://run")))[1] == []


def test_a_store_that_stays_away_is_an_error(
    tmp_path: Path, busy: type[BusyFileSystem], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(busy, "share", 1.0)
    started = time.monotonic()
    assert run_safely(["run", "busy://shards/a.tar", "--resolution", "4", "--out", str(tmp_path / "run"), "-q"]) == 1
    assert "503" in capsys.readouterr().err
    assert time.monotonic() - started < 60


def test_float_rows_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash in the second pass goes on about the same mean."""
    from tilecov.pipeline import tasks

    rows = np.random.default_rng(0).normal(size=(40, 12))
    paths = [
        write_tar(tmp_path / f"{part}.tar", ((f"{i}.npy", npy(row)) for i, row in enumerate(rows[part::2])))
        for part in range(2)
    ]
    job = {"shards": tuple(map(str, paths)), "resolution": 2, "rank": 0, "dtype": "float64"}
    expected = run(Job(**job, out=str(tmp_path / "expected")))

    def crash(*args: Any) -> None:
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(tasks._Parts, "finish", crash)
        with pytest.raises(Crash):
            run(Job(**job, out=str(tmp_path / "run")))
    assert run(Job(**job, out=str(tmp_path / "run")))["moments_digest"] == expected["moments_digest"]


def test_a_source_that_was_made_anew_since_is_refused(tmp_path: Path) -> None:
    """An interrupted merge goes on only with the moments that it was begun with."""
    first, second = write_shards(tmp_path / "shards", random_images(20, 4), 2)
    job = {"resolution": 4, "rank": 0}
    for name, shard in (("a", first), ("b", second), ("other", second)):
        run(Job(shards=(str(shard),), out=str(tmp_path / name), **job))
    merge([str(tmp_path / "a"), str(tmp_path / "b")], str(tmp_path / "c"))
    manifest = json.loads((tmp_path / "c" / "run.json").read_text())
    (tmp_path / "c" / "run.json").write_text(json.dumps({**manifest, "state": "running", "stages": {}}))
    shutil.rmtree(tmp_path / "a")
    (tmp_path / "other").rename(tmp_path / "a")
    with pytest.raises(OtherJobError, match=f"{manifest['sources'][0]['digest']} when .* was begun"):
        merge([str(tmp_path / "a"), str(tmp_path / "b")], str(tmp_path / "c"), allow_duplicates=True)


@pytest.mark.parametrize("left", [".tilecov-123.tmp", ".run.json.0123456789abcdef.tmp", "lease.json.0123"])
def test_what_a_kill_leaves_before_a_run_has_begun_hinders_nothing(tmp_path: Path, left: str) -> None:
    shards = tuple(str(path) for path in write_shards(tmp_path / "shards", random_images(20, 4), 1))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / left).write_bytes(b"half")
    assert run(Job(shards=shards, resolution=4, rank=0, out=str(tmp_path / "run")))["state"] == "complete"
    assert (tmp_path / "run" / left).exists() == left.startswith("lease")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_bytes(b"mine")
    with pytest.raises(OtherJobError, match="not empty"):
        run(Job(shards=shards, resolution=4, rank=0, out=str(tmp_path / "other")))
