"""Work ahead and side by side: on threads, of which each holds one item."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

SIDE_BY_SIDE = 2
"""Tiles that are read, changed and written at a time: one's arithmetic hides what the other waits for."""


def side_by_side(work: Callable[[T], R], items: Iterable[T], threads: int = SIDE_BY_SIDE) -> Iterator[R]:
    """Yield ``work(item)`` of each item, in order, ``threads`` of them under way at a time.

    The first exception ends it, once those that are under way have ended too.
    """
    with ThreadPoolExecutor(threads, "tilecov-beside") as pool:
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) == threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def ahead(items: Iterable[T]) -> Iterator[T]:
    """Yield ``items``, each made while the one before it is used; so at most two exist at a time.

    An exception while an item is made is raised where the item would have been yielded.
    """
    ready: queue.Queue[tuple[bool, T | BaseException | None]] = queue.Queue()
    wanted = threading.Semaphore(1)
    stopped = threading.Event()

    def work() -> None:
        try:
            source = iter(items)
            while True:
                wanted.acquire()
                if stopped.is_set():
                    return
                try:
                    item = next(source)
                except StopIteration:
                    break
                ready.put((True, item))
                del item
            ready.put((False, None))
        except BaseException as error:  # noqa: BLE001  (raised where the items are used)
            ready.put((False, error))

    thread = threading.Thread(target=work, name="tilecov-ahead", daemon=True)
    thread.start()
    try:
        while True:
            more, item = ready.get()
            wanted.release()
            if not more:
                break
            yield item  # type: ignore[misc]
            del item
        if isinstance(item, BaseException):
            raise item
    finally:
        stopped.set()
        wanted.release()
        thread.join()
