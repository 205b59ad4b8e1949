"""What a power cut damaged after its commit is noticed and read again, also by a run that is stopped over it."""

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from conftest import random_images, rows_of, write_shards

from tilecov.pipeline import Job, Moments, run
from tilecov.pipeline.observer import Observer
from tilecov.storage.runs import RunFolder

IMAGES = random_images(24, 4)
ROWS = rows_of(IMAGES)
DIGEST = Moments.empty(ROWS.shape[1]).update(ROWS).digest()


class Crash(BaseException):
    """Stops a run where it stands, as kill -9 would: nothing catches it."""


def change(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[7] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


DAMAGES = change, cut, empty, Path.unlink
LOST = {"00000.json"}, Path.unlink


def job_of(tmp_path: Path, **options: Any) -> Job:
    paths = tuple(map(str, write_shards(tmp_path / "shards", IMAGES, 3)))
    return Job(**{"shards": paths, "resolution": 4, "rank": 0, "out": str(tmp_path / "run"), **options})


class Damaging(Observer):
    """Damages a file of what a stage wrote, or one of its commits, once it is finished."""

    def __init__(self, run: Path, stage: str, names: set[str], damage: Callable[[Path], None]) -> None:
        self.work, self.stage_, self.names, self.damage = run / "work", stage, names, damage
        self.times = 0

    def finished(self, name: str, seconds: float) -> None:
        if name != self.stage_ or self.times:
            return
        self.times += 1
        files = [*(self.work / name).rglob("*"), *(self.work / "commits" / name).iterdir()]
        found = [path for path in files if path.is_file() and path.name in self.names]
        self.damage(max(found, key=lambda path: path.stat().st_mtime_ns))  # not what an attempt before left


@pytest.mark.parametrize(
    ("stage", "options", "names", "damage"),
    [
        *(("moments", {"strategy": "resident"}, *damage) for damage in [*product([{"0-0"}, {"sum"}], DAMAGES), LOST]),
        *(
            ("rows", options, *damage)
            for options in ({"strategy": "staged"}, {"covariance": False, "rank": 4})
            for damage in [*product([{"0"}, {"sum"}, {"zarr.json"}], DAMAGES), LOST]
        ),
        ("tiles", {"strategy": "staged"}, {"0-0.json"}, Path.unlink),
    ],
)
def test_lost_work_is_read_again(
    tmp_path: Path, stage: str, options: dict[str, Any], names: set[str], damage: Callable[[Path], None]
) -> None:
    damaging = Damaging(tmp_path / "run", stage, names, damage)
    manifest = run(job_of(tmp_path, **options), damaging)
    assert damaging.times
    assert manifest["repaired"]
    assert manifest.get("moments_digest", DIGEST) == DIGEST
    if "rank" in options:
        expected = run(job_of(tmp_path, **options, out=str(tmp_path / "expected")))
        found, wanted = (next((tmp_path / name).rglob("LA.pt")).read_bytes() for name in ("run", "expected"))
        assert found == wanted
        assert manifest["certificate"] == expected["certificate"]


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(("stage", "strategy"), [("moments", "resident"), ("rows", "staged")])
def test_a_crash_amid_reading_again_is_resumed(
    tmp_path: Path, stage: str, strategy: str, last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the commits of what was damaged are gone, and after; run.json must not call finished what they were."""
    job, original = job_of(tmp_path, strategy=strategy), RunFolder.forget

    def crashing(self: RunFolder, stage: str, task: str = "") -> None:
        if last:
            original(self, stage, task)
        raise Crash

    monkeypatch.setattr(RunFolder, "forget", crashing)
    with pytest.raises(Crash):
        run(job, Damaging(tmp_path / "run", stage, {"0-0", "0"}, cut))
    monkeypatch.setattr(RunFolder, "forget", original)
    manifest = run(job)
    assert manifest["repaired"]
    assert manifest["moments_digest"] == DIGEST


class DamagingAlways(Damaging):
    def finished(self, name: str, seconds: float) -> None:
        self.times = 0
        super().finished(name, seconds)


def test_what_is_damaged_again_and_again_ends_the_run(tmp_path: Path) -> None:
    job = job_of(tmp_path, strategy="resident")
    with pytest.raises(RuntimeError, match="damaged"):
        run(job, DamagingAlways(tmp_path / "run", "moments", {"0-0"}, cut))
    assert run(job)["moments_digest"] == DIGEST
