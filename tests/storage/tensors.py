"""Tensors of any bits, folders to write them to, and what torch and TensorFile read there."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import HealthCheck, settings

from tilecov.storage.artifacts import TensorFile
from tilecov.storage.objects import Folder

Float = npt.NDArray[np.float32]

quick = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(name="folder")
def local_folder(tmp_path: Path) -> Folder:
    return Folder(str(tmp_path / "artifacts"))


@pytest.fixture(name="anywhere", params=["local", "memory"])
def folder_anywhere(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Folder]:
    yield Folder(str(tmp_path / "a") if request.param == "local" else f"memory://{uuid.uuid4().hex}/a")
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]


def numbers(shape: tuple[int, ...], seed: int = 0) -> Float:
    """Return any bits: NaN of every kind, infinities, subnormals, negative zeros."""
    count = int(np.prod(shape))
    bits = np.random.default_rng(seed).integers(0, 1 << 32, count, dtype=np.uint32)
    special = np.array([0, 1 << 31, 0x7F800000, 0xFF800000, 0x7FC00001, 1], np.uint32)
    bits[: min(count, 6)] = special[: min(count, 6)]
    return bits.view(np.float32).reshape(shape)


def load(folder: Folder, name: str, *, mmap: bool = False) -> Float:
    tensor = torch.load(folder.path(name), weights_only=True, mmap=mmap)
    assert tensor.dtype == torch.float32
    assert tensor.is_contiguous()
    return np.asarray(tensor.numpy())


def same(one: Float, other: Float) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and one.tobytes() == other.tobytes()


def joined(file: TensorFile, step: int) -> Float:
    parts = [np.empty((0, *file.shape[1:]), np.float32), *(values for _, values in file.rows(step))]
    return np.concatenate(parts)
