"""Checksummed: the CRC-32 of a whole stream, however it is read, and none where bytes were passed over."""

import io
import os
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from tilecov.storage.checksums import Checksummed
from tilecov.storage.listing import list_shards
from tilecov.storage.streams import open_shard
from tilecov.storage.versions import ReplacedError


@pytest.mark.parametrize("reads", [[], [1], [7, 0, 3], [10_000], [-1]])
def test_checksum_of_all_bytes_also_those_not_asked_for(reads: list[int]) -> None:
    data = bytes(range(256)) * 11
    stream = Checksummed(io.BytesIO(data))
    assert b"".join(map(stream.read, reads)) == data[: sum(reads) if -1 not in reads else None]
    assert stream.crc32() == zlib.crc32(data)


def test_none_after_a_seek() -> None:
    stream = Checksummed(io.BytesIO(bytes(100)))
    assert stream.seekable()
    assert stream.seek(10, io.SEEK_CUR) == stream.tell() == 10
    assert stream.crc32() is None


def put_another(path: Path) -> None:
    other = path.with_name("b.tar")
    other.write_bytes(path.read_bytes())
    os.utime(other, (2, 2))
    other.replace(path)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda path: path.write_bytes(bytes(1004)), id="longer"),
        pytest.param(lambda path: os.utime(path, (1, 1)), id="touched"),
        pytest.param(put_another, id="replaced"),
    ],
)
def test_a_local_shard_changed_while_it_is_read_is_refused(tmp_path: Path, change: Callable[[Path], None]) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(bytes(1000))
    (shard,) = list_shards(str(path))
    reading = open_shard(shard, {})
    reading.__enter__()
    change(path)
    with pytest.raises(ReplacedError, match=r"a\.tar was changed while it was read: 1000 bytes"):
        reading.__exit__(None, None, None)
