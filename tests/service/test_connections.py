"""What anybody can do to a connection before a request is whole."""

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import Service, free_port, serving, serving_here

from tilecov.pipeline.service import connections, guard
from tilecov.pipeline.service import serving as server
from tilecov.pipeline.service.settings import Settings


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder: Path = tmp_path_factory.mktemp("connections")
    with serving(folder / "root", [str(folder)]) as found:
        yield found


def talk(service: Service | int, *pieces: bytes) -> bytes:
    """Send pieces to a service or port; return all that is answered until the other side closes."""
    answer, port = b"", service if isinstance(service, int) else service.port
    with socket.create_connection(("127.0.0.1", port), timeout=60) as line:
        try:
            for piece in pieces:
                line.sendall(piece)
            while found := line.recv(1 << 16):
                answer += found
        except ConnectionError:  # closed while we still wrote
            pass
    return answer


@pytest.mark.parametrize(
    "piece", [b"x" * 1000, b"x" * 1000 + b": y\r\n", b"x: " + b"y" * 997 + b"\r\n"], ids=["name", "names", "values"]
)
def test_an_endless_head_is_refused(running: Service, piece: bytes) -> None:
    pieces = [piece] * 3000
    answer = talk(running, b"GET /runs HTTP/1.1\r\nHost: 127.0.0.1\r\n", *pieces, b"\r\n\r\n")
    assert b" 200 " not in answer
    assert talk(running, b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n").endswith(b"}")


def test_a_request_in_small_pieces_is_answered(running: Service) -> None:
    whole = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
    assert talk(running, *(whole[at : at + 1] for at in range(len(whole)))).startswith(b"HTTP/1.1 200 ")


def test_trailers_are_no_headers(running: Service) -> None:
    head = b"POST /plan HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nConnection: close\r\n"
    body = b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n" + b"Origin: http://elsewhere\r\n" * 100 + b"\r\n"
    assert talk(running, head + body).startswith(b"HTTP/1.1 422 ")


@pytest.fixture
def here(tmp_path: Path) -> Settings:
    return Settings(str(tmp_path / "root"), port=free_port())


HEALTH = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"


def test_a_head_that_does_not_come_is_not_waited_for(here: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    assert connections.HEAD_SECONDS < 30
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.2)
    with serving_here(here) as port:
        for start in (b"", b"GET /runs HTTP/1.1\r\nHost: 127.0"):
            assert talk(port, start).startswith(b"HTTP/1.1 408 ")
        assert talk(port, HEALTH).startswith(b"HTTP/1.1 200 ")


def test_a_body_that_does_not_come_is_not_waited_for(here: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    assert guard._SLOWEST < 30
    monkeypatch.setattr(guard, "_SLOWEST", 0.2)
    head = b"POST /runs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nConnection: close\r\n"
    with serving_here(here) as port:
        for body in (b"Content-Length: 10\r\n\r\n{", b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"):
            answer = talk(port, head + body)
            assert answer.startswith(b"HTTP/1.1 408 ")
            assert b"was not there" in answer


def test_only_so_many_connections_are_answered_at_a_time(here: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    assert server._AT_ONCE == 1000
    monkeypatch.setattr(server, "_AT_ONCE", 4)
    with serving_here(here) as port:
        idle = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(4)]
        assert talk(port, HEALTH).startswith(b"HTTP/1.1 503 ")
        for line in idle:
            line.close()
        deadline = time.monotonic() + 10
        while not (answer := talk(port, HEALTH)).startswith(b"HTTP/1.1 200 "):
            assert time.monotonic() < deadline, answer
            time.sleep(0.05)
