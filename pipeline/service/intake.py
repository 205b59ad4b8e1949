"""Takes jobs in: checked, planned, and queued."""

import asyncio
from typing import Any

from tilecov.storage.redact import redact

from .planner import Planner, PlannerError
from .records import RUNS, Record, new_id, now
from .settings import Settings
from .submission import Submission
from .supervisor import Supervisor


class FaultError(Exception):
    """A job that cannot be done as it is.

    Parameters
    ----------
    field : str
        Of the job.
    why : str
    """

    def __init__(self, field: str, why: str) -> None:
        super().__init__(field, why)
        self.field, self.why = field, why

    def as_dict(self) -> dict[str, Any]:
        """Return it as the answer has it."""
        return {"loc": ["body", self.field], "msg": self.why, "type": "refused"}


class QueueFullError(RuntimeError):
    """As many runs wait as the operator allows."""


class OtherRequestError(ValueError):
    """An idempotency key that was used for another job."""


class Intake:
    """Where jobs come in.

    Parameters
    ----------
    settings : Settings
    supervisor : Supervisor
    """

    def __init__(self, settings: Settings, supervisor: Supervisor) -> None:
        self.settings, self.supervisor, self.planner = settings, supervisor, Planner()
        self._lock = asyncio.Lock()

    def known(self, job: Submission, key: str | None) -> Record | None:
        """Return the run that was made with ``key``; OtherRequestError where it was made for another job."""
        record = self.supervisor.queue.with_key(key) if key else None
        if record is not None and record.job != job.fields():
            raise OtherRequestError(f"the Idempotency-Key belongs to run {record.id}, which has another job")
        return record

    def check_room(self) -> None:
        """Raise QueueFullError where as many runs wait as may."""
        waiting = sum(record.state == "queued" for record in self.supervisor.queue.records.values())
        if waiting >= self.settings.waiting:
            raise QueueFullError(f"{waiting} runs wait already; try again later, or cancel some")

    async def plan(self, job: Submission) -> dict[str, Any]:
        """Return the plan of ``job``.

        Raises
        ------
        FaultError
            Where it cannot be done: names the field.
        PlannerBusyError, PlannerError
            Where it cannot be planned now.
        """
        self._check_extended(job.extend)
        request = self.supervisor.request_for(job.fields(), f"{RUNS}/planned", self._share(job))
        found = await self.planner.ask(request)
        if "error" in found:
            raise FaultError(found["field"], redact(found["error"]))
        if "plan" not in found:
            raise PlannerError("the job could not be planned; the service's log has more")
        plan: dict[str, Any] = found["plan"]
        if self.settings.disk is not None and plan["disk"] > self.settings.disk:
            raise FaultError(
                "resolution", f"it needs {plan['disk']:,} bytes of disk, {self.settings.disk:,} are allowed"
            )
        return plan

    async def take(self, job: Submission, plan: dict[str, Any], key: str | None) -> tuple[Record, bool]:
        """Queue a planned job; return its record, and whether it is new."""
        async with self._lock:
            if known := self.known(job, key):
                return known, False
            self.check_room()
            record = Record(
                id=new_id(), submitted=now(), key=key, job=job.fields(), plan=plan, share=self._share(job),
                memory=plan["peak"] * job.workers, disk=plan["disk"],
            )  # fmt: skip
            await self.supervisor.add(record)
            return record, True

    def _share(self, job: Submission) -> int:
        """Return the bytes that each process may take: as asked for, or an equal part."""
        return min(job.memory or self.settings.share // job.workers, self.settings.memory)

    def _check_extended(self, run: str | None) -> None:
        """Raise FaultError where ``run`` is not the id of a complete run; no other can be extended."""
        record = self.supervisor.queue.records.get(run or "")
        if run is not None and (record is None or record.state != "complete"):
            raise FaultError("extend", "it is the id of a complete run of this service")
