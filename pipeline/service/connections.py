"""Connections of the service: the head of a request has a size and a time, before anybody knows who sends it."""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

HEAD = 1 << 16
"""Bytes that the request line and headers may have."""
HEAD_SECONDS = 15.0
"""Seconds in which they have to come."""


class Connection(HttpToolsProtocol):
    """Closes on a head that is too large or too slow; the guard does so for bodies."""

    _in_head = True
    _head = 0
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._end_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse; a head that goes on and on is refused."""
        was_in_head = self._in_head
        super().data_received(data)
        if was_in_head and self._in_head and not self.transport.is_closing():
            self._head += len(data)
            if self._head > HEAD:
                self.send_400_response(f"The head of a request has {HEAD} bytes at most.")

    def on_message_begin(self) -> None:
        """Begin to wait for a request's head."""
        super().on_message_begin()
        self._await_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; those behind a body in chunks are of no use here, and nothing would bound them."""
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Answer."""
        self._end_head()
        super().on_headers_complete()

    def _await_head(self) -> None:
        self._end_head()
        self._in_head, self._timer = True, self.loop.call_later(HEAD_SECONDS, self._close)

    def _end_head(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._in_head, self._head, self._timer = False, 0, None

    def _close(self, *_: Any) -> None:
        if not self.transport.is_closing():
            why = f"The head of a request has to come within {HEAD_SECONDS:.0f} s.".encode()
            head = f"content-type: text/plain\r\ncontent-length: {len(why)}\r\nconnection: close\r\n\r\n"
            self.transport.write(STATUS_LINE[408] + head.encode() + why)
            self.transport.close()
