"""Trying again: what a store refuses for a moment is asked for anew, with growing, jittered pauses."""

import asyncio
import errno
import itertools
import random
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar, cast

from .redact import redact, what_is_said, without_secrets
from .versions import ReplacedError

T = TypeVar("T")

TRIES = 10
FIRST_PAUSE = 0.1
LONGEST_PAUSE = 5.0
"""Seconds; ten tries wait about 25 s in all."""
LONGEST = 120.0
"""Seconds after which nothing is tried again, as where each try waits for an answer that does not come."""

_FINAL = (
    FileExistsError,
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
    ReplacedError,
)
_FINAL_NUMBERS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.ENAMETOOLONG}

PRECONDITION_FAILED = 412
"""HTTP status of a conditional request whose condition does not hold."""

_BUSY = {408, 429, 500, 502, 503, 504}
_DENIED = {401, 403}
_REFUSED = {401, 403, 404, 405, 410, 411, 412, 413, 414, 416, 501}

# Classes of aiohttp, botocore and azure.core, which may not be installed, that say that a connection broke.
_BROKEN = {
    "ClientConnectionError",
    "ClientPayloadError",
    "HTTPClientError",
    "IncompleteReadError",
    "ResponseParserError",
    "ResponseStreamingError",
    "ServiceRequestError",
    "ServiceResponseError",
}


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
    worker : str
        Address of the worker of a cluster that tries again; empty in this process.
    """

    attempt: int
    pause: float
    error: str
    worker: str = ""


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


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status that a store answered with, as s3fs, aiohttp, gcsfs and azure.core keep it."""
    for known in (error, error.__cause__):
        response = getattr(known, "response", None)
        if isinstance(response, dict):  # botocore's
            return cast("int | None", response.get("ResponseMetadata", {}).get("HTTPStatusCode"))
        for name in ("status", "status_code", "code"):
            with suppress(TypeError, ValueError):
                return int(getattr(known, name, None))  # type: ignore[arg-type]
    return None


def is_passing(error: BaseException) -> bool:
    """Return whether trying again may help: a busy or broken connection, not a missing file or a full disk."""
    status = status_of(error)
    if isinstance(error, _FINAL) or status in _REFUSED:
        return False
    if isinstance(error, OSError):
        return error.errno not in _FINAL_NUMBERS
    kinds = {kind.__name__ for known in (error, error.__cause__) for kind in type(known).__mro__}
    return status in _BUSY or bool(kinds & _BROKEN)


def pause_after(error: Exception, attempt: int) -> float:
    """Return the seconds to wait after the failure of try ``attempt``, from 1; who listens is told of it."""
    pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** (attempt - 1))
    pause *= random.uniform(0.5, 1.5)  # noqa: S311  (spreads clients, no secret)
    tell(Retry(attempt, round(pause, 3), one_line(error)))
    return pause


def tell(retry: Retry) -> None:
    """Tell who listens in this process."""
    with _lock:
        listeners = tuple(_listeners)
    for listener in listeners:
        listener(retry)


def one_line(error: BaseException) -> str:
    """Return what an error says, in one line without credentials."""
    return " ".join(redact(what_is_said(error)).split()) or type(error).__name__


def pause_before_next(error: Exception, attempt: int, begun: float) -> float | None:
    """Return the seconds to wait before the next try; None where there is none."""
    if attempt < TRIES and is_passing(error) and time.monotonic() - begun < LONGEST:
        return pause_after(error, attempt)
    return None


def _pause_or_raise(error: Exception, attempt: int, begun: float) -> float:
    """Return the pause before the next try; raise where there is none, without credentials in the text."""
    pause = pause_before_next(error, attempt, begun)
    if pause is not None:
        return pause
    clean = presentable(error)
    if clean is error:
        raise error
    raise clean from None


def presentable(error: Exception) -> Exception:
    """Return ``error``, or one that says the same of Python's own kinds and without credentials."""
    clean = without_secrets(error)
    if status_of(error) in _DENIED and not isinstance(error, PermissionError):
        return PermissionError(str(clean))
    return clean


def retry(call: Callable[[], T]) -> T:
    """Return ``call()``, tried up to TRIES times and LONGEST where it fails in passing; the last error is raised."""
    begun = time.monotonic()
    for attempt in itertools.count(1):
        try:
            return call()
        except Exception as error:  # noqa: BLE001  (stores have exceptions of their own)
            pause = _pause_or_raise(error, attempt, begun)
        time.sleep(pause)
    raise AssertionError


@contextmanager
def naming_refusals(url: str) -> Iterator[None]:
    """Have a store's refusal name what it was about, and the way out; stores say no more than that they refuse."""
    try:
        yield
    except PermissionError as error:
        if error.filename:  # of a local file system, which names the file
            raise
        raise PermissionError(
            f"{url}: the store refuses access ({one_line(error)}); check the credentials in --storage-options or the "
            "environment, and what they may do"
        ) from error


async def retry_async(call: Callable[[], Awaitable[T]]) -> T:
    """Await ``call()`` as ``retry`` calls it."""
    begun = time.monotonic()
    for attempt in itertools.count(1):
        try:
            return await call()
        except Exception as error:  # noqa: BLE001  (stores have exceptions of their own)
            pause = _pause_or_raise(error, attempt, begun)
        await asyncio.sleep(pause)
    raise AssertionError
