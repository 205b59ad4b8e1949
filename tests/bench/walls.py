"""Where the time of a whole job goes, stage by stage, beside what no program that does the same could go below.

Usage: walls.py [--data FOLDER] [--out FILE] [--rounds N] [--quick]

Three jobs: 28 x 28 gray, 32 x 32 and 64 x 64 RGB, full rank. A stage's wall is made of what was measured here, in the
same minute, by itself, each by what is quickest on this processor: decoding pictures that lie in memory on all cores,
bare products of bytes for the upper triangle alone, bare float32 products, LAPACK alone on the job's own covariance,
and plain files of as many bytes, not flushed: a job flushes them while its next stage computes.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contests import Scale
from here import machine

from tilecov.pipeline import Job, run
from tilecov.pipeline.blas import quick_products
from tilecov.pipeline.costs import upper_entries
from tilecov.pipeline.decoders import ANY_PICTURE, decode_batch
from tilecov.pipeline.device import kernel_of, rate_of
from tilecov.pipeline.machine import cores, sliced_rate
from tilecov.pipeline.methods import QUICK as FLOAT64_UP_TO
from tilecov.pipeline.rows import RowSpec
from tilecov.pipeline.shards import Sample, samples
from tilecov.pipeline.svd.lapack import eigh_in_place
from tilecov.storage.objects import Folder
from tilecov.storage.runs import STATISTICS, RunFolder
from tilecov.storage.tiles import TileMatrix, open_group

TIMES = 3
"""A wall is measured so often; medians count."""
SIZES = ((28, 1, 60_000), (32, 3, 50_000), (64, 3, 15_000))
QUICK = ((8, 1, 200),)
METHOD = """\
`python tests/bench/walls.py` made this page. Seconds are medians over the runs, "in all" one by itself. A wall is what
the work of a stage takes alone, by what is quickest on this machine, measured after the runs. docs/decisions.md says
why there is something left above them.
"""
PICTURES = 4_000
"""Pictures decoded from memory to measure the wall of decoding."""


@dataclass(frozen=True)
class Wall:
    """What a stage cannot go below.

    Parameters
    ----------
    seconds : float
    made_of : str
    """

    seconds: float
    made_of: str


def seconds_of(work: Callable[[], Any], times: int = TIMES) -> float:
    """Return the median time of a few calls."""
    found = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return statistics.median(found)


def decode_rate(shards: list[str], side: int, channels: int) -> float:
    """Return pictures a second, decoded by a thread for each core from what lies in memory."""
    spec, some = RowSpec(channels, side, ("png",), "uint8", 1 << 28), []
    for shard in shards:
        with Path(shard).open("rb") as stream:
            some += [item for item in samples(stream, ("png",), max_bytes=1 << 28) if isinstance(item, Sample)]
        if len(some) >= PICTURES:
            break
    rows, threads = np.zeros((cores(), len(some), spec.size), np.uint8), ThreadPoolExecutor(cores())

    def decode() -> None:
        for found in threads.map(lambda own: decode_batch(spec, ANY_PICTURE, some, own), rows):
            if found.failed:
                raise RuntimeError(f"not every picture was decoded: {found.failed[0]}")

    with threads:
        decode()  # where they are written is touched, and threads are there
        return rows.shape[0] * len(some) / seconds_of(decode)


def write_rate(folder: Path, size: int = 1 << 28) -> float:
    """Return bytes a second of plain files of 4 MiB, one after the other."""
    data = np.random.default_rng(0).bytes(1 << 22)

    def write() -> None:
        for number in range(size >> 22):
            with (folder / f"{number}.bin").open("wb") as stream:
                stream.write(data)

    rate = size / seconds_of(write)
    for number in range(size >> 22):
        (folder / f"{number}.bin").unlink()
    return rate


def walls(side: int, channels: int, count: int, shards: list[str], out: Path, method: str) -> dict[str, Wall]:
    """Measure the wall of each stage of the run in ``out``."""
    size = channels * side**2
    entries, disk = upper_entries(size), write_rate(out)
    int8 = rate_of.__wrapped__(kernel_of("cpu"), 4096, 1024)  # anew, as the others
    rate, where = product_rate()
    decoding = count / decode_rate(shards, side, channels)
    products = count * size * (size + 1) / int8

    def written(size_in_bytes: float) -> float:
        return size_in_bytes / disk

    return {
        "moments": Wall(
            decoding + products + written(4 * entries),
            f"decoding {decoding:.2f}, products {products:.2f}, files {written(4 * entries):.2f}",
        ),
        "merge": Wall(written(8 * entries), "files"),
        "statistics": Wall(written(4 * size**2), "files"),
        **(lapack_wall(out, disk) if method == "direct" else blocked_walls(size, disk, rate)),
        "artifacts": Wall(written(8 * size**2), "files"),
        "certificate": Wall(3 * size**3 / rate, f"3 d^3 operations {where}"),
    }


def product_rate(size: int = 2048) -> tuple[float, str]:
    """Return operations a second of float32 products, by int8 matrix units where they are quicker; and by what."""
    factor, found = torch.randn((size, size)), torch.zeros((size, size))
    with quick_products(torch.device("cpu")) as add_product:
        float32 = 2 * size**3 / seconds_of(lambda: add_product(found, factor, factor, keep=0))
    return max((float32, "in float32"), (sliced_rate.__wrapped__(), "on int8 matrix units"))


def lapack_wall(out: Path, disk: float) -> dict[str, Wall]:
    """Return the wall of the direct method: LAPACK alone, on the covariance that the run has found."""
    group = open_group(RunFolder(Folder(str(out))).folder(STATISTICS))
    whole = torch.from_numpy(TileMatrix.open(group, "covariance").read_all())
    if len(whole) <= FLOAT64_UP_TO:
        whole = whole.double()
    lapack, files = seconds_of(lambda: eigh_in_place(whole.clone().T)), 4 * len(whole) ** 2 / disk
    return {"spectrum": Wall(lapack + files, f"LAPACK {lapack:.2f}, files {files:.2f}")}


def blocked_walls(size: int, disk: float, rate: float) -> dict[str, Wall]:
    """Return the walls of the blocked method: the operations that no way of doing them saves, and its files.

    What divide and conquer multiplies depends on the data, and is not counted.
    """
    half, cube = 2 * size**2 / disk, size**3 / rate
    return {
        "band": Wall(4 * cube / 3 + half, f"4/3 d^3 operations {4 * cube / 3:.2f}, files {half:.2f}"),
        "tridiagonal": Wall(half, "files"),
        "vectors": Wall(4 * cube + 2 * half, f"two times 2 d^3 operations {4 * cube:.2f}, files {2 * half:.2f}"),
    }


def profile(side: int, channels: int, count: int, scale: Scale, rounds: int) -> str:
    """Return the table of one job."""
    shards = scale.shards(count, side, channels)
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(dir=scale.data) as folder:
        out = Path(folder) / "run"
        for _ in range(1 if side > 32 else rounds):
            shutil.rmtree(out, ignore_errors=True)
            started = time.perf_counter()
            manifest = run(Job(shards=tuple(shards), resolution=side, channels=channels, out=str(out)))
            whole = time.perf_counter() - started
            stages = {name: stage["seconds"] for name, stage in manifest["stages"].items()}
            stages["planning and report"] = whole - sum(stages.values())
            for name, seconds in {**stages, "in all": whole}.items():
                found.setdefault(name, []).append(seconds)
        known = walls(side, channels, count, shards, out, manifest["plan"]["method"])
    lines = [
        f"## {count:,} images of {side} x {side} x {channels}, full rank\n",
        "| stage | seconds | wall | of which |\n| --- | ---: | ---: | --- |",
    ]
    total = sum(wall.seconds for wall in known.values())
    for name, seconds in found.items():
        wall = known.get(name, Wall(total if name == "in all" else 0.0, ""))
        lines.append(f"| {name} | {statistics.median(seconds):.2f} | {wall.seconds:.2f} | {wall.made_of} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("bench/data"), help="where shards are made and kept")
    parser.add_argument("--out", type=Path, help="a file for the page")
    parser.add_argument("--rounds", type=int, default=3, help="of each job but the largest, which takes minutes")
    parser.add_argument("--quick", action="store_true", help="one tiny job: shows that all of it runs")
    options = parser.parse_args()
    options.data.mkdir(parents=True, exist_ok=True)
    scale = Scale(options.data.resolve(), options.quick)
    run_of = [profile(*size, scale, options.rounds) for size in (QUICK if options.quick else SIZES)]
    page = f"# Whole jobs and their walls\n\n{machine()}\n\n{METHOD}\n" + "\n".join(run_of)
    sys.stdout.write(page)
    if options.out:
        options.out.write_text(page)


if __name__ == "__main__":
    main()
