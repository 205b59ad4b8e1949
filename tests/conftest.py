"""Shards made for the tests, and the real ones where they are; torch as tests of networks want it."""

import io
import tarfile
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pytest
from engine import docker_engine  # noqa: F401  (the fixture `engine`, one for all tests)
from hypothesis import HealthCheck, settings
from PIL import Image

if TYPE_CHECKING:
    from tilecov.pipeline.openblas import OpenBlas

# An example takes as long as it takes: no test fails because a machine was slow.
settings.register_profile("tilecov", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tilecov")

REAL = Path(__file__).parents[2] / "shared" / "data" / "twemoji64"


def png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Encode (H, W) or (H, W, 3) uint8 pixels."""
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG", compress_level=1)
    return sink.getvalue()


def npy(values: npt.NDArray[np.generic]) -> bytes:
    """Encode an array as .npy."""
    sink = io.BytesIO()
    np.save(sink, values)
    return sink.getvalue()


def write_tar(path: Path, files: Iterable[tuple[str, bytes]]) -> Path:
    """Write a tar of (name, content)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def random_images(count: int, resolution: int, channels: int = 3, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Return smooth-ish random (count, H, W[, 3]) uint8 images, so that pixels are correlated."""
    rng = np.random.default_rng(seed)
    shape = (count, resolution, resolution, channels)
    images = 0.6 * rng.integers(0, 256, (count, 1, 1, channels)) + 0.4 * rng.integers(0, 256, shape)
    return images.astype(np.uint8) if channels == 3 else images.astype(np.uint8)[..., 0]


def rows_of(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return images (n, H, W, 3) or (n, H, W) as CHW rows (n, d)."""
    stacked = images if images.ndim == 4 else images[..., None]
    return np.ascontiguousarray(stacked.transpose(0, 3, 1, 2)).reshape(len(images), -1)


def write_shards(folder: Path, images: npt.NDArray[np.uint8], shards: int) -> list[Path]:
    """Write images as PNG into ``shards`` tars, of unequal lengths."""
    cuts = np.linspace(0, len(images), shards + 1).astype(int)
    if len(images) >= 2 * shards:
        cuts[1:-1] += np.arange(shards - 1) % 2
    parts = [range(start, stop) for start, stop in pairwise(cuts)]
    return [
        write_tar(folder / f"part-{index:03d}.tar", ((f"{i:06d}.png", png(images[i])) for i in part))
        for index, part in enumerate(parts)
    ]


@pytest.fixture
def shards(tmp_path: Path) -> Callable[..., list[str]]:
    """Return a function that writes random images into shards and gives their paths."""

    def make(count: int = 40, resolution: int = 8, channels: int = 3, shards: int = 3, seed: int = 0) -> list[str]:
        images = random_images(count, resolution, channels, seed)
        return [str(path) for path in write_shards(tmp_path / "shards", images, shards)]

    return make


@pytest.fixture(scope="session")
def real_shards() -> list[str]:
    """Return the real shards, or skip."""
    found = sorted(str(path) for path in REAL.glob("*.tar"))
    if not found:
        pytest.skip(f"the real images are not at {REAL}")
    return found


@pytest.fixture
def seeded() -> None:
    """Let torch draw the same numbers in every test."""
    import torch

    torch.manual_seed(0)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Small networks only: on a busy machine, threads waiting for each other make them ten times slower."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def openblas() -> "OpenBlas":
    from tilecov.pipeline.openblas import numpys

    library = numpys()
    if library is None:
        pytest.skip("NumPy is linked with no OpenBLAS that can be reached")
    return library
