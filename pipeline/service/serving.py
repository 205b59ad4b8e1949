"""Starts the service: one process a root, which answers, and starts workers."""

import logging
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from tilecov.storage.lease import LeaseHeldError, lease
from tilecov.storage.objects import Folder
from tilecov.storage.redact import redact, secrets_of

from ..errors import BusyError
from .settings import Settings
from .worker_environment import own_environment

if TYPE_CHECKING:
    import uvicorn

_AT_ONCE = 1000  # connections; more are answered with 503
_GOODBYE = 3  # seconds that open streams have when the service ends


class Redacting(logging.Formatter):
    """Writes log lines, tracebacks among them, without credentials."""

    def __init__(self, settings: Settings) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")
        given = {"token": settings.token, "session": settings.session} if settings.token else {}
        self._secrets = secrets_of(settings.storage_options, own_environment(), given) | frozenset(given.values())

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        return redact(super().format(record), self._secrets)


def serve(settings: Settings) -> None:
    """Serve until Ctrl-C or a signal.

    Raises
    ------
    BusyError
        Where another service works on the root.
    """
    import uvicorn

    handler = logging.StreamHandler()
    handler.setFormatter(Redacting(settings))
    for name in ("tilecov.service", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO if name != "uvicorn" else logging.WARNING)
    server = uvicorn.Server(config_of(settings))
    # uvicorn ends in order and then lets the signal have its way, which must not leave the lease behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        with suppress(KeyboardInterrupt), lease(Folder(settings.root, settings.storage_options)):
            logging.getLogger("tilecov.service").info("http://%s:%d, runs in %s", *_shown(settings))
            server.run()
    except LeaseHeldError as error:
        raise BusyError(str(error).replace("--out", "--root")) from error


def config_of(settings: Settings) -> "uvicorn.Config":
    """Return how the server is set: the limits that hold before any request is whole."""
    import uvicorn

    from .app import create_app
    from .connections import Connection

    return uvicorn.Config(
        create_app(settings), settings.host, settings.port, log_config=None, access_log=False, server_header=False,
        http=Connection, limit_concurrency=_AT_ONCE, timeout_graceful_shutdown=_GOODBYE, proxy_headers=False,
    )  # fmt: skip


def _shown(settings: Settings) -> tuple[str, int, str]:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return host, settings.port, Folder(settings.root).url
