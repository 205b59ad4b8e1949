"""Carries the queue out: as many workers at a time as the limits allow, each on its own run."""

import asyncio
import logging
import time
from collections.abc import Coroutine, Mapping
from functools import partial
from typing import Any

from tilecov.storage.objects import Folder
from tilecov.storage.redact import redact, secrets_of
from tilecov.storage.runs import LEDGER, REPORT, RunFolder

from ..sizes import show_size
from .progress import Hub, Progress
from .records import RUNS, Queue, Record, now
from .settings import Settings
from .work import Ending, Work
from .worker import BUSY

CRASHES = 3
"""Times that the worker of a run may end by a signal that nobody here sent."""
_BUSY_PAUSE = 2.0  # seconds until a run is begun again that a worker of an earlier service still holds
_TRIES = 5  # of writing a record

log = logging.getLogger("tilecov.service")


class NotWrittenError(OSError):
    """The store does not take a record, and is away for longer than one waits."""


class Supervisor:
    """Starts and ends workers.

    Parameters
    ----------
    settings : Settings
    queue : Queue
        Loaded.
    """

    def __init__(self, settings: Settings, queue: Queue) -> None:
        self.settings, self.queue, self.hub = settings, queue, Hub()
        self.progress: dict[str, Progress] = {}
        self.begun = self.rows = 0
        self.told: dict[str, bytes] = {}
        """What clients were told of runs; forgotten whenever anything moves."""
        self._work: dict[str, Work] = {}
        self._not_before: dict[str, float] = {}
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._doing: set[asyncio.Task[None]] = set()
        self._cancelling: set[str] = set()
        self._writing = asyncio.Lock()
        self._closing = False

    # What the limits say.

    @property
    def running(self) -> list[Record]:
        """The records that a worker is on."""
        return [self.queue.records[run] for run in self._work if run in self.queue.records]

    @property
    def memory_taken(self) -> int:
        """Bytes that the running runs may take."""
        return sum(record.memory for record in self.running)

    @property
    def disk_taken(self) -> int:
        """Bytes of all run folders: as measured of ended runs, as planned of running ones."""
        records = self.queue.records.values()
        return sum(item.disk for item in records if item.state != "queued" or item.begun or item.id in self._work)

    def position_of(self, record: Record) -> int | None:
        """Return how many runs come before a queued one; None for any other."""
        if record.state != "queued":
            return None
        own = (record.submitted, record.id)
        others = self.queue.records.values()
        return sum(other.state == "queued" and (other.submitted, other.id) < own for other in others)

    def never_fits(self, record: Record) -> bool:
        """Return whether a run takes more than all runs together may, as where the limits were larger before."""
        disk = self.settings.disk
        return record.memory > self.settings.memory or (disk is not None and record.disk > disk)

    def waits_for(self, record: Record) -> str | None:
        """Return what a queued run waits for; None where it could begin now."""
        disk = self.settings.disk
        taken = self.disk_taken - (record.disk if record.begun else 0)
        if self.never_fits(record):
            return "it was taken in under larger limits, and fits these never; raise --memory or --disk, or cancel it"
        if len(self._work) >= self.settings.concurrent:
            return f"{len(self._work)} of {self.settings.concurrent} runs at a time are under way"
        if self.memory_taken + record.memory > self.settings.memory:
            return (
                f"it needs {show_size(record.memory)}, {show_size(self.settings.memory - self.memory_taken)} are free"
            )
        if disk is not None and taken + record.disk > disk:
            return (
                f"it needs {show_size(record.disk)} of disk and {show_size(max(0, disk - taken))} are left; remove runs"
            )
        return None

    # What is asked of it.

    async def start(self) -> None:
        """Take up what an earlier service left: what was running is begun again, and resumes."""
        for record in self.queue.in_order():
            if record.cancel and not record.is_over:  # killed between the promise and its keeping
                await self._end_cancelled(record.id)
            elif record.state == "running":
                await self._change(record.id, state="queued", started=None)
        self._keep(self._serve())

    async def add(self, record: Record) -> None:
        """Take a new record."""
        await asyncio.to_thread(self.queue.create, record)
        self.queue.keep(record)
        self.told.clear()
        self._changed.set()

    async def cancel(self, run: str) -> Record:
        """Cancel a run that is not over: its worker is ended, and its folder removed."""
        if not self.queue.records[run].is_over:
            self._cancelling.add(run)  # nothing begins it while that is written, and then the record says so
            try:
                await self._change(run, cancel=True)
            finally:
                self._cancelling.discard(run)
            work = self._work.get(run)
            if work is not None:
                self._keep(work.stop())
            elif not self.queue.records[run].is_over:
                await self._end_cancelled(run)
        return self.queue.records[run]

    async def _end_cancelled(self, run: str) -> None:
        await asyncio.to_thread(self.folder_of(run).root.remove)
        await self._change(run, state="cancelled", ended=now(), disk=0)

    async def remove(self, run: str) -> None:
        """Remove a run that is over, its folder first."""
        await asyncio.to_thread(self.folder_of(run).root.remove)
        await asyncio.to_thread(self.queue.erase, run)
        self.queue.forget(run)
        self.told.clear()
        self._changed.set()

    async def close(self) -> None:
        """End all workers; their runs stay queued, and another service resumes them."""
        self._closing = True
        self._changed.set()
        await asyncio.gather(*(work.stop() for work in self._work.values()))
        await asyncio.gather(*self._doing)
        self.hub.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def folder_of(self, run: str) -> RunFolder:
        """Return a run's folder."""
        return RunFolder(self.queue.root.folder(self.queue.records[run].folder))

    # How it is done.

    def _keep(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run ``coroutine`` beside all others; asyncio itself holds tasks only weakly."""
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _serve(self) -> None:
        while not self._closing:
            pause: float | None = _BUSY_PAUSE
            try:
                pause = self._begin_what_fits()
            except Exception:
                log.exception("the queue is looked at again in %s s", pause)
            try:
                async with asyncio.timeout(pause):
                    await self._changed.wait()
            except TimeoutError:
                pass
            self._changed.clear()

    def _begin_what_fits(self) -> float | None:
        """Begin runs in order; none passes another, or a large one would wait for ever. Return when to look again."""
        pause = None
        for record in self.queue.in_order():
            is_cancelled = record.cancel or record.id in self._cancelling
            if record.state != "queued" or is_cancelled or record.id in self._work:
                continue
            wait = self._not_before.get(record.id, 0.0) - time.monotonic()
            if wait > 0:
                pause = min(wait, pause or wait)
                continue
            if self.never_fits(record):
                continue
            if self.waits_for(record) is not None:
                return pause
            self._work[record.id] = Work(partial(self._hear, record.id))
            self.told.clear()
            task = self._keep(self._do(record.id))
            self._doing.add(task)
            task.add_done_callback(self._doing.discard)
        return pause

    def _hear(self, run: str, event: Mapping[str, Any]) -> None:
        self.progress[run].take(event)
        self.told.clear()
        if event["event"] == "unit_done":
            self.rows += event.get("rows") or 0
        self.hub.tell(run, event)

    async def _do(self, run: str) -> None:
        try:
            await self._try(run)
            record = self.queue.records[run]
            if record.cancel and not record.is_over:  # asked for while it was settled how its worker ended
                await self._end_cancelled(run)
        except Exception:
            # Not even that could be written. It is no fault of the run that the store is away.
            log.exception("run %s is looked at again in %s s", run, _BUSY_PAUSE)
            self._not_before[run] = time.monotonic() + _BUSY_PAUSE
            if not self.queue.records[run].is_over:
                self.queue.keep(self.queue.records[run].but(state="queued"))
        finally:
            del self._work[run]
            self.progress.pop(run, None)
            self.told.clear()
            self._changed.set()

    async def _try(self, run: str) -> None:
        """Have a worker do a run, and settle how that ended; a fault of the service's own counts as a crash."""
        self.begun += 1
        self.progress[run] = Progress()
        begun = self.queue.records[run].begun + 1
        await self._change(run, state="running", begun=begun, started=now(), error=None)
        try:
            record = self.queue.records[run]
            request = self.request_for(record.job, record.folder, record.share)
            ending = await self._work[run].run(request, self.settings.concurrent)
            await self._settle(self.queue.records[run], ending)
        except NotWrittenError:
            raise
        except Exception:
            log.exception("run %s could not be carried out", run)
            await self._count_crash(self.queue.records[run], "the service could not carry it out; its log has more")

    async def _count_crash(self, record: Record, why: str) -> None:
        """Begin a run again whose worker ended as none should; where that happens too often, it has failed."""
        crashed = record.crashed + 1
        if crashed < CRASHES:
            self._not_before[record.id] = time.monotonic() + _BUSY_PAUSE
            await self._change(record.id, state="queued", started=None, crashed=crashed)
        else:
            await self._change(record.id, state="failed", ended=now(), error=why, crashed=crashed)

    def request_for(self, job: Mapping[str, Any], folder: str, share: int) -> dict[str, Any]:
        """Return what a worker is told of a job: what was asked for, and what the operator and the service decide."""
        root = self.queue.root
        own = {"out": root.folder(folder).absolute, "scheduler": self.settings.scheduler, "memory": share}
        if "extend" in job:
            own["extend"] = root.folder(f"{RUNS}/{job['extend']}").absolute
        return {
            "job": {**job, **own},
            "options": self.settings.storage_options,
            "allow": list(self.settings.allow),
            "limit": self.settings.memory,
        }

    async def _settle(self, record: Record, ending: Ending) -> None:
        """Keep how a run ended."""
        if ending.said:
            log.warning("run %s, exit status %d: %s", record.id, ending.status, redact("\n".join(ending.said)))
        if record.cancel and ending.status != 0:
            await self._end_cancelled(record.id)
        elif ending.status == 0:
            await self._complete(record)
        elif ending.stopped or self._closing or ending.status == BUSY:
            self._not_before[record.id] = time.monotonic() + _BUSY_PAUSE
            begun = record.begun - (ending.status == BUSY)  # that one found the run held, and did nothing
            await self._change(record.id, state="queued", started=None, begun=begun)
        elif ending.status < 0 and record.crashed + 1 < CRASHES:
            await self._change(record.id, state="queued", started=None, crashed=record.crashed + 1)
        else:
            await self._fail(record, ending)

    async def _complete(self, record: Record) -> None:
        folder = self.folder_of(record.id)
        manifest = await asyncio.to_thread(folder.load)
        kept = ("dataset", "moments_digest", "certificate", "artifacts", "stages", "completed")
        result = {name: manifest[name] for name in kept if name in manifest} if manifest else {}
        size = await asyncio.to_thread(_size_of, folder.root)
        await self._change(record.id, state="complete", ended=now(), result=result, disk=size, error=None)

    async def _fail(self, record: Record, ending: Ending) -> None:
        said = self.progress[record.id].error
        if ending.status < 0:
            said = (
                f"its process was ended {CRASHES} times, by signal {-ending.status}, as when the machine has no memory"
            )
        folder = self.folder_of(record.id).root
        size = await asyncio.to_thread(_size_of, folder)
        left = await asyncio.to_thread(lambda: [name for name in (LEDGER, REPORT) if folder.exists(name)])
        secrets = secrets_of(self.settings.storage_options)
        error = redact(said or "its process ended without a reason; the service's log has more", secrets)
        await self._change(record.id, state="failed", ended=now(), error=error, disk=size, left=left)

    async def _change(self, run: str, **changes: Any) -> None:
        """Write a changed record; a store that is away for longer than its retries is asked a few times more."""
        async with self._writing:
            record = self.queue.records[run].but(**changes)
            for left in range(_TRIES, 0, -1):
                try:
                    await asyncio.to_thread(self.queue.save, record)
                    break
                except OSError as error:
                    if left == 1:
                        raise NotWrittenError(f"the record of run {run} could not be written: {error}") from error
                    await asyncio.sleep(1.0)
            self.queue.keep(record)
        self.told.clear()
        self.hub.tell(run, {"event": "state", "state": record.state, "error": record.error, "time": now()})
        if record.is_over:
            self.hub.close(run)
        self._changed.set()


def _size_of(folder: Folder) -> int:
    """Return the bytes below ``folder``."""
    try:
        return int(folder.fs.du(folder.path()))
    except FileNotFoundError:
        return 0
