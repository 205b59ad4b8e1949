"""What a contender hands over: what is timed, and what shows that its result is right."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Proof = dict[str, list[float]]


@dataclass(frozen=True)
class Trial:
    """A contender that is ready: imports done, data where it expects them.

    Parameters
    ----------
    rows : int
        Rows that the work takes.
    work : callable
        () -> result. Timed.
    proof : callable
        result -> groups of numbers that every contender of the table must find alike, ``rows`` among them. Not timed.
    detail : callable
        result -> seconds of its parts, by name.
    """

    rows: int
    work: Callable[[], Any]
    proof: Callable[[Any], Proof]
    detail: Callable[[Any], dict[str, float]] = lambda _: {}
