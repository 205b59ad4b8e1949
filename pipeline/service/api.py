"""The routes that programs use."""
# ruff: noqa: FAST003  (a dependency takes the id of a path)

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Header, HTTPException, Path, Query, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse

from tilecov.storage.runs import REPORT

from .files import send_file
from .intake import FaultError, Intake
from .metrics import Metrics
from .names import FILES
from .planner import PlannerBusyError, PlannerError
from .records import ID, Record, State
from .submission import EXAMPLES, Submission
from .supervisor import Supervisor
from .views import Faults, PlanView, Refused, RunList, RunView, json_of, line_of, view_of

_HEARTBEAT = 15.0  # seconds; proxies close streams that say nothing for a minute
LISTENERS = 500
"""Clients that may stream events at a time."""

router = APIRouter()

JobBody = Annotated[Submission, Body(openapi_examples=EXAMPLES)]
RunId = Annotated[str, Path(alias="id", pattern=f"^{ID.pattern}$", description="as POST /runs gave it")]
_KNOWN: dict[int | str, dict[str, Any]] = {401: {"model": Refused}, 404: {"model": Refused}, 422: {"model": Faults}}
_ASKED: dict[int | str, dict[str, Any]] = {
    status: {"model": Refused} for status in (400, 401, 403, 408, 413, 415, 429, 503, 504)
}
_ASKED[422] = {"model": Faults}


# Dependencies that are no coroutines would each take a thread, and four times as long in all.
async def supervisor_of(request: Request) -> Supervisor:
    """Return the supervisor of the service that answers."""
    found: Supervisor = request.app.state.supervisor
    return found


Asked = Annotated[Supervisor, Depends(supervisor_of)]


async def record_of(run: RunId, supervisor: Asked) -> Record:
    """Return the record that a path names; 404 where there is none."""
    record = supervisor.queue.records.get(run)
    if record is None:
        raise HTTPException(404, f"no run {run}")
    return record


Known = Annotated[Record, Depends(record_of)]


async def planned(request: Request, job: Submission) -> dict[str, Any]:
    """Return the plan of a job; the answer's status says why there is none."""
    intake: Intake = request.app.state.intake
    try:
        return await intake.plan(job)
    except PlannerBusyError as error:
        raise HTTPException(503, str(error), {"Retry-After": "5"}) from error
    except PlannerError as error:
        raise HTTPException(504, str(error)) from error


@router.post("/plan", responses=_ASKED, summary="What a job would take; computes nothing")
async def preview(request: Request, job: JobBody) -> PlanView:
    """Look at the first samples and answer with the plan."""
    return PlanView(**await planned(request, job))


@router.post("/runs", status_code=201, responses={**_ASKED, 200: {"model": RunView}, 409: {"model": Refused}})
async def submit(
    request: Request,
    response: Response,
    job: JobBody,
    supervisor: Asked,
    idempotency_key: Annotated[str | None, Header(max_length=200)] = None,
) -> RunView:
    """Queue a job, and answer with its id and plan.

    The same Idempotency-Key again gives the run that the first request made (200).
    """
    intake: Intake = request.app.state.intake
    known = intake.known(job, idempotency_key)
    if known is None:
        intake.check_room()
        plan = await planned(request, job)
        known, is_new = await intake.take(job, plan, idempotency_key)
    else:
        is_new = False
    response.status_code = 201 if is_new else 200
    response.headers["Location"] = f"/runs/{known.id}"
    return view_of(known, supervisor)


@router.get("/runs", responses={401: {"model": Refused}, 422: {"model": Faults}})
async def runs(
    supervisor: Asked,
    state: State | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    before: Annotated[str | None, Query(pattern=f"^{ID.pattern}$")] = None,
) -> RunList:
    """List runs, the newest first."""
    every = [record for record in reversed(supervisor.queue.in_order()) if state in {None, record.state}]
    left = every
    if before is not None and (mark := supervisor.queue.records.get(before)):
        left = [record for record in every if (record.submitted, record.id) < (mark.submitted, mark.id)]
    page = left[:limit]
    following = page[-1].id if len(left) > limit else None
    return RunList(runs=[line_of(record, supervisor) for record in page], total=len(every), next=following)


@router.get("/runs/{id}", responses=_KNOWN, response_model=RunView)
async def run(record: Known, supervisor: Asked) -> Response:
    """Tell all that is known of a run."""
    return Response(json_of(record, supervisor), media_type="application/json")


@router.delete("/runs/{id}", responses={**_KNOWN, 204: {"description": "removed"}, 409: {"model": Refused}})
async def cancel(record: Known, supervisor: Asked, response: Response, remove: bool = False) -> Any:  # noqa: FBT001, FBT002  (a query's parameter)
    """Cancel a run that is not over. With `remove`, take one that is over away, its folder too."""
    if record.is_over and remove:
        await supervisor.remove(record.id)
        return Response(status_code=204)
    if remove:
        raise HTTPException(409, f"run {record.id} is {record.state}; cancel it first")
    if record.state in {"complete", "failed"}:
        raise HTTPException(409, f"run {record.id} is {record.state}; ?remove=true takes it away, its folder too")
    response.status_code = 200 if record.is_over else 202
    return view_of(await supervisor.cancel(record.id), supervisor)


@router.get(
    "/runs/{id}/events",
    responses={**_KNOWN, 200: {"content": {"text/event-stream": {}}}, 503: {"model": Refused}},
    response_class=StreamingResponse,
)
async def events(record: Known, supervisor: Asked) -> StreamingResponse:
    """Stream what happens to a run: `snapshot` first, then each event by its name, until the run is over."""
    if supervisor.hub.count >= LISTENERS:
        raise HTTPException(503, f"{LISTENERS} clients stream already; ask /runs/{record.id} now and then")
    headers = {"X-Accel-Buffering": "no"}  # nginx would keep events until its buffer is full
    return StreamingResponse(_stream(record.id, supervisor), media_type="text/event-stream", headers=headers)


async def _stream(run: str, supervisor: Supervisor) -> AsyncIterator[str]:
    with supervisor.hub.listening(run) as queue:
        record = supervisor.queue.records.get(run)
        if record is None:
            return
        yield _event("snapshot", view_of(record, supervisor).model_dump(mode="json"))
        while not record.is_over:
            try:
                async with asyncio.timeout(_HEARTBEAT):
                    event = await queue.get()
            except TimeoutError:
                yield ": still here\n\n"
                continue
            if event is None:
                break
            yield _event(event["event"], event)
    if record := supervisor.queue.records.get(run):
        yield _event("end" if record.is_over else "pause", view_of(record, supervisor).model_dump(mode="json"))


def _event(name: str, data: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


@router.head("/runs/{id}/artifacts/{name}", include_in_schema=False)
@router.get(
    "/runs/{id}/artifacts/{name}",
    responses={
        **_KNOWN,
        200: {"content": {"application/octet-stream": {}}},
        206: {"content": {"application/octet-stream": {}}},
        416: {"description": "no such bytes"},
    },
    response_class=StreamingResponse,
)
async def artifact(
    request: Request,
    record: Known,
    supervisor: Asked,
    name: Annotated[str, Path(description=", ".join(FILES), max_length=100)],
) -> Response:
    """Stream a file of a complete run, or of what a failed one has left; or the range of it that `Range` asks for."""
    if name not in FILES:
        raise HTTPException(404, f"there is no file of this name; there are {', '.join(FILES)}")
    return await _file(request, record, supervisor, name)


async def _file(request: Request, record: Record, supervisor: Supervisor, name: str) -> Response:
    if record.state != "complete" and name not in record.left:
        why = f"it has left no {name}" if record.is_over else "its files are there when it is complete"
        raise HTTPException(404, f"run {record.id} is {record.state}; {why}")
    made = (record.result or {}).get("artifacts", {})
    try:
        return await send_file(
            supervisor.folder_of(record.id).root, FILES[name], name, etag=made.get(name, {}).get("sha256"),
            wanted=request.headers.get("range"), condition=request.headers.get("if-range"),
            head=request.method == "HEAD",
        )  # fmt: skip
    except FileNotFoundError:
        raise HTTPException(404, f"run {record.id} has no {name}") from None


@router.get(
    "/runs/{id}/report", responses={**_KNOWN, 200: {"content": {"text/html": {}}}}, response_class=StreamingResponse
)
async def report(request: Request, record: Known, supervisor: Asked) -> Response:
    """Show the report of a complete run, or of a failed one that has left one."""
    response = await _file(request, record, supervisor, REPORT)
    response.headers["Content-Type"] = "text/html; charset=utf-8"
    del response.headers["Content-Disposition"]
    return response


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """Answer while the service is there; the one route that asks for no token."""
    return {"status": "ok"}


@router.get("/metrics", response_class=PlainTextResponse, responses={401: {"model": Refused}})
async def metrics(request: Request, supervisor: Asked) -> PlainTextResponse:
    """Tell the service in numbers, as Prometheus reads them."""
    found: Metrics = request.app.state.metrics
    return PlainTextResponse(found.text(supervisor), media_type="text/plain; version=0.0.4; charset=utf-8")


def faults_of(errors: list[FaultError] | list[dict[str, Any]]) -> JSONResponse:
    """Return 422 with the fields at fault; never what was sent, which may hold credentials."""
    found = [error.as_dict() if isinstance(error, FaultError) else _bare(error) for error in errors]
    return JSONResponse({"detail": found}, 422)


def _bare(error: dict[str, Any]) -> dict[str, Any]:
    message = str(error["msg"]).removeprefix("Value error, ")
    return {"loc": list(error["loc"]), "msg": message, "type": error["type"]}
