"""Rows to a device: the same rows, whatever is overwritten meanwhile, and the same bits of a job that goes this way."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import random_images, rows_of, write_shards

from tilecov.pipeline import Job, Moments, run, tasks
from tilecov.pipeline.transfer import Transfer, host_block, sender_to

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
DEVICES = [pytest.param("cpu"), pytest.param("cuda", marks=[pytest.mark.gpu, gpu])]


@pytest.mark.parametrize("device", DEVICES)
def test_rows_arrive_though_their_block_is_written_anew(device: str) -> None:
    place, shape = torch.device(device), (64, 4096)
    rows = host_block(shape, "uint8", place)
    assert (rows.shape, rows.dtype) == (shape, np.uint8)
    transfer, totals = Transfer(place), []
    for number in range(20):
        count = 1 + 3 * number
        rows[:count] = number
        with transfer.sent(torch.from_numpy(rows[:count])) as there:
            rows[:] = 255
            assert (there.shape, there.device.type) == ((count, shape[1]), device)
            totals.append(there.to(torch.int64).sum(dim=0))  # queued, not waited for
    found = [total.cpu() for total in totals]
    assert all(bool((total == number * (1 + 3 * number)).all()) for number, total in enumerate(found))


class Calls:
    """A device's calls, noted in order: on the CPU they do nothing, and nothing could be seen to be missing."""

    def __init__(self) -> None:
        self.noted: list[str] = []
        self.where = "products"

    def note(self, what: str) -> None:
        self.noted.append(f"{self.where}: {what}")

    @contextmanager
    def stream(self, stream: "Stream") -> Iterator[None]:
        self.where = stream.name
        yield
        self.where = "products"


class Stream:
    def __init__(self, calls: Calls, name: str) -> None:
        self.calls, self.name = calls, name

    def wait_event(self, event: "Event") -> None:
        self.calls.noted.append(f"{self.name}: wait for {event.name}")


class Event:
    def __init__(self, calls: Calls, name: str) -> None:
        self.calls, self.name = calls, name

    def record(self, stream: Stream) -> None:
        self.calls.noted.append(f"{stream.name}: {self.name}")

    def synchronize(self) -> None:
        self.calls.noted.append(f"host: wait for {self.name}")


class Buffer:
    def __init__(self, calls: Calls, turn: int) -> None:
        self.calls, self.turn = calls, turn

    def copy_(self, rows: torch.Tensor, *, non_blocking: bool) -> None:
        assert non_blocking
        self.calls.note(f"copy to {self.turn}")


def test_copies_and_products_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """A buffer is filled after the products with what lay there, and the host goes on once its rows are copied."""
    transfer, calls = Transfer(torch.device("cpu")), Calls()
    buffers = [Buffer(calls, turn) for turn in range(2)]
    calls.current_stream = lambda device: Stream(calls, "products")  # type: ignore[attr-defined]
    monkeypatch.setattr(transfer, "_calls", calls)
    monkeypatch.setattr(transfer, "_stream", Stream(calls, "copies"))
    monkeypatch.setattr(transfer, "_copied", Event(calls, "copied"))
    monkeypatch.setattr(transfer, "_used", [Event(calls, f"used {turn}") for turn in range(2)])
    monkeypatch.setattr(transfer, "_buffer", lambda turn, rows: buffers[turn])
    for _ in range(3):
        with transfer.sent(torch.empty(1)):
            calls.note("products")
    assert calls.noted == [
        line
        for turn in (0, 1, 0)
        for line in (
            f"copies: wait for used {turn}",
            f"copies: copy to {turn}",
            "copies: copied",
            "products: wait for copied",
            "host: wait for copied",
            "products: products",
            f"products: used {turn}",
        )
    ]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["float32", "float64", "uint8"])
def test_rows_of_another_shape_or_kind_get_another_buffer(device: str, kind: str) -> None:
    transfer = Transfer(torch.device(device))
    for shape in ((3, 4), (5, 4), (2, 4), (2, 7)):
        for dtype in (kind, "uint8"):
            rows = torch.from_numpy(np.arange(np.prod(shape)).reshape(shape).astype(dtype))
            with transfer.sent(rows) as there:
                assert torch.equal(there.cpu(), rows)


def test_rows_stay_where_they_are_on_the_cpu() -> None:
    rows = torch.ones((2, 3))
    with sender_to(torch.device("cpu"))(rows) as there:
        assert there is rows


@pytest.mark.parametrize("device", DEVICES)
def test_a_job_whose_rows_are_copied_has_the_same_digest(
    tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = random_images(300, 8)
    paths = tuple(map(str, write_shards(tmp_path / "shards", images, 2)))
    monkeypatch.setattr(tasks, "sender_to", lambda device: Transfer(device).sent)  # as on a CUDA device
    job = Job(shards=paths, resolution=8, rank=0, out=str(tmp_path / "run"), device=device, block_rows=40)
    rows = rows_of(images)
    assert run(job)["moments_digest"] == Moments.empty(rows.shape[1]).update(rows).digest()
