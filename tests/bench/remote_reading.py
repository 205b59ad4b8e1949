"""A shard read by tilecov beside one plain fsspec stream, from an S3 store behind a line with latency.

Usage: remote_reading.py [--store moto|ceph] [--latency SECONDS] [--window BYTES] [--mib N] [--rounds N]

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
from tilecov.storage.streams import open_shard

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
    parser.add_argument("--mib", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    data = np.random.default_rng(0).bytes(options.mib * MIB)
    rates: dict[str, list[float]] = {"tilecov": [], "one fsspec stream": []}
    with tempfile.TemporaryDirectory() as folder, started(options.store, Path(folder)) as store:
        Path(folder, "shards").mkdir()
        Path(folder, "shards", "a.tar").write_bytes(data)
        store.put(Path(folder, "shards"), "bench")
        url = f"{store.root}/bench/a.tar"
        with line(store.port, options.latency, options.window) as port:
            settings = store.through(port)
            (shard,) = list_shards([url], settings)

            def ours() -> bytes:
                with open_shard(shard, settings) as stream:
                    return b"".join(iter(lambda: stream.read(MIB), b""))

            def plain() -> bytes:
                with fsspec.open(url, "rb", **settings) as stream:
                    return b"".join(iter(lambda: stream.read(MIB), b""))

            for _ in range(options.rounds):
                rates["tilecov"].append(options.mib / seconds(ours, data))
                rates["one fsspec stream"].append(options.mib / seconds(plain, data))
    setting = f"{options.store}, {options.mib} MiB, {1000 * options.latency:g} ms latency, window {options.window}"
    lines = [f"{setting}, MiB a second"]
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


def seconds(call: Callable[[], bytes], wanted: bytes) -> float:
    """Return how long ``call`` takes to return ``wanted``."""
    begun = time.perf_counter()
    data = call()
    took = time.perf_counter() - begun
    assert data == wanted
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
