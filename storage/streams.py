"""Shards as byte streams."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

from fsspec.implementations.local import LocalFileSystem

from .filesystems import file_system
from .listing import Shard
from .resuming import ResumingStream


@contextmanager
def open_shard(shard: Shard, options: Mapping[str, Any]) -> Iterator[BinaryIO]:
    """Open a shard for reading from its start to its end.

    Raises
    ------
    ReplacedError
        While reading or at the end, where a shard of an object store is not the version listed.
    """
    fs, path = file_system(shard.address or shard.url, options)
    if isinstance(fs, LocalFileSystem):
        with open(path, "rb") as stream:  # noqa: PTH123  (what fsspec would do, without its layers)
            yield stream
        return
    with ResumingStream(fs, path, shard.size, shard.tag) as resuming:
        yield cast("BinaryIO", resuming)
        resuming.check()  # a tar may end before its file does
