"""Workers of this machine: how devices are shared out among them."""

import pytest

from tilecov.pipeline import Job
from tilecov.pipeline.executors import _devices, worker_environments


@pytest.mark.parametrize(
    ("workers", "devices", "expected"),
    [
        (2, [], [None, None]),
        (2, ["0", "1", "2"], ["0", "1"]),
        (3, ["4", "GPU-7"], ["4", "GPU-7", "4"]),
    ],
)
def test_each_worker_has_one_device(workers: int, devices: list[str], expected: list[str | None]) -> None:
    assert [each.get("CUDA_VISIBLE_DEVICES") for each in worker_environments(workers, devices)] == expected


@pytest.mark.parametrize(
    ("device", "visible", "found", "expected"),
    [
        ("auto", None, 2, ["0", "1"]),
        ("cuda", "3,5", 2, ["3", "5"]),
        ("auto", "3, 5,-1,6", 2, ["3", "5"]),
        ("auto", None, 0, []),
        ("cpu", None, 2, []),
        ("cuda:1", None, 2, []),
    ],
)
def test_devices_that_are_shared_out(
    device: str, visible: str | None, found: int, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: found)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert list(_devices(Job(shards=("x.tar",), resolution=4, device=device))) == expected
