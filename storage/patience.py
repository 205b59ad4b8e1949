"""Requests of the clients of Azure and Google, tried again as this project's own are: with its pauses and limits."""

import asyncio
import itertools
import logging
import time
from functools import partial
from typing import Any

from .retries import LONGEST, TRIES, pause_after, pause_before_next

CONNECT_SECONDS = 10
READ_SECONDS = 20
"""Seconds without a byte after which a request is given up; both clients' own limits are minutes."""

# gcsfs logs each failure with its stack, which Python shows where nobody has asked for a log.
logging.getLogger("gcsfs").addHandler(logging.NullHandler())


def share_patience(fs: Any) -> None:
    """Have the requests of an fsspec file system tried again as `retries` does, where its client has ways of its own.

    Each request is, and not only whole calls: what is written in parts cannot be written again from its start.
    """
    if hasattr(fs, "service_client"):
        pace_azure(fs.service_client)
    elif "gs" in fs.protocol and hasattr(type(fs), "_request"):
        once = getattr(type(fs)._request, "__wrapped__", None)  # noqa: SLF001  (its own pauses cannot be set)
        fs._request = partial(_google_request, partial(once, fs)) if once else fs._request  # noqa: SLF001


def pace_azure(client: Any) -> None:
    """Set the limits and pauses of a client of azure-storage-blob; adlfs makes them itself and passes nothing on."""
    settings = client._config  # noqa: SLF001  (there is no other way to a client that is made)
    policy = settings.retry_policy
    policy.total_retries = policy.connect_retries = policy.read_retries = policy.status_retries = TRIES - 1
    policy.get_backoff_time = _azure_pause
    transport = client._pipeline._transport  # noqa: SLF001
    limits = getattr(transport, "_transport", transport).connection_config  # that of a container is wrapped
    limits.timeout, limits.read_timeout = CONNECT_SECONDS, READ_SECONDS


def _azure_pause(settings: dict[str, Any]) -> float:
    """Return the seconds before the next try of a request, of which ``settings`` holds the history."""
    last = settings["history"][-1]
    if time.monotonic() - settings.setdefault("begun", time.monotonic()) > LONGEST:
        settings["total"] = 0  # the next failure is the last
    status = getattr(last.http_response, "status_code", None)
    return pause_after(last.error or ConnectionError(f"the store answered with status {status}"), settings["count"])


async def _google_request(request: Any, *args: Any, **settings: Any) -> Any:
    begun = time.monotonic()
    for attempt in itertools.count(1):
        try:
            return await request(*args, **settings)
        except Exception as error:
            if type(error) is OSError and str(error).startswith("Forbidden"):  # all that gcsfs keeps of a 403
                raise PermissionError(str(error)) from error
            pause = pause_before_next(error, attempt, begun)
            if pause is None:
                raise
        await asyncio.sleep(pause)
    raise AssertionError
