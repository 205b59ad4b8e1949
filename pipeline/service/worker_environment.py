"""The environment of the processes that the service starts."""

import os
from collections.abc import Sequence

from ..machine import cores

_PLACES = {"PWD", "OLDPWD"}  # the shell's words for folders, which would pass for passwords
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def environment(shares: int, without: Sequence[str]) -> dict[str, str]:
    """Return this process's environment for one of ``shares`` that compute at a time, its threads set accordingly."""
    found = {name: value for name, value in own_environment().items() if name not in without}
    threads = str(max(1, cores() // shares))
    return {**dict.fromkeys(_THREADS, threads), **found} if shares > 1 else found


def own_environment() -> dict[str, str]:
    """Return this process's environment, less the names of folders."""
    return {name: value for name, value in os.environ.items() if name not in _PLACES}
