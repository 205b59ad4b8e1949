"""Stages are noted as finished once their files are on the disk, while the next one computes."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import pytest

from tilecov.pipeline import Job, run
from tilecov.pipeline.context import Context
from tilecov.pipeline.errors import CertificateError
from tilecov.pipeline.finishing import Finishing
from tilecov.pipeline.stages import STAGES
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
    finishing.afterwards(lambda: folder.root.remove("work"))
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
    finishing.afterwards(lambda: folder.root.remove("work"))
    finishing.note({"format": 1})
    with pytest.raises(OSError, match="no space left"):
        finishing.note({"format": 1, "more": 1})
    finishing.wait()
    assert folder.load() is None
    assert folder.root.names() == ["work"]


def test_an_interruption_leaves_nothing_behind(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a thread that would write when the run's lease is somebody else's."""
    flushed, interrupted = threading.Event(), KeyboardInterrupt("stop")
    monkeypatch.setattr(Folder, "sync", lambda _: flushed.wait(LONG))
    original, left = Future.result, [interrupted, interrupted]

    def result(future: "Future[None]", timeout: float | None = None) -> None:
        if left:
            raise left.pop()
        flushed.set()
        original(future, timeout)

    finishing = Finishing(folder)
    monkeypatch.setattr(Future, "result", result)
    with pytest.raises(KeyboardInterrupt), finishing:  # noqa: PT012
        finishing.flush("moments")
        finishing.note({"format": 1})
        finishing.note({"format": 1, "later": True})
    assert folder.load() == {"format": 1}


def test_of_two_errors_the_first_is_raised(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def sync(_: Folder) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Folder, "sync", sync)
    with pytest.raises(ValueError, match="of the stage"), Finishing(folder) as finishing:  # noqa: PT012
        finishing.flush("moments")
        finishing.note({"format": 1})
        raise ValueError("of the stage")


def test_what_falls_short_is_no_longer_noted_when_it_is_replaced(
    shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that stops while its spectrum is decomposed again takes no artifacts of the old one for the new one's."""
    seen: list[list[str]] = []
    job = Job(shards=tuple(shards()), resolution=8, out=str(tmp_path / "run"))
    found = RunFolder(Folder(str(tmp_path / "run")))

    def decompose(context: Context) -> None:
        manifest = found.load()
        assert manifest is not None
        seen.append(list(manifest["stages"]))
        spectrum(context)

    def certify(context: Context) -> None:
        if len(seen) == 1:
            context.finishing.wait()
            raise CertificateError("it falls short")
        certificate(context)

    spectrum, certificate = STAGES["spectrum"], STAGES["certificate"]
    changed = {**STAGES, "spectrum": decompose, "certificate": certify}
    monkeypatch.setattr("tilecov.pipeline.stages.STAGES", changed)
    monkeypatch.setattr("tilecov.pipeline.methods.QUICK", 0)
    assert run(job)["precision"] == "float64"
    assert seen[1] == ["moments", "merge", "statistics"]


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
