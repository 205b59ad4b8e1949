"""Shards of web servers: with ranges (moto serves its objects so) and without (Python's own server)."""

import sys
from pathlib import Path

import fsspec
import numpy as np
import pytest
from faultproxy import FaultProxy, Faults
from stores import Store, free_port, process, s3_proxy, s3_store, wait_for  # noqa: F401  (the fixtures `proxy` and `s3`)

from tilecov.storage.listing import list_shards
from tilecov.storage.sources import HttpSource, Sequential
from tilecov.storage.streams import open_shard
from tilecov.storage.versions import ReplacedError

MIB = 1 << 20
DATA = np.random.default_rng(0).bytes(5 * MIB + 321)


def put(store: Store, name: str, data: bytes) -> None:
    fs = fsspec.filesystem("s3", **store.options)
    fs.call_s3("put_object", Bucket="bucket", Key=name, Body=data, ACL="public-read")


@pytest.mark.parametrize("faults", [Faults(), Faults(busy=0.2, reset=0.1, cut=0.2)], ids=["calm", "faults"])
def test_ranges_of_a_web_server(s3: Store, proxy: FaultProxy, faults: Faults) -> None:
    put(s3, "web.tar", DATA)
    (shard,) = list_shards([f"{proxy.url}/bucket/web.tar"])
    assert shard.size == len(DATA)
    proxy.faults = faults
    with open_shard(shard, {}) as stream:
        assert b"".join(iter(lambda: stream.read(MIB), b"")) == DATA
        assert stream.seek(2 * MIB) == 2 * MIB
        assert stream.read(9) == DATA[2 * MIB : 2 * MIB + 9]
        assert type(stream._ahead.source) is HttpSource  # type: ignore[attr-defined]  # no part of a file's interface


@pytest.mark.parametrize("length", [len(DATA), len(DATA) - 5, len(DATA) + 5])
def test_a_file_replaced_on_a_web_server(s3: Store, proxy: FaultProxy, length: int) -> None:
    put(s3, "web.tar", DATA)
    (shard,) = list_shards([f"{proxy.url}/bucket/web.tar"])
    with open_shard(shard, {}) as stream:
        assert stream.read(100) == DATA[:100]
        put(s3, "web.tar", bytes(length))
        with pytest.raises(ReplacedError, match=r"web\.tar was replaced while it was read"):
            stream.read()


def test_a_web_server_without_ranges(tmp_path: Path) -> None:
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "a.tar").write_bytes(DATA)
    port, log = free_port(), tmp_path / "log"
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(folder)]
    with process(command, log) as server:
        wait_for(port, server, log)
        (shard,) = list_shards([f"http://127.0.0.1:{port}/a.tar"])
        assert (shard.size, bool(shard.tag)) == (len(DATA), True)
        with open_shard(shard, {}) as stream:
            assert b"".join(iter(lambda: stream.read(MIB), b"")) == DATA
            stream.seek(3)
            assert stream.read(5) == DATA[3:8]
            assert type(stream._ahead.source) is Sequential  # type: ignore[attr-defined]  # no part of its interface
