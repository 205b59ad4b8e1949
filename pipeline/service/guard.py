"""What stands before every request: who asks, from where, and how much."""

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import urlsplit

from tilecov.storage.redact import redact

from .metrics import Metrics
from .settings import Settings, is_loopback

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

COOKIE = "tilecov"
LARGEST = 1 << 20
"""Bytes of a request's body."""
_SLOWEST = 20.0  # seconds in which a body must be there
_OPEN = {"/healthz", "/login"}
_READS = {"GET", "HEAD", "OPTIONS"}

_HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"same-origin",  # with none at all, browsers would hide where our own forms come from
    b"cross-origin-resource-policy": b"same-origin",
    b"content-security-policy": (
        b"default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; script-src 'self'; connect-src 'self'; "
        b"form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
}

log = logging.getLogger("tilecov.service")


class Refusal(Exception):  # noqa: N818  (an answer, not an error)
    """A request that goes no further.

    Parameters
    ----------
    status : int
    why : str
    """

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status, self.why = status, why


class Guard:
    """Lets a request through to ``app``, or answers it itself.

    Parameters
    ----------
    app : ASGI application
    settings : Settings
    metrics : Metrics
    """

    def __init__(self, app: App, settings: Settings, metrics: Metrics) -> None:
        self.app, self.settings, self.metrics = app, settings, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = {name.lower() for name, _ in message["headers"]}
                added = [(name, value) for name, value in _HEADERS.items() if name not in own]
                if b"cache-control" not in own:
                    added.append((b"cache-control", b"no-store"))
                message["headers"] = [*message["headers"], *added]
            await send(message)

        try:
            headers = _headers_of(scope)
            self._check(scope, headers)
            body = await _read(headers, receive) if scope["method"] not in _READS else None
            await self.app(scope, receive if body is None else _replay(body, receive), watched)
        except Refusal as refusal:
            await _answer(watched, scope, refusal.status, refusal.why)
        except Exception as error:
            log.exception("%s %s: %s", scope["method"], redact(scope["path"]), type(error).__name__)
            if not status:
                await _answer(watched, scope, 500, "an error inside the service; its log has more")
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.request(scope["method"], route, status or 499, time.perf_counter() - began)

    def _check(self, scope: Scope, headers: dict[str, str]) -> None:
        """Raise Refusal where the request may not go on."""
        host = headers.get("host", "")
        name = _name_of(f"//{host}")
        if name is None:
            raise Refusal(400, "the header Host names no host")
        # Without a token, a page anywhere could let its own name point to this machine and read all there is.
        if not self.settings.token and not is_loopback(name):
            raise Refusal(421, "without a token the service answers only to localhost and loopback addresses")
        if scope["method"] not in _READS:
            self._check_origin(headers, host)
            kind = headers.get("content-type", "").partition(";")[0].strip().lower()
            if scope["method"] == "POST" and scope["path"] != "/login" and kind != "application/json":
                raise Refusal(415, "the body must be application/json")
        if self.settings.token and scope["path"] not in _OPEN and not self._is_known(headers):
            raise Refusal(401, "a token is needed: Authorization: Bearer TOKEN")

    @staticmethod
    def _check_origin(headers: dict[str, str], host: str) -> None:
        """Raise Refusal where a browser says that another site's page sends this."""
        origin = headers.get("origin")
        is_elsewhere = origin is not None and (
            _name_of(origin) is None or urlsplit(origin).netloc.lower() != host.lower()
        )
        if is_elsewhere or headers.get("sec-fetch-site", "none") not in {"none", "same-origin"}:
            raise Refusal(403, "the request comes from a page of another site")

    def _is_known(self, headers: dict[str, str]) -> bool:
        kind, _, token = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            return self.settings.is_token(token.strip())
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            return False
        return cookie is not None and self.settings.is_session(cookie.value)


def _headers_of(scope: Scope) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


def _name_of(url: str) -> str | None:
    """Return the host that ``url`` names, empty where it names none; None where it is no URL, such as ``//[``."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return None


async def _read(headers: dict[str, str], receive: Receive) -> bytes:
    """Return the body; Refusal where it is too large or too slow."""
    told = headers.get("content-length", "0")
    if not told.isdigit() or int(told[:20]) > LARGEST:
        raise Refusal(413, f"a body has {LARGEST:,} bytes at most")
    body = bytearray()
    try:
        async with asyncio.timeout(_SLOWEST):
            while True:
                message = await receive()
                body += message.get("body", b"")
                if len(body) > LARGEST:
                    raise Refusal(413, f"a body has {LARGEST:,} bytes at most")
                if not message.get("more_body"):
                    return bytes(body)
    except TimeoutError:
        raise Refusal(408, f"the body was not there within {_SLOWEST:.0f} s") from None


def _replay(body: bytes, receive: Receive) -> Receive:
    told = False

    async def again() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def _answer(send: Send, scope: Scope, status: int, why: str) -> None:
    """Answer with one line; a browser that is unknown is shown where to give the token."""
    wants_page = b"text/html" in dict(scope["headers"]).get(b"accept", b"")
    headers = [(b"content-type", b"application/json")]
    if status == 401:
        headers.append((b"www-authenticate", b'Bearer realm="tilecov"'))
        if wants_page and scope["method"] in _READS:
            status, headers = 303, [(b"location", b"/login")]
    body = json.dumps({"detail": why}).encode()
    headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body if scope["method"] != "HEAD" else b""})
