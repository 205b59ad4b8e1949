"""Trying again: what a store refuses for a moment is asked for anew, with growing, jittered pauses."""

import asyncio
import errno
import itertools
import random
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from .redact import redact, without_secrets

T = TypeVar("T")

TRIES = 10
FIRST_PAUSE = 0.1
LONGEST_PAUSE = 5.0
"""Seconds; ten tries wait about 25 s in all."""

_FINAL = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)
_FINAL_NUMBERS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.ENAMETOOLONG}

_BUSY = {408, 429, 500, 502, 503, 504, "408", "429", "500", "502", "503", "504"}


@dataclass(frozen=True, slots=True)
class Retry:
    """What is told before a store is asked again.

    Parameters
    ----------
    attempt : int
        The try that failed, from 1.
    pause : float
        Seconds until the next.
    error : str
        Why, in one line without credentials.
    """

    attempt: int
    pause: float
    error: str


Listener = Callable[[Retry], None]
_listeners: list[Listener] = []
_lock = threading.Lock()


@contextmanager
def telling(listener: Listener) -> Iterator[None]:
    """Tell ``listener`` of every retry of this process while the block runs, on the thread that tries again."""
    with _lock:
        _listeners.append(listener)
    try:
        yield
    finally:
        with _lock:
            _listeners.remove(listener)


def is_passing(error: BaseException) -> bool:
    """Return whether trying again may help: a busy or broken connection, not a missing file or a full disk."""
    if isinstance(error, _FINAL):
        return False
    if isinstance(error, OSError):
        return error.errno not in _FINAL_NUMBERS
    # Object stores' own exceptions carry the HTTP status under one of these names.
    return any(getattr(error, name, None) in _BUSY for name in ("status", "status_code", "code"))


def _pause(attempt: int) -> float:
    pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0**attempt)
    return pause * random.uniform(0.5, 1.5)  # noqa: S311  (spreads clients, no secret)


def _pause_after(error: Exception, attempt: int) -> float:
    """Tell of a retry and return the pause before it; raise where there is none, without credentials in the text."""
    if attempt + 1 >= TRIES or not is_passing(error):
        clean = without_secrets(error)
        if clean is error:
            raise error
        raise clean from None
    pause = _pause(attempt)
    with _lock:
        listeners = tuple(_listeners)
    if listeners:
        text = " ".join(redact(str(error)).split()) or type(error).__name__
        for listener in listeners:
            listener(Retry(attempt + 1, round(pause, 3), text))
    return pause


def retry(call: Callable[[], T]) -> T:
    """Return ``call()``, tried up to TRIES times where it fails in passing; the last error is raised."""
    for attempt in itertools.count():
        try:
            return call()
        except Exception as error:  # noqa: BLE001  (stores have exceptions of their own)
            pause = _pause_after(error, attempt)
        time.sleep(pause)
    raise AssertionError


async def retry_async(call: Callable[[], Awaitable[T]]) -> T:
    """Await ``call()`` as ``retry`` calls it."""
    for attempt in itertools.count():
        try:
            return await call()
        except Exception as error:  # noqa: BLE001  (stores have exceptions of their own)
            pause = _pause_after(error, attempt)
        await asyncio.sleep(pause)
    raise AssertionError
