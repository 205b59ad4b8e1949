"""Stages are noted as finished once their files are on the disk, while the next one computes."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tilecov.pipeline import Job, run
from tilecov.pipeline.finishing import Finishing
from tilecov.pipeline.verify import verify
from tilecov.storage.objects import Folder
from tilecov.storage.runs import MANIFEST, MOMENTS, STATISTICS, RunFolder

Shards = Callable[..., list[str]]

LONG = 60
"""Seconds after which something that should have happened is a failure."""


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(Folder(str(tmp_path)))


def test_a_stage_is_noted_after_its_files_were_flushed(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it was when it ended, whatever the next one does to the manifest; what it leaves is removed afterwards."""
    flushing, flushed = threading.Event(), threading.Event()

    def sync(synced: Folder) -> None:
        flushing.set()
        assert flushed.wait(LONG)
        synced.write("flushed", b"")

    monkeypatch.setattr(Folder, "sync", sync)
    folder.root.write("work", b"")
    finishing, manifest = Finishing(folder), {"format": 1, "stages": {"merge": {}}}
    finishing.flush("moments")
    finishing.remove("work")
    finishing.note(manifest)
    assert flushing.wait(LONG)
    manifest["stages"]["statistics"] = {}  # type: ignore[index]
    assert folder.root.names() == ["work"]
    flushed.set()
    finishing.wait()
    assert folder.root.names() == ["moments", MANIFEST]
    assert folder.load() == {"format": 1, "stages": {"merge": {}}}


def test_stages_are_noted_in_their_order(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """One without files waits for the one before it, whose files are flushed."""
    noted: list[object] = []
    monkeypatch.setattr(RunFolder, "save", lambda _, manifest: noted.append(manifest["stage"]))
    finishing = Finishing(folder)
    for stage in range(20):
        if stage % 3:
            finishing.flush("moments")
        finishing.note({"stage": stage})
    finishing.wait()
    assert noted == list(range(20))


def test_what_kept_files_from_the_disk_is_raised_once(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def sync(_: Folder) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Folder, "sync", sync)
    folder.root.write("work", b"")
    finishing = Finishing(folder)
    finishing.flush("moments")
    finishing.remove("work")
    finishing.note({"format": 1})
    with pytest.raises(OSError, match="no space left"):
        finishing.note({"format": 1, "more": 1})
    finishing.wait()
    assert folder.load() is None
    assert folder.root.names() == ["work"]


@pytest.mark.parametrize(("failing", "noted"), [(MOMENTS, ["moments"]), (STATISTICS, ["moments", "merge"])])
def test_a_run_whose_files_did_not_reach_the_disk_does_that_stage_again(
    shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str, noted: list[str]
) -> None:
    paths = tuple(shards())
    whole = run(Job(shards=paths, resolution=8, out=str(tmp_path / "whole")))
    job, sync = Job(shards=paths, resolution=8, out=str(tmp_path / "run")), Folder.sync

    def fail(folder: Folder) -> None:
        if folder.url.endswith(failing):
            raise OSError("no space left")
        sync(folder)

    monkeypatch.setattr(Folder, "sync", fail)
    with pytest.raises(OSError, match="no space left"):
        run(job)
    found = RunFolder(Folder(str(tmp_path / "run")))
    manifest = found.load()
    assert manifest is not None
    assert list(manifest["stages"]) == noted
    monkeypatch.undo()
    again = run(job)
    assert again["moments_digest"] == whole["moments_digest"]
    assert again["artifacts"] == whole["artifacts"]
    assert "repaired" not in again  # nothing had been removed that was needed
    assert verify(found)[1] == []
