"""Work ahead: the next item is made on a thread while the last one is used."""

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


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
