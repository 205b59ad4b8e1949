"""A proxy in front of an HTTP store that does what networks and busy stores do."""

import asyncio
import contextlib
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

_SLOW_DOWN = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Reduce your request rate</Message></Error>"
_BUSY = (
    b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s"
    % (len(_SLOW_DOWN), _SLOW_DOWN)
)
_PIECE = 1 << 16


@dataclass(frozen=True)
class Faults:
    """What goes wrong, each in this share of the requests.

    Parameters
    ----------
    busy : float
        Share answered with 503.
    reset : float
        Share whose connection is reset before an answer.
    cut : float
        Share whose answer breaks off somewhere, half of them by a reset and half by an orderly end.
    latency : float
        Seconds before each answer.
    window : int
        Bytes that a connection may have on their way at a time, as TCP has: it carries so many in each ``latency``; 0
        for no limit.
    rate : float
        Bytes a second of all answers together; 0 for no limit.
    """

    busy: float = 0
    reset: float = 0
    cut: float = 0
    latency: float = 0
    window: int = 0
    rate: float = 0


class FaultProxy:
    """Serves on a free port of the loopback and passes each request on, or does not.

    Parameters
    ----------
    upstream : int
        Port of the store.
    """

    def __init__(self, upstream: int) -> None:
        self.faults = Faults()
        self.requests: list[str] = []
        self.port = 0
        self._upstream = upstream
        self._random = random.Random(0)
        self._writers: set[asyncio.StreamWriter] = set()
        self._dark_until = 0.0
        self._free_at = 0.0
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="fault-proxy", daemon=True)

    @property
    def url(self) -> str:
        """The address that a client is given."""
        return f"http://127.0.0.1:{self.port}"

    def go_dark(self, seconds: float) -> None:
        """Let no byte through for so long, while connections stay open."""
        self._dark_until = time.monotonic() + seconds

    @contextlib.contextmanager
    def running(self) -> Iterator["FaultProxy"]:
        """Serve while the block runs."""
        self._thread.start()
        assert self._ready.wait(10)
        try:
            yield self
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(10)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._handle, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        server.close()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        for writer in self._writers:
            writer.transport.abort()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.run_until_complete(asyncio.sleep(0.01))  # connections close a turn later
        self._loop.close()

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await self._answer(reader, writer)
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request; then the connection is closed, so that each request meets its own fate."""
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
        self.requests.append(lines[0])
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        await self._light()
        draw, faults = self._random.random(), self.faults
        if draw < faults.reset:
            writer.transport.abort()
            return
        if "100-continue" in fields.pop("expect", ""):
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await _body(reader, fields)
        if draw < faults.reset + faults.busy:
            writer.write(_BUSY)
            await writer.drain()
            return
        if faults.latency:
            await asyncio.sleep(faults.latency)
        fields["connection"] = "close"
        request = "\r\n".join([lines[0], *(f"{name}: {value}" for name, value in fields.items())]) + "\r\n\r\n"
        is_cut = draw < faults.reset + faults.busy + faults.cut
        await self._pass_on(request.encode("latin-1") + body, writer, is_cut=is_cut)

    async def _pass_on(self, request: bytes, writer: asyncio.StreamWriter, *, is_cut: bool) -> None:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._upstream)
        self._writers.add(up_writer)
        try:
            up_writer.write(request)
            head = await up_reader.readuntil(b"\r\n\r\n")
            head = b"\r\n".join(line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection:"))
            head = head.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
            writer.write(head)
            length = next(
                (int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if b"content-length" in line), 0
            )
            left = self._random.randrange(length) if is_cut and length else -1
            while piece := await up_reader.read(_PIECE):
                if 0 <= left < len(piece):
                    writer.write(piece[:left])
                    await writer.drain()
                    if self._random.random() < 0.5:
                        writer.transport.abort()
                    return
                left -= len(piece) if left >= 0 else 0
                await self._light()
                await self._wait_turn(len(piece))
                if self.faults.window:
                    await asyncio.sleep(self.faults.latency * len(piece) / self.faults.window)
                writer.write(piece)
                await writer.drain()
        finally:
            up_writer.close()

    async def _light(self) -> None:
        while (left := self._dark_until - time.monotonic()) > 0:  # noqa: ASYNC110  (another thread turns it off)
            await asyncio.sleep(left)

    async def _wait_turn(self, size: int) -> None:
        if self.faults.rate:
            now = time.monotonic()
            self._free_at = max(now, self._free_at) + size / self.faults.rate
            await asyncio.sleep(self._free_at - now)


async def _body(reader: asyncio.StreamReader, fields: dict[str, str]) -> bytes:
    if "chunked" not in fields.get("transfer-encoding", ""):
        return await reader.readexactly(int(fields.get("content-length", 0)))
    parts = []
    while True:
        line = await reader.readline()
        part = await reader.readexactly(int(line.split(b";")[0], 16) + 2)
        parts += [line, part]
        if part == b"\r\n":
            return b"".join(parts)
