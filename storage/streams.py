"""Shards as byte streams."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

from fsspec.implementations.local import LocalFileSystem

from .filesystems import file_system
from .listing import Shard
from .resuming import ResumingStream
from .versions import ReplacedError, tag_of


@contextmanager
def open_shard(shard: Shard, options: Mapping[str, Any], stopped: threading.Event | None = None) -> Iterator[BinaryIO]:
    """Open a shard for reading from its start to its end.

    Parameters
    ----------
    shard : Shard
    options : mapping
        For fsspec.
    stopped : threading.Event, optional
        Where another thread sets it, nothing is waited for any more.

    Raises
    ------
    InterruptedError
        While reading, where ``stopped`` was set.
    ReplacedError
        While reading or at the end, where the shard is not the version listed.
    """
    fs, path = file_system(shard.address or shard.url, options)
    if isinstance(fs, LocalFileSystem):
        with open(path, "rb") as stream:  # noqa: PTH123  (what fsspec would do, without its layers)
            yield stream
        _check_local(fs, path, shard)
        return
    with ResumingStream(fs, path, shard.size, shard.tag, stopped=stopped) as resuming:
        yield cast("BinaryIO", resuming)
        resuming.check()  # a tar may end before its file does


def _check_local(fs: LocalFileSystem, path: str, shard: Shard) -> None:
    """Raise ReplacedError where a local file was changed since it was listed; while it is read nobody locks it."""
    info = fs.info(path)
    if (info["size"], tag_of(info)) != (shard.size, shard.tag):
        raise ReplacedError(
            f"{shard.url} was changed while it was read: {shard.size} bytes, version {shard.tag} when it was listed, "
            f"{info['size']} bytes, version {tag_of(info)} now; run again when nothing writes to it"
        )
