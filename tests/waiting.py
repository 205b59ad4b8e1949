"""Waiting for what should happen, in all tests that start processes."""

import time
from collections.abc import Callable
from typing import Any


def until(what: Callable[[], Any], *, seconds: float, pause: float) -> Any:
    """Look every ``pause`` seconds until ``what`` gives something true, and return it; fail after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(pause)
    return found
