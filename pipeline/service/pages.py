"""The routes that people use in a browser."""
# ruff: noqa: FAST003  (a dependency takes the id of a path)

from typing import Annotated, Any
from urllib.parse import parse_qs

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from starlette.concurrency import run_in_threadpool

from tilecov.storage.runs import REPORT

from ..report.writing import BODY
from .api import Asked, Known
from .guard import COOKIE
from .settings import Settings
from .templating import page, static
from .views import line_of, view_of

_SHOWN = 200  # runs in the list
_MONTH = 30 * 86400

router = APIRouter()

Text = Annotated[str, "HTML"]


@router.get("/")
async def runs(supervisor: Asked, request: Request) -> HTMLResponse:
    """Show all runs, and the form that begins one."""
    settings: Settings = request.app.state.settings
    records = list(reversed(supervisor.queue.in_order()))
    lines = [line_of(record, supervisor) for record in records[:_SHOWN]]
    return page("runs.html", runs=lines, more=len(records) - len(lines), allow=settings.allow, request=request)


@router.get("/runs/{id}/page")
async def run(record: Known, supervisor: Asked, request: Request) -> HTMLResponse:
    """Show a run: its state while it is under way, its report when it is over."""
    report: Any = ""
    if record.state == "complete" or REPORT in record.left:
        report = await run_in_threadpool(_report_of, supervisor, record.id)
    return page("run.html", run=view_of(record, supervisor), report=report, request=request)


def _report_of(supervisor: Any, run: str) -> str:
    """Return the body of the report that the run wrote; it was escaped when it was made."""
    try:
        text = supervisor.folder_of(run).root.read(REPORT).decode()
    except FileNotFoundError:
        return ""
    return str(text.partition(BODY[0])[2].partition(BODY[1])[0])


@router.get("/login")
async def login(request: Request) -> HTMLResponse:
    """Ask for the token."""
    return page("login.html", wrong=False, request=request)


@router.post("/login")
async def take_token(request: Request) -> Response:
    """Take the token, and let the browser keep what it may show instead."""
    settings: Settings = request.app.state.settings
    given = parse_qs((await request.body()).decode("utf-8", "replace"), max_num_fields=5).get("token", [""])[0]
    if not settings.token or not settings.is_token(given.strip()):
        answer = page("login.html", wrong=True, request=request)
        answer.status_code = 401
        return answer
    response = RedirectResponse("/", 303)
    is_safe = "https" in {request.url.scheme, request.headers.get("x-forwarded-proto")}
    response.set_cookie(COOKIE, settings.session, max_age=_MONTH, httponly=True, samesite="strict", secure=is_safe)
    return response


@router.get("/static/{name}")
async def script(name: str) -> Response:
    """Give the script of the pages."""
    return static(name)
