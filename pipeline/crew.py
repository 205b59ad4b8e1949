"""Threads that call C functions, which hold no interpreter lock, each with memory that it works in."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from queue import LifoQueue
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]


class Crew:
    """As many threads as rooms; a context manager that ends them.

    Parameters
    ----------
    name : str
        What the threads are called.
    rooms : iterable of uint8 arrays
        Memory, one for each thread.
    """

    def __init__(self, name: str, rooms: Iterable[Bytes]) -> None:
        self._rooms: LifoQueue[Bytes] = LifoQueue()  # what was used last is in the cache
        for room in rooms:
            self._rooms.put(room)
        self.threads = self._rooms.qsize()
        self._pool = ThreadPoolExecutor(self.threads, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def each(self, work: Callable[[Any], None], parts: Iterable[Any]) -> None:
        """Do the work on each part; the first exception is raised."""
        for _ in self._pool.map(work, parts):
            pass

    @contextmanager
    def room(self) -> Iterator[Bytes]:
        """Yield memory that no other thread has meanwhile."""
        room = self._rooms.get()
        try:
            yield room
        finally:
            self._rooms.put(room)
