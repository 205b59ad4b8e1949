"""One worker: a process that does one run, from its start to its end."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .settings import TOKEN
from .worker_environment import environment

_LINE = 1 << 20  # bytes of a line of the log
_PATIENCE = 15.0  # seconds that a worker has to end by itself
_LAST = 20  # lines kept of what is no JSON

Event = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Ending:
    """How a worker ended.

    Parameters
    ----------
    status : int
        Exit status; negative for a signal.
    stopped : bool
        Whether we ended it.
    said : tuple of str
        The last lines that were no JSON: for the operator.
    """

    status: int
    stopped: bool
    said: tuple[str, ...]


@dataclass
class Work:
    """A worker process.

    Parameters
    ----------
    listener : callable
        Is given every event of its log.
    """

    listener: Callable[[Event], None]
    stopped: bool = False
    _process: asyncio.subprocess.Process | None = None
    _said: list[str] = field(default_factory=list)
    _ended: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def pid(self) -> int | None:
        """The process, once it is started."""
        return self._process.pid if self._process else None

    async def run(self, request: Mapping[str, Any], shares: int) -> Ending:
        """Start the process on ``request``, one of ``shares`` at a time, and wait for its end."""
        pipe = asyncio.subprocess.PIPE
        process = self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tilecov.pipeline.service.worker", "run", stdin=pipe, stderr=pipe,
            stdout=asyncio.subprocess.DEVNULL, env=environment(shares, without=(TOKEN,)), limit=_LINE,
            start_new_session=True,
        )  # fmt: skip
        if self.stopped:
            self._signal(signal.SIGKILL)
        try:
            await self._talk(process, request)
            status = await process.wait()
        finally:
            # What it started itself (Dask's workers) is of its session; nothing of it may be left.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            self._ended.set()
        return Ending(status, self.stopped, tuple(self._said))

    async def _talk(self, process: asyncio.subprocess.Process, request: Mapping[str, Any]) -> None:
        if process.stdin is None or process.stderr is None:
            return
        with contextlib.suppress(ConnectionError):
            process.stdin.write(json.dumps(request).encode() + b"\n")
            await process.stdin.drain()  # and stays open: its end would end the worker
        while True:
            try:
                line = await process.stderr.readline()
            except ValueError:  # longer than any event
                continue
            if not line:
                return
            self._hear(line)

    def _hear(self, line: bytes) -> None:
        try:
            event = json.loads(line)
            kind = event["event"]
        except (ValueError, TypeError, KeyError):
            self._said = [*self._said[1 - _LAST :], line.decode(errors="replace").rstrip()]
            return
        if kind == "run_failed" and event.get("traceback"):
            self._said = [*self._said[1 - _LAST :], event["traceback"]]
        self.listener(event)

    async def stop(self, *, at_once: bool = False) -> None:
        """End the process as Ctrl-C would, or by force where it does not end."""
        self.stopped = True
        if self._process is None or self._process.returncode is not None:
            return
        self._signal(signal.SIGKILL if at_once else signal.SIGINT)
        try:
            async with asyncio.timeout(_PATIENCE):
                await self._ended.wait()
        except TimeoutError:
            self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)
