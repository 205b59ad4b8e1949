"""Trying again: what a store refuses for a moment is asked for anew, with growing, jittered pauses."""

import asyncio
import errno
import random
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

TRIES = 10
FIRST_PAUSE = 0.1
LONGEST_PAUSE = 5.0
"""Seconds; ten tries wait about 25 s in all."""

_FINAL = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)
_FINAL_NUMBERS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.ENAMETOOLONG}

_BUSY = {408, 429, 500, 502, 503, 504, "408", "429", "500", "502", "503", "504"}


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


def retry(call: Callable[[], T]) -> T:
    """Return ``call()``, tried up to TRIES times where it fails in passing; the last error is raised."""
    for attempt in range(TRIES - 1):
        try:
            return call()
        except Exception as error:  # stores have exceptions of their own
            if not is_passing(error):
                raise
            time.sleep(_pause(attempt))
    return call()


async def retry_async(call: Callable[[], Awaitable[T]]) -> T:
    """Await ``call()`` as ``retry`` calls it."""
    for attempt in range(TRIES - 1):
        try:
            return await call()
        except Exception as error:  # stores have exceptions of their own
            if not is_passing(error):
                raise
            await asyncio.sleep(_pause(attempt))
    return await call()
