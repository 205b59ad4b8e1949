"""What is kept between the passes of the randomized method: seldom enough, and always what counts."""

from pathlib import Path

import pytest
import torch

from tilecov.pipeline import checkpoints
from tilecov.pipeline.checkpoints import KrylovState
from tilecov.pipeline.svd.randomized import Progress
from tilecov.storage.objects import Folder
from tilecov.storage.runs import RunFolder


class Clock:
    """Stands in for ``time``: a second is what a test says."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(checkpoints, "time", clock)
    return clock


@pytest.fixture(name="run")
def run_folder(tmp_path: Path) -> RunFolder:
    return RunFolder(Folder(str(tmp_path)))


def progress(basis: torch.Tensor, passes: int) -> Progress:
    return Progress(basis, torch.full((len(basis), 2), float(passes)), torch.arange(2.0), passes=passes)


def assert_kept(run: RunFolder, basis: torch.Tensor, passes: int) -> None:
    """Hold that another process finds this progress."""
    found = KrylovState(run, 10.0).load()
    assert found is not None
    assert torch.equal(found.basis, basis)
    assert torch.equal(found.coupling, torch.full((len(basis), 2), float(passes)))
    assert found.passes == passes


def test_passes_that_are_skipped_are_in_the_next_save(run: RunFolder, clock: Clock) -> None:
    rows = torch.rand((40, 3))
    state = KrylovState(run, 10.0)
    state.save(progress(rows[:5], 1), 0)
    assert KrylovState(run, 10.0).load() is None  # it began a moment ago
    clock.now = 10.0
    state.save(progress(rows[:10], 2), 5)
    assert_kept(run, rows[:10], 2)
    clock.now = 15.0
    state.save(progress(rows[:20], 3), 10)
    assert_kept(run, rows[:10], 2)
    clock.now = 20.0
    state.save(progress(rows[:30], 4), 20)
    assert_kept(run, rows[:30], 4)


def test_a_restart_of_the_basis_that_is_skipped_is_saved_too(run: RunFolder, clock: Clock) -> None:
    rows, turned = torch.rand((40, 3)), torch.rand((20, 3))
    state = KrylovState(run, 10.0)
    clock.now = 10.0
    state.save(progress(rows[:30], 1), 0)
    clock.now = 12.0
    state.save(progress(turned[:10], 2), 0)
    clock.now = 30.0
    state.save(progress(turned[:15], 3), 10)
    assert_kept(run, turned[:15], 3)


def test_a_resumed_run_adds_to_what_was_saved(run: RunFolder, clock: Clock) -> None:
    rows, turned = torch.rand((40, 3)), torch.rand((20, 3))
    first = KrylovState(run, 0.0)
    first.save(progress(rows[:10], 1), 0)
    second = KrylovState(run, 10.0)
    assert second.load() is not None
    clock.now = 5.0
    second.save(progress(rows[:15], 2), 10)
    clock.now = 10.0
    second.save(progress(rows[:20], 3), 15)
    assert_kept(run, rows[:20], 3)
    clock.now = 20.0
    second.save(progress(turned[:12], 4), 0)
    assert_kept(run, turned[:12], 4)
    second.forget()
    assert KrylovState(run, 10.0).load() is None


def test_nothing_is_left_where_nothing_was_saved(tmp_path: Path, run: RunFolder, clock: Clock) -> None:
    state = KrylovState(run, 10.0)
    state.save(progress(torch.rand((5, 3)), 1), 0)
    state.forget()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
