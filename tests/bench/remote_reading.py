"""Shards read by tilecov beside plain fsspec streams, from an S3 store behind a line with latency.

Usage: remote_reading.py [--store moto|ceph] [--latency SECONDS] [--window BYTES] [--mib N] [--shards N] [--rounds N]

Store and line are processes of their own; each answer waits for the latency, and a connection carries at most a window
of bytes in each latency, as TCP does. Both readers take 1 MiB at a time and do nothing with it. MiB a second; medians
and spreads of rounds that take turns.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
import numpy as np

sys.path[:0] = [str(Path(__file__).parents[1] / "servers"), str(Path(__file__).parents[1])]
# ruff: noqa: E402  (the tests' own modules lie there)
from stores import Store, moto

from tilecov.storage.listing import list_shards
from tilecov.storage.streams import ShardStreams

MIB = 1 << 20
LINE = """
import sys
from faultproxy import FaultProxy, Faults
with FaultProxy(int(sys.argv[1])).running() as proxy:
    proxy.faults = Faults(latency=float(sys.argv[2]), window=int(sys.argv[3]))
    print(proxy.port, flush=True)
    sys.stdin.read()
"""


def main() -> None:
    """Print a table of rates and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", choices=("moto", "ceph"), default="moto", help="ceph takes a Docker engine")
    parser.add_argument("--latency", type=float, default=0.02)
    parser.add_argument("--window", type=int, default=1 << 16, help="0 for none (default: 65536, TCP without scaling)")
    parser.add_argument("--mib", type=int, default=16, help="of a shard")
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    data = np.random.default_rng(0).bytes(options.mib * MIB)
    rates: dict[str, list[float]] = {"tilecov": [], "plain fsspec streams": []}
    with tempfile.TemporaryDirectory() as folder, started(options.store, Path(folder)) as store:
        Path(folder, "shards").mkdir()
        for index in range(options.shards):
            Path(folder, "shards", f"{index:03d}.tar").write_bytes(data)
        store.put(Path(folder, "shards"), "bench")
        with line(store.port, options.latency, options.window) as port:
            settings = store.through(port)
            shards = list_shards([f"{store.root}/bench/*.tar"], settings)

            def ours() -> Iterator[bytes]:
                with ShardStreams(shards, settings) as streams:
                    for _ in shards:
                        with streams.open_next() as stream:
                            yield b"".join(iter(lambda: stream.read(MIB), b""))

            def plain() -> Iterator[bytes]:
                for shard in shards:
                    with fsspec.open(shard.url, "rb", **settings) as stream:
                        yield b"".join(iter(lambda: stream.read(MIB), b""))

            for _ in range(options.rounds):
                for name, reader in zip(rates, (ours, plain), strict=True):
                    rates[name].append(options.shards * options.mib / seconds(reader, data))
    line_of = f"{1000 * options.latency:g} ms latency, window {options.window}"
    lines = [f"{options.store}, {options.shards} x {options.mib} MiB, {line_of}, MiB a second"]
    lines += [
        f"{name:20} {statistics.median(found):6.0f}  ({min(found):.0f} to {max(found):.0f})"
        for name, found in rates.items()
    ]
    ratio = statistics.median(ours / plain for ours, plain in zip(*rates.values(), strict=True))
    sys.stdout.write("\n".join([*lines, f"{'ratio':20} {ratio:6.1f}"]) + "\n")


@contextmanager
def started(name: str, folder: Path) -> Iterator[Store]:
    """Run a store."""
    if name == "moto":
        with moto(folder) as store:
            yield store
        return
    from cephstore import ceph
    from engine import any_engine

    with any_engine() as engine, ceph(engine) as store:
        yield store


def seconds(reader: Callable[[], Iterator[bytes]], wanted: bytes) -> float:
    """Return how long ``reader`` takes to give all shards, each of them ``wanted``."""
    begun = time.perf_counter()
    found = list(reader())
    took = time.perf_counter() - begun
    assert all(data == wanted for data in found)
    return took


@contextmanager
def line(upstream: int, latency: float, window: int) -> Iterator[int]:
    """Run the proxy as a process; yield its port."""
    command = [sys.executable, "-c", LINE, str(upstream), str(latency), str(window)]
    folder = Path(__file__).parents[1] / "servers"
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=folder) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline())
        process.communicate(b"")


if __name__ == "__main__":
    main()
