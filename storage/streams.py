"""Shards as byte streams."""

import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO, Self, cast

from fsspec.implementations.local import LocalFileSystem

from .filesystems import file_system
from .listing import Shard
from .readahead import RANGES, Window
from .resuming import ResumingStream
from .versions import ReplacedError, tag_of


@contextmanager
def open_shard(shard: Shard, options: Mapping[str, Any]) -> Iterator[BinaryIO]:
    """Open a shard for reading from its start to its end.

    Raises
    ------
    ReplacedError
        While reading or at the end, where the shard is not the version listed.
    """
    with ShardStreams([shard], options) as streams, streams.open_next() as stream:
        yield stream


class ShardStreams:
    """Opens shards one after another; remote ones are asked for while the last bytes of those before are used.

    One window bounds what is held of all of them, so that small shards come as fast as large ones. A context manager
    that gives up what was asked for; one thread uses it.

    Parameters
    ----------
    shards : sequence of Shard
        In the order in which they will be read.
    options : mapping
        For fsspec.
    stopped : threading.Event, optional
        Where another thread sets it, nothing is waited for any more: InterruptedError while reading.
    """

    def __init__(
        self, shards: Sequence[Shard], options: Mapping[str, Any], stopped: threading.Event | None = None
    ) -> None:
        self._left, self._options, self._stopped = deque(shards), options, stopped
        self._window = Window()
        self._begun: deque[ResumingStream] = deque()  # of the first shards that are left

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for stream in self._begun:
            stream.close()

    @contextmanager
    def open_next(self) -> Iterator[BinaryIO]:
        """Open the next shard for reading from its start to its end.

        Raises
        ------
        ReplacedError
            While reading or at the end, where the shard is not the version listed.
        """
        shard = self._left.popleft()
        fs, path = file_system(shard.address or shard.url, self._options)
        if isinstance(fs, LocalFileSystem):
            with open(path, "rb") as stream:  # noqa: PTH123  (what fsspec would do, without its layers)
                yield stream
            _check_local(fs, path, shard)
            return
        with self._begun.popleft() if self._begun else self._make(shard, fs, path) as resuming:
            resuming.when_asked_for = self._begin_others
            yield cast("BinaryIO", resuming)
            resuming.check()  # a tar may end before its file does

    def _make(self, shard: Shard, fs: Any, path: str) -> ResumingStream:
        return ResumingStream(fs, path, shard.size, shard.tag, stopped=self._stopped, window=self._window)

    def _begin_others(self) -> None:
        """Have the next shards opened, and ask for their first bytes in their order as far as there is room."""
        while len(self._begun) < min(RANGES, len(self._left)):
            shard = self._left[len(self._begun)]
            fs, path = file_system(shard.address or shard.url, self._options)
            if isinstance(fs, LocalFileSystem):
                break
            self._begun.append(self._make(shard, fs, path))
            self._begun[-1].begin()
        for stream in self._begun:
            if not stream.fill():
                return


def _check_local(fs: LocalFileSystem, path: str, shard: Shard) -> None:
    """Raise ReplacedError where a local file was changed since it was listed; while it is read nobody locks it."""
    info = fs.info(path)
    if (info["size"], tag_of(info)) != (shard.size, shard.tag):
        raise ReplacedError(
            f"{shard.url} was changed while it was read: {shard.size} bytes, version {shard.tag} when it was listed, "
            f"{info['size']} bytes, version {tag_of(info)} now; run again when nothing writes to it"
        )
