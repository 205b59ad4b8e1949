"""What a store will answer, asked for on a thread, so that whoever waits for it can be stopped."""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar, cast

T = TypeVar("T")

LOOK = 0.5
"""Seconds between two looks whether anybody still wants what is waited for."""


def check_wanted(stopped: threading.Event | None) -> None:
    """Raise InterruptedError where ``stopped`` is set: nobody wants any more what is read."""
    if stopped is not None and stopped.is_set():
        raise InterruptedError("the reader was closed")


class Answer(Generic[T]):
    """What ``call`` returns or raises; its thread is daemonic, so that one which hangs does not keep the process.

    Parameters
    ----------
    call : callable
    """

    def __init__(self, call: Callable[[], T]) -> None:
        self._call, self._done = call, threading.Event()
        self._value: T | None = None
        self._error: BaseException | None = None
        threading.Thread(target=self._run, name="tilecov-answer", daemon=True).start()

    def _run(self) -> None:
        try:
            self._value = self._call()
        except BaseException as error:  # noqa: BLE001  (raised by who waits)
            self._error = error
        self._done.set()

    @property
    def succeeded(self) -> bool:
        """Whether it has returned."""
        return self._done.is_set() and self._error is None

    def wait(self, stopped: threading.Event | None = None) -> T:
        """Return what the call returns, or raise what it raises; InterruptedError where ``stopped`` is set before."""
        while not self._done.wait(LOOK if stopped is not None else None):
            check_wanted(stopped)
        if self._error is not None:
            raise self._error
        return cast("T", self._value)
