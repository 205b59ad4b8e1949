"""Shards of dead-leaves images: data of any size, without a download, the same for everybody."""

import io
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from tilecov.storage.shardwriter import PER_SHARD, Sample, lay_out, refuse_existing, write_shard

from .deadleaves import dead_leaves

# What Pillow is asked for, per extension. PNG: levels 1 to 6 differ by 2 % in size, and 3 is the fastest of them here.
_FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "png": ("PNG", {"compress_level": 3}),
    "jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    "webp": ("WEBP", {"lossless": True, "method": 0}),
}
# A batch, some 0.1 s of work: neither a task's cost nor the memory of a few batches matters. At most so many images of
# at most so many pixels together.
_IMAGES, _PIXELS = 64, 2**18
_WORTH_A_PROCESS = 16  # batches, 2 s of drawing; starting a process, which imports torch, takes as long
_IGNORE_INTERRUPTS = (signal.SIGINT, signal.SIG_IGN)  # the parent takes Ctrl-C and ends the others in order


@dataclass(frozen=True, slots=True)
class _Look:
    """What all images of a data set share; image ``i`` depends on this and ``i`` alone."""

    resolution: int
    channels: int
    seed: int
    extension: str

    def image(self, index: int) -> bytes:
        rng = np.random.default_rng(np.random.SeedSequence([self.seed, index]))
        return _encode(dead_leaves(rng, self.resolution, self.channels), self.extension)

    def batch(self, indices: range) -> list[bytes]:
        return [self.image(index) for index in indices]


def synth(
    shards: str,
    *,
    count: int,
    resolution: int,
    channels: int = 3,
    seed: int = 0,
    extension: str = "png",
    per_shard: int = PER_SHARD,
    overwrite: bool = False,
    workers: int | None = None,
    storage_options: Mapping[str, Any] | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[str]:
    """Write shards of dead-leaves images.

    Image ``i`` has the key ``i`` in nine digits and depends on the seed, the resolution, the channels and ``i`` alone:
    not on how many others there are, how they are spread over shards, or how many processes draw.

    Parameters
    ----------
    shards : str
        Where: a brace range (``x-{000..007}.tar``), a counter (``x-%06d.tar``) or one shard (``x.tar``), on any fsspec
        URL. Folders on the way are made.
    count : int
        How many images, at least 1.
    resolution : int
        Side of an image in pixels.
    channels : int
        3 for RGB, 1 for gray. (WebP has no gray: three equal channels are stored.)
    seed : int
        0 or above.
    extension : {"png", "jpg", "webp"}
        PNG and WebP are lossless; JPEG is of quality 95.
    per_shard : int
        Images in a shard, where ``shards`` has a counter.
    overwrite : bool
        Whether shards that exist may be replaced.
    workers : int, optional
        Processes that draw, at most: 1 draws in this one, None takes one for each CPU. A script that asks for more
        than one must guard its top level with ``if __name__ == "__main__":``, since they are spawned.
    storage_options : mapping, optional
        For fsspec's file system.
    progress : callable, optional
        Called with the number of images drawn since its last call; the numbers add up to ``count``.

    Returns
    -------
    list of str
        The URLs of the shards written.

    Raises
    ------
    ValueError
        Where a number is out of range, the extension is unknown, or ``shards`` names no shards to write.
    FileExistsError
        Where a shard exists and ``overwrite`` is false; nothing is written then.
    """
    look = _Look(resolution, channels, seed, extension)
    _check(look, count, workers)
    layout = lay_out(shards, count, per_shard)
    urls = [url for url, _ in layout]
    if not overwrite:
        refuse_existing(urls, storage_options)
    with closing(_draw(look, count, workers or os.cpu_count() or 1, progress)) as samples:
        for url, indices in layout:
            write_shard(url, islice(samples, len(indices)), storage_options)
    return urls


def _check(look: _Look, count: int, workers: int | None) -> None:
    if look.extension not in _FORMATS:
        raise ValueError(f"images are written as {', '.join(_FORMATS)}, not as {look.extension!r}")
    if count < 1 or look.resolution < 1 or look.seed < 0 or (workers is not None and workers < 1):
        raise ValueError(
            f"count {count}, resolution {look.resolution}, seed {look.seed} and workers {workers} will not do: "
            "the seed is at least 0, the others at least 1"
        )
    if look.channels not in {1, 3}:
        raise ValueError(f"an image has 1 or 3 channels, not {look.channels}")


def _encode(image: npt.NDArray[np.uint8], extension: str) -> bytes:
    name, options = _FORMATS[extension]
    stream = io.BytesIO()
    Image.fromarray(image if image.shape[2] == 3 else image[:, :, 0]).save(stream, name, **options)
    return stream.getvalue()


def _draw(look: _Look, count: int, workers: int, progress: Callable[[int], None] | None) -> Generator[Sample]:
    """Yield all samples in order."""
    size = max(1, min(_IMAGES, _PIXELS // look.resolution**2))
    batches = [range(start, min(start + size, count)) for start in range(0, count, size)]
    workers = min(workers, max(1, len(batches) // _WORTH_A_PROCESS))
    drawn = map(look.batch, batches) if workers == 1 else _draw_in_processes(look, batches, workers)
    for batch, images in zip(batches, drawn, strict=True):
        if progress:
            progress(len(batch))
        for index, image in zip(batch, images, strict=True):
            yield {"__key__": f"{index:09d}", look.extension: image}


def _draw_in_processes(look: _Look, batches: list[range], workers: int) -> Generator[list[bytes]]:
    """Yield the images of each batch in order, a few batches ahead of who writes them."""
    # Spawned, since this process may have threads (a progress bar's, Dask's), which a fork would break.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), signal.signal, _IGNORE_INTERRUPTS)
    ahead: deque[Future[list[bytes]]] = deque()
    try:
        for batch in batches:
            ahead.append(pool.submit(look.batch, batch))
            if len(ahead) > 2 * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    except BrokenProcessPool as error:
        raise RuntimeError(
            f"a drawing process died (of {workers}). In a script, guard the top level with "
            "`if __name__ == '__main__':`; where memory is short, take fewer workers, or 1 to draw in this process"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
