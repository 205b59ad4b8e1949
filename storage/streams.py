"""Shards as byte streams."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from .listing import Shard
from .resuming import ResumingStream


@contextmanager
def open_shard(shard: Shard, options: Mapping[str, Any]) -> Iterator[BinaryIO]:
    """Open a shard for reading from its start to its end."""
    fs, path = fsspec.core.url_to_fs(shard.address or shard.url, **options)
    if isinstance(fs, LocalFileSystem):
        with open(path, "rb") as stream:  # noqa: PTH123  (what fsspec would do, without its layers)
            yield stream
        return
    with ResumingStream(fs, path, shard.size) as resuming:
        yield cast("BinaryIO", resuming)
