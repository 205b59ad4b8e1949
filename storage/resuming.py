"""A remote file as a byte stream that survives faults, reads ahead and never mixes versions."""

import errno
import io
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

from .answers import Answer
from .readahead import ReadAhead, Window
from .redact import redact
from .retries import one_line, retry
from .sources import Source, open_source, shown_url


class ResumingStream(io.RawIOBase):
    """Reads a remote file in ranges, several at a time; what a failure left out is asked for anew.

    Parameters
    ----------
    fs : fsspec file system
    path : str
    size : int
        Bytes that the file was listed with.
    tag : str, optional
        Version that it was listed with (`Shard.tag`); without one, the version found when reading begins.
    fresh : bool
        Whether it was listed just now, so that the store need not be asked again before reading.
    stopped : threading.Event, optional
        Where another thread sets it, nothing is waited for any more: InterruptedError.
    window : Window, optional
        Shared with the files that are read before and after this one.

    Raises
    ------
    ReplacedError
        While reading, where the file is not the one listed. It is not tried again.
    TimeoutError, ConnectionError
        While reading, where the store gives nothing, or less than 64 KiB a second.
    """

    def __init__(
        self,
        fs: Any,
        path: str,
        size: int,
        tag: str = "",
        *,
        fresh: bool = False,
        stopped: threading.Event | None = None,
        window: Window | None = None,
    ) -> None:
        self._place, self._stopped, self._window = (fs, path, size, tag), stopped, window
        self._fresh = fresh
        self._path, self._size = path, size
        self._position = 0
        self._ahead: ReadAhead | None = None
        self._opening: Answer[Source] | None = None
        self._unchecked = False
        self.when_asked_for: Callable[[], None] | None = None
        """Called after reading, where all bytes up to the end are there or on their way."""

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the place of the next byte."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to another byte; what was read ahead is kept where it holds that byte."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise OSError(errno.EINVAL, f"byte {base + offset} of {redact(self._path)} is before its first")
        self._position = base + offset
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        """Return up to ``size`` bytes, fewer only at the end."""
        if self.closed:
            raise ValueError(f"{redact(self._path)} is closed")
        wanted = max(0, self._size - self._position)
        if size is not None and size >= 0:
            wanted = min(wanted, size)
        if not wanted:
            return b""
        end = self._position + wanted
        with self._naming():
            ahead = self._ahead = self._ahead or self._opened(whole=self._opening is not None)
            data = ahead.read(self._position, end)
            self._unchecked = True
            if end == self._size:
                self.check()
        self._position = end
        if self.when_asked_for is not None and ahead.is_asked_for:
            self.when_asked_for()
        return data

    def begin(self) -> None:
        """Have the file opened, of which all will be read; waits for nothing. What fails is raised by ``read``."""
        self._opening = self._opening or Answer(partial(open_source, *self._place, fresh=self._fresh))

    def fill(self) -> bool:
        """Ask for the first bytes if the file is open; return whether every byte is there or on its way."""
        if self._ahead is None and self._opening is not None and self._opening.succeeded:
            self._ahead = self._opened(whole=True)
        if self._ahead is None:
            return False
        self._ahead.fill()
        return self._ahead.is_asked_for

    def _opened(self, *, whole: bool) -> ReadAhead:
        self.begin()
        source = cast("Answer[Source]", self._opening).wait(self._stopped)
        return ReadAhead(source, self._stopped, self._window, whole=whole)

    def check(self) -> None:
        """Make sure that all bytes given so far are of one version; ReplacedError where they may not be."""
        if self._unchecked and self._ahead is not None:
            with self._naming():
                Answer(partial(retry, self._ahead.source.check_end)).wait(self._stopped)
            self._unchecked = False

    @contextmanager
    def _naming(self) -> Iterator[None]:
        """Name the file in errors of stores that do not."""
        try:
            yield
        except OSError as error:
            url = shown_url(self._place[0], self._path)
            if url in str(error) or type(error).__module__ != "builtins":
                raise
            raise type(error)(f"{url}: {one_line(error)}") from error

    def close(self) -> None:
        """Give up what was asked for."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            ahead.stop()
            ahead.source.close()
        elif self._opening is not None and self._opening.succeeded:
            self._opening.wait().close()
        super().close()
