"""Ranges of a remote file, read ahead on threads in a bounded window."""

import threading
import time
from collections import deque
from collections.abc import Iterator

from . import retries
from .answers import LOOK, check_wanted
from .sources import Source
from .versions import ReplacedError

RANGE_BYTES = 2 << 20
"""Bytes of a range: long against the latency of a store."""
FIRST_BYTES = 1 << 18
"""Bytes of the range that reading begins with."""
WINDOW_BYTES = 16 << 20
"""Bytes that a file holds at most, those on their way included."""
RANGES = WINDOW_BYTES // RANGE_BYTES
"""The same in ranges."""
QUIET_SECONDS = 60.0
"""A file that gives no byte for so long while some are waited for is given up."""
SLOWEST_RATE = 1 << 16
"""Bytes a second; a file that is waited for longer than it takes at this rate, and QUIET_SECONDS, is given up."""
_FEWEST = 1 << 16  # bytes that are asked for after failures


class Window:
    """How many ranges may be held or on their way, of all files that one thread reads one after another."""

    def __init__(self) -> None:
        self.left = RANGES


class ReadAhead:
    """The bytes of a source, the next ones on their way while some are used.

    Reading begins with one short range, so that a short look reads little; who reads on gets the whole window.

    Parameters
    ----------
    source : Source
    stopped : threading.Event, optional
        Where another thread sets it, nothing is waited for any more.
    window : Window, optional
        Shared with other files; the one that is read may have one range more.
    whole : bool
        Whether all of it will be read, so that reading begins with the whole window.
    """

    def __init__(
        self,
        source: Source,
        stopped: threading.Event | None = None,
        window: Window | None = None,
        *,
        whole: bool = False,
    ) -> None:
        self.source, self.stopped, self._window = source, stopped or threading.Event(), window or Window()
        self.ask = RANGE_BYTES
        self.moved = threading.Condition()
        self.last_byte = 0.0
        self._ranges: deque[_Range] = deque()
        self._next = 0
        self._depth = self._deepest if whole else 1
        self._waited = 0.0

    @property
    def _deepest(self) -> int:
        return min(self.source.readers, RANGES)

    @property
    def is_asked_for(self) -> bool:
        """Whether every byte up to the end is there or on its way."""
        return self._next >= self.source.size

    def read(self, start: int, end: int) -> bytes:
        """Return the bytes from ``start`` to ``end``; those before ``start`` are let go.

        Raises
        ------
        TimeoutError, ConnectionError
            Where the store gives nothing any more.
        ReplacedError
            Where the file is not the one listed.
        InterruptedError
            Where ``stopped`` was set.
        """
        held = self._ranges[0].start if self._ranges else self._next
        if not held <= start <= self._next:
            self.stop()
            self._next = start
        return b"".join(self._pieces(start, end))

    def _pieces(self, start: int, end: int) -> Iterator[memoryview]:
        while start < end:
            if not self._ranges:
                self._ask()
            self.fill()
            first = self._ranges[0]
            if first.end <= start:
                self._ranges.popleft()
                self._window.left += 1
                self._depth = self._deepest
                continue
            self._wait(first)
            piece = memoryview(first.data)[start - first.start : end - first.start]
            start += len(piece)
            yield piece

    def fill(self) -> None:
        """Ask for what there is room for."""
        while len(self._ranges) < self._depth and self._window.left > 0 and not self.is_asked_for:
            self._ask()

    def _ask(self) -> None:
        end = min(self._next + (RANGE_BYTES if self._depth > 1 else FIRST_BYTES), self.source.size)
        self._ranges.append(_Range(self, self._next, end))
        self._window.left -= 1
        self._next = end

    def _wait(self, range_: "_Range") -> None:
        begun = time.monotonic()
        longest = QUIET_SECONDS + self.source.size / SLOWEST_RATE
        with self.moved:
            while range_.error is None and not range_.is_whole:
                now = time.monotonic()
                quiet = QUIET_SECONDS - (now - max(begun, self.last_byte))
                left = min(quiet, longest - self._waited - (now - begun))
                if left <= 0:
                    self._give_up(range_, self._waited + now - begun)
                check_wanted(self.stopped)
                self.moved.wait(min(left, LOOK))
        self._waited += time.monotonic() - begun
        if range_.error is not None:
            raise range_.error

    def _give_up(self, range_: "_Range", waited: float) -> None:
        cause = f" (last error: {retries.one_line(range_.passing)})" if range_.passing else ""
        raise TimeoutError(
            f"{self.source.url} came too slowly: {range_.start + len(range_.data)} of {self.source.size} bytes after "
            f"{waited:.0f} s{cause}; check the store and run the command again"
        ) from range_.passing

    def stop(self) -> None:
        """Ask the threads to end, and wait for none of them: one may hang."""
        for range_ in self._ranges:
            range_.stopped.set()
        self._window.left += len(self._ranges)
        self._ranges.clear()


class _Range:
    """Bytes from ``start`` to ``end``, fetched on a thread of its own; daemonic, so that no hung one keeps the process.

    What was received before a failure is kept.
    """

    def __init__(self, ahead: ReadAhead, start: int, end: int) -> None:
        self.start, self.end = start, end
        self.data = bytearray()
        self.error: BaseException | None = None
        self.passing: Exception | None = None
        self.stopped = threading.Event()
        self._ahead, self._source = ahead, ahead.source
        threading.Thread(target=self._run, name="tilecov-range", daemon=True).start()

    @property
    def is_whole(self) -> bool:
        return len(self.data) == self.end - self.start

    def _run(self) -> None:
        try:
            self._fetch()
        except BaseException as error:  # noqa: BLE001  (raised by who waits for the bytes)
            self.error = error
        with self._ahead.moved:
            self._ahead.moved.notify_all()

    def _fetch(self) -> None:
        failed = 0
        while not self.is_whole and not self.stopped.is_set():
            had = len(self.data)
            at = self.start + had
            error = self._try(at, min(at + self._ahead.ask, self.end))
            if error is None:
                failed, self._ahead.ask = 0, min(2 * self._ahead.ask, RANGE_BYTES)
                continue
            # A shorter body is less likely to be cut, and comes in time where many share a slow line.
            self._ahead.ask = max(self._ahead.ask // 2, _FEWEST)
            failed = 1 if len(self.data) > had else failed + 1
            self.passing = error
            if not retries.is_passing(error):
                raise retries.presentable(error)
            if failed > retries.TRIES:
                raise ConnectionError(
                    f"{self._source.url} gave nothing in {retries.TRIES} tries at byte {at} of {self._source.size}: "
                    f"{retries.one_line(error)}; check the store and run the command again"
                )
            self.stopped.wait(retries.pause_after(error, failed))

    def _try(self, start: int, end: int) -> Exception | None:
        """Fetch once; return what failed in passing. After a failure the version is checked."""
        error: Exception | None = None
        had = len(self.data)
        try:
            self._source.fetch(start, end, self._take)
        except Exception as failure:  # noqa: BLE001  (stores have exceptions of their own)
            error = failure
        got = len(self.data) - had
        if error is None and got < end - start:
            error = ConnectionError(f"{self._source.url} was cut: {got} of {end - start} bytes from byte {start}")
        if error is None or isinstance(error, ReplacedError) or self.stopped.is_set():
            return error
        try:
            self._source.check()
        except Exception as failure:
            if not retries.is_passing(failure):  # such as a file that is gone; a busy store is asked again
                raise
        return error

    def _take(self, piece: bytes) -> None:
        check_wanted(self.stopped)
        room = self.end - self.start - len(self.data)
        if len(piece) > room:
            raise NotImplementedError(f"{self._source.url}: {room} bytes were asked for and {len(piece)} came")
        self.data += piece
        self._ahead.last_byte = time.monotonic()
