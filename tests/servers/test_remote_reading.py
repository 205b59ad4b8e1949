"""Shards of an S3 store, read through faults: the same bytes, or an error in bounded time."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import fsspec
import numpy as np
import pytest
import s3fs
from faultproxy import FaultProxy, Faults
from stores import Store, s3_proxy, s3_store  # noqa: F401  (the fixtures `proxy` and `s3`)

from tilecov.storage import readahead, retries
from tilecov.storage.listing import Shard, list_shards
from tilecov.storage.readahead import RANGE_BYTES, WINDOW_BYTES
from tilecov.storage.streams import open_shard
from tilecov.storage.versions import ReplacedError

SIZE = 9 * (1 << 20) + 4321
MIB = 1 << 20

Put = Callable[..., Shard]


def content(size: int = SIZE, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(size)


@pytest.fixture(name="put")
def putting(s3: Store, request: pytest.FixtureRequest) -> Put:
    """Return a function that stores bytes and lists them as a shard."""

    def put(data: bytes, name: str = "a.tar") -> Shard:
        url = f"{s3.root}/{request.node.name.replace('[', '-').rstrip(']')}/{name}"
        fs, path = fsspec.core.url_to_fs(url, **s3.options)
        fs.pipe_file(path, data)
        fs.invalidate_cache()
        return list_shards([url], s3.options)[0]

    return put


def read(shard: Shard, options: dict[str, Any], piece: int = MIB) -> bytes:
    with open_shard(shard, options) as stream:
        return b"".join(iter(lambda: stream.read(piece), b""))


def test_bytes_come_in_order_whatever_the_pieces(s3: Store, put: Put) -> None:
    data = content()
    shard = put(data)
    for piece in (100_001, MIB, 3 * MIB, -1):
        assert read(shard, s3.options, piece) == data


def test_seeking(s3: Store, put: Put) -> None:
    data = content()
    with open_shard(put(data), s3.options) as stream:
        for place in (0, 5 * MIB, 5 * MIB + 7, 17, SIZE - 5, SIZE, 2 * MIB):
            assert stream.seek(place) == place == stream.tell()
            assert stream.read(11) == data[place : place + 11]
        assert stream.seek(-3, 2) == SIZE - 3
        assert stream.read() == data[-3:]
        with pytest.raises(OSError, match="before its first"):
            stream.seek(-1)
        assert stream.read(0) == b""


def test_a_short_look_asks_for_one_range(s3: Store, put: Put, proxy: FaultProxy) -> None:
    shard = put(content())
    with open_shard(shard, s3.through(proxy.port)) as stream:
        stream.read(600)
    assert len(proxy.requests) == 1


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param(Faults(busy=0.2), id="busy"),
        pytest.param(Faults(reset=0.2), id="resets"),
        pytest.param(Faults(cut=0.4), id="cut"),
        pytest.param(Faults(busy=0.2, reset=0.1, cut=0.2, latency=0.005), id="all"),
        pytest.param(Faults(rate=4e6), id="slow"),
    ],
)
def test_faults_change_no_byte(s3: Store, put: Put, proxy: FaultProxy, faults: Faults) -> None:
    data = content()
    shard = put(data)
    proxy.faults = faults
    told: list[retries.Retry] = []
    with retries.telling(told.append):
        assert read(shard, s3.through(proxy.port)) == data
    assert told or not faults.cut


def test_a_dark_line_is_waited_for(s3: Store, put: Put, proxy: FaultProxy) -> None:
    data = content()
    shard = put(data)
    with open_shard(shard, s3.through(proxy.port)) as stream:
        parts = [stream.read(MIB)]
        proxy.go_dark(3)
        while part := stream.read(MIB):
            parts.append(part)
    assert b"".join(parts) == data


@pytest.mark.parametrize("when", ["before", "amid"])
def test_a_line_that_stays_dark_is_given_up(
    s3: Store, put: Put, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    shard = put(content(40 * MIB))  # more than is read ahead
    said = rf"s3://bucket/.*a\.tar came too slowly: \d+ of {40 * MIB} bytes after ([2-9]|\d\d+) s"
    begun = time.monotonic()
    with open_shard(shard, s3.through(proxy.port)) as stream:
        if when == "amid":
            stream.read(MIB)
        monkeypatch.setattr(readahead, "QUIET_SECONDS", 2.0)  # a busy machine may take longer for what is answered
        proxy.go_dark(1000)
        with pytest.raises(TimeoutError, match=said):
            stream.read()
    assert time.monotonic() - begun < 120  # and not the 1,000 for which it is dark
    proxy.go_dark(0)


def test_a_trickle_is_given_up(s3: Store, put: Put, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some bytes come all the time, but the shard would take for ever."""
    monkeypatch.setattr(readahead, "QUIET_SECONDS", 1.5)
    monkeypatch.setattr(readahead, "SLOWEST_RATE", 1e9)
    shard = put(content())
    proxy.faults = Faults(rate=2e5)
    with open_shard(shard, s3.through(proxy.port)) as stream, pytest.raises(TimeoutError, match="too slowly"):
        stream.read()


def test_a_store_that_refuses_for_good_is_given_up(
    s3: Store, put: Put, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(retries, "LONGEST_PAUSE", 0.001)
    shard = put(content())
    proxy.faults = Faults(reset=1)
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)  # its own patience, beside ours and botocore's
    options = s3.through(proxy.port) | {"config_kwargs": {"retries": {"total_max_attempts": 1}}}
    with (
        open_shard(shard, options) as stream,
        pytest.raises(ConnectionError, match="gave nothing in 10 tries at byte 0"),
    ):
        stream.read()


@pytest.mark.parametrize("change", ["bytes", "longer", "shorter", "gone"])
@pytest.mark.parametrize("when", ["before", "amid"])
def test_a_replaced_shard_is_an_error_and_not_a_mixture(s3: Store, put: Put, change: str, when: str) -> None:
    data = content(40 * MIB) if when == "amid" else content()
    size = len(data)
    shard = put(data)
    with open_shard(shard, s3.options) as stream:
        if when == "amid":
            assert stream.read(MIB) == data[:MIB]
        if change == "gone":
            fs, path = fsspec.core.url_to_fs(shard.url, **s3.options)
            fs.rm_file(path)
        else:
            put(content({"bytes": size, "longer": size + 5, "shorter": size - 5}[change], seed=1))
        kind = FileNotFoundError if change == "gone" else ReplacedError
        with pytest.raises(kind, match=r"a\.tar"):
            stream.read()


def test_a_version_without_a_tag_is_pinned_by_the_first_answer(s3: Store, put: Put) -> None:
    shard = replace(put(content(40 * MIB)), tag="")
    with open_shard(shard, s3.options) as stream:
        stream.read(MIB)
        put(content(40 * MIB, seed=1))
        with pytest.raises(ReplacedError, match="leave the shards as they are during a run"):
            stream.read()


def test_memory_is_bounded_by_the_window(s3: Store, put: Put) -> None:
    """A reader that waits is not overrun: the store is asked for no more than the window."""
    shard = put(content(64 * MIB))
    with open_shard(shard, s3.options) as stream:
        stream.read(20 * MIB)
        time.sleep(0.5)
        ahead = stream._ahead  # type: ignore[attr-defined]  # what is held is no part of a file's interface
        assert sum(len(held.data) for held in ahead._ranges) <= WINDOW_BYTES
        assert len(ahead._ranges) == WINDOW_BYTES // RANGE_BYTES
