"""The application: the routes, what they answer from, and what stands before them."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib import metadata
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response

from tilecov.storage.objects import Folder
from tilecov.storage.redact import redact

from . import api, pages
from .guard import Guard
from .intake import FaultError, Intake, OtherRequestError, QueueFullError
from .known import Known
from .metrics import Metrics
from .records import Queue
from .settings import Settings
from .supervisor import Supervisor

log = logging.getLogger("tilecov.service")


def create_app(settings: Settings) -> FastAPI:
    """Return the service as an ASGI application; its queue is taken up when it starts.

    One application at a time may work on a root: who starts it holds the root's lease (`serve` does).
    """
    metrics = Metrics()
    app = FastAPI(
        title="tilecov", version=metadata.version("tilecov"), lifespan=_lifespan(settings), docs_url=None,
        redoc_url=None, description="Exact mean, covariance and SVD of whole image datasets: jobs in, runs out.",
    )  # fmt: skip
    app.state.settings, app.state.metrics = settings, metrics
    app.include_router(api.router)
    app.include_router(pages.router, include_in_schema=False)
    app.add_middleware(Known, answers=lambda: app.state.supervisor.told)
    app.add_middleware(Guard, settings=settings, metrics=metrics)
    _handle_errors(app)
    if settings.token:
        _describe_token(app)
    return app


def _lifespan(settings: Settings) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        queue = Queue(Folder(settings.root, settings.storage_options))
        for name in await asyncio.to_thread(queue.load):
            log.warning("queue/%s is no record of a run; it is left alone", name)
        supervisor = app.state.supervisor = Supervisor(settings, queue)
        intake = app.state.intake = Intake(settings, supervisor)
        await supervisor.start()
        try:
            yield
        finally:
            await supervisor.close()
            await intake.planner.close()

    return lifespan


def _handle_errors(app: FastAPI) -> None:
    def wrong_fields(_request: Request, error: Exception) -> Response:
        return api.faults_of(list(error.errors()) if isinstance(error, RequestValidationError) else [])

    def fault(_request: Request, error: Exception) -> Response:
        return api.faults_of([error] if isinstance(error, FaultError) else [])

    def answer(status: int) -> Callable[[Request, Exception], Response]:
        return lambda _request, error: JSONResponse({"detail": redact(str(error))}, status)

    def http(_request: Request, error: Exception) -> Response:
        if not isinstance(error, HTTPException):
            raise error
        return JSONResponse({"detail": redact(str(error.detail))}, error.status_code, error.headers)

    app.add_exception_handler(RequestValidationError, wrong_fields)
    app.add_exception_handler(FaultError, fault)
    app.add_exception_handler(QueueFullError, answer(429))
    app.add_exception_handler(OtherRequestError, answer(409))
    app.add_exception_handler(HTTPException, http)


def _describe_token(app: FastAPI) -> None:
    """Say in the OpenAPI description that a token is needed."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        schema = plain()
        schema.setdefault("components", {})["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        schema["security"] = [{"token": []}]
        schema["paths"]["/healthz"]["get"]["security"] = []
        return schema

    app.openapi = openapi  # type: ignore[method-assign]
