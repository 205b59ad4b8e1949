"""Plans jobs in a process of its own, which is kept: what it imports takes seconds."""

import asyncio
import json
import logging
import sys
from dataclasses import dataclass, field
from typing import Any

from .settings import TOKEN
from .worker_environment import environment

LONGEST = 60.0
"""Seconds that planning may take: listing shards and reading the first samples."""
MOST = 32
"""Requests that may wait."""
_LINE = 1 << 24  # bytes
_LAST_WORDS = 1.0  # seconds in which what an ended process has said is read

log = logging.getLogger("tilecov.service")


class PlannerBusyError(RuntimeError):
    """Too many jobs wait to be planned."""


class PlannerError(RuntimeError):
    """A plan took too long, or its process ended."""


@dataclass
class Planner:
    """One process, one request at a time."""

    _process: asyncio.subprocess.Process | None = None
    _hearing: asyncio.Task[None] | None = None
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _waiting: int = 0

    async def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return what `worker.answer` returns.

        Raises
        ------
        PlannerBusyError
            Where too many wait.
        PlannerError
            Where there is no answer in time.
        """
        if self._waiting >= MOST:
            raise PlannerBusyError(f"{self._waiting} jobs wait to be planned; try again in a moment")
        self._waiting += 1
        try:
            async with self._lock:
                return await self._ask(request)
        finally:
            self._waiting -= 1

    async def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        process = await self._alive()
        if process.stdin is None or process.stdout is None:
            raise PlannerError("the planner has no pipes")
        answered = False
        try:
            async with asyncio.timeout(LONGEST):
                process.stdin.write(json.dumps(request).encode() + b"\n")
                await process.stdin.drain()
                line = await process.stdout.readline()
            answered = bool(line)
        except TimeoutError:
            raise PlannerError(f"no plan within {LONGEST:.0f} s; name fewer shards, or ask again") from None
        except (ConnectionError, ValueError):
            line = b""
        finally:
            if not answered:  # also where the client is gone: the answer would be given to the next one
                await self.close()
        if not answered:
            raise PlannerError("the planner's process ended, as when a sample takes too much memory")
        found = dict(json.loads(line))
        if found.pop("spent", False):
            await self.close()
        return found

    async def _alive(self) -> asyncio.subprocess.Process:
        if self._process is None or self._process.returncode is not None:
            await self.close()
            pipe = asyncio.subprocess.PIPE
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tilecov.pipeline.service.worker", "plan", stdin=pipe, stdout=pipe, stderr=pipe,
                env=environment(1, without=(TOKEN,)), limit=_LINE, start_new_session=True,
            )  # fmt: skip
            self._hearing = asyncio.create_task(_hear(self._process))
        return self._process

    async def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            process.kill()
            await process.wait()
        hearing, self._hearing = self._hearing, None
        if hearing is not None:
            await asyncio.wait({hearing}, timeout=_LAST_WORDS)
            hearing.cancel()


async def _hear(process: asyncio.subprocess.Process) -> None:
    """Put what a process says beside its answers into the log, which takes credentials out."""
    while process.stderr is not None:
        try:
            line = await process.stderr.readline()
        except ValueError:  # longer than any line should be
            continue
        if not line:
            return
        log.warning("planner: %s", line.decode(errors="replace").rstrip())
