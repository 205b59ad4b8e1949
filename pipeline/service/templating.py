"""The templates of the service's pages; they share the report's style."""

from functools import cache
from pathlib import Path
from typing import Any

from fastapi import HTTPException
from fastapi.responses import HTMLResponse, Response
from jinja2 import ChoiceLoader, Environment, FileSystemLoader, StrictUndefined

from ..report.writing import templates

_HERE = Path(__file__).parent
_STATIC = {"page.js": "text/javascript; charset=utf-8"}


@cache
def _environment() -> Environment:
    report = templates()
    found = Environment(
        loader=ChoiceLoader([FileSystemLoader(_HERE / "templates"), report.loader or FileSystemLoader(_HERE)]),
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    found.filters |= report.filters
    return found


def page(name: str, **filled: Any) -> HTMLResponse:
    """Return a page; whatever is filled in is escaped."""
    return HTMLResponse(_environment().get_template(name).render(**filled))


def static(name: str) -> Response:
    """Return a file of the pages; 404 for any other."""
    if name not in _STATIC:
        raise HTTPException(404, "there is no file of this name")
    return Response(
        (_HERE / "static" / name).read_bytes(), media_type=_STATIC[name], headers={"Cache-Control": "no-cache"}
    )
