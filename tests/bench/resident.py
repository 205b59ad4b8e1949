"""Resident statistics beside bare matrix products and the reference's loop, in one process, turn by turn.

Usage: resident.py [--shards PATTERN] [--resolution R] [--copies N] [--rounds N]

Ours reads, decodes and sums all rows and writes the partial. Bare products are those of the same tiles, of float32
blocks that lie ready in memory. The reference's loop is ``cov += centred.T @ centred`` over batches of 256 ready rows.
Rates are rows a second; medians and spreads of several rounds, since the machine may be busy.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from tilecov.pipeline.costs import tile_of
from tilecov.pipeline.rows import RowSpec
from tilecov.pipeline.tasks import UnitTask, read_unit
from tilecov.storage.listing import Shard, list_shards
from tilecov.storage.tiling import Tiling

BLOCK = 4096
REFERENCE_BATCH = 256


def main() -> None:
    """Print a table of rates and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", default="../shared/data/twemoji64/*.tar")
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--copies", type=int, default=10, help="read every shard this often: 10 make a unit as planned")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    shards = list_shards([options.shards]) * options.copies
    size = 3 * options.resolution**2
    rates: dict[str, list[float]] = {"tilecov": [], "bare products": [], "reference loop": []}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.rounds + 1):
            found = {
                "tilecov": ours(shards, options.resolution, f"{folder}/{number}"),
                "bare products": bare(size),
                "reference loop": reference(size),
            }
            if number:  # the first round warms up
                for name, rate in found.items():
                    rates[name].append(rate)
    show(rates, size)


def ours(shards: list[Shard], resolution: int, folder: str) -> float:
    """Return the rows a second of a unit's task: read, decode, sum, write the partial."""
    spec = RowSpec(3, resolution, ("png", "jpg", "webp", "npy"), "uint8", 2**28)
    common = {"run": folder, "stage": "moments", "name": "0", "spec": spec, "tile": tile_of(spec.size), "device": "cpu"}
    task = UnitTask(**common, shards=tuple(shards), block_rows=BLOCK, threads=2, skip=False)
    started = time.perf_counter()
    record = read_unit(task)
    seconds = time.perf_counter() - started
    for path in sorted(Path(folder).rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    return float(sum(part["count"] for part in record["parts"])) / seconds


def bare(size: int) -> float:
    """Return the rows a second of float32 products of the upper tiles."""
    rows = torch.rand((BLOCK, size))
    tiling = Tiling(size, tile_of(size))

    def products() -> None:
        for i, j in tiling.upper():
            torch.mm(rows[:, tiling.span(i)].T, rows[:, tiling.span(j)])

    return rate_of(products, BLOCK)


def reference(size: int) -> float:
    """Return the rows a second of the reference's accumulation."""
    rows = torch.rand((REFERENCE_BATCH, size))
    covariance, mean = torch.zeros((size, size)), rows.mean(dim=0)

    def batch() -> None:
        nonlocal covariance
        centred = rows - mean
        covariance += centred.T @ centred

    return rate_of(batch, REFERENCE_BATCH)


def rate_of(call: Callable[[], None], rows: int, seconds: float = 2.0) -> float:
    """Return rows a second of a call on ``rows`` rows, repeated for about ``seconds``."""
    started, calls = time.perf_counter(), 0
    while time.perf_counter() - started < seconds or not calls:
        call()
        calls += 1
    return calls * rows / (time.perf_counter() - started)


def show(rates: dict[str, list[float]], size: int) -> None:
    """Print medians, spreads and the ratios of medians."""
    lines = [f"d = {size:,}, {torch.get_num_threads()} threads, rows a second"]
    for name, found in rates.items():
        ratio = statistics.median(ours / other for ours, other in zip(rates["tilecov"], found, strict=True))
        middle = statistics.median(found)
        lines.append(f"{name:<15} {middle:9,.0f}  ({min(found):,.0f} to {max(found):,.0f})  tilecov is {ratio:.2f} x")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
