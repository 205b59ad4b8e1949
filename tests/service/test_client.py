"""The client against services that are away, and one that means it ill."""

import hashlib
import http.server
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tilecov.pipeline.service.client import Client, ServiceError

DATA = b"an artifact" * 1000
RUN = {
    "state": "complete", "files": ["U.pt", "run.json"],
    "result": {"artifacts": {"U.pt": {"sha256": hashlib.sha256(DATA).hexdigest()}}},
}  # fmt: skip


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tilecov.pipeline.service.client._PAUSE", 0.01)


@contextmanager
def stub(run: dict[str, Any], refuse: Callable[[str], int | None] = lambda _path: None) -> Iterator[str]:
    """Give the URL of a service with one run; ``refuse`` may give another status for a path."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status = refuse(self.path) or 200
            body = DATA if "artifacts" in self.path else json.dumps(run).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("status", [503, 0])
def test_a_fetch_outlasts_a_service_that_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    asked: list[str] = []

    def busy(path: str) -> int | None:
        asked.append(path)
        return status if "artifacts" in path and len(asked) < 4 else None

    with stub(RUN, busy) as url:
        client = Client(url)
        if not status:  # nobody listens for a moment
            refuse_twice(client, monkeypatch)
        paths = client.fetch("x", tmp_path)
    assert [path.read_bytes() for path in paths] == [DATA, DATA]


def refuse_twice(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a client's first two requests for a file go to a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        nowhere = Client(f"http://127.0.0.1:{probe.getsockname()[1]}")
    plain, tries = client._open, []

    def elsewhere(method: str, path: str, *arguments: Any, **settings: Any) -> Any:
        if "artifacts" in path:
            tries.append(path)
        return (nowhere._open if 0 < len(tries) < 3 else plain)(method, path, *arguments, **settings)

    monkeypatch.setattr(client, "_open", elsewhere)


def test_a_fetch_that_is_refused_is_not_tried_again(tmp_path: Path) -> None:
    asked: list[str] = []

    def forbid(path: str) -> int | None:
        asked.append(path)
        return 401 if "artifacts" in path else None

    with stub(RUN, forbid) as url, pytest.raises(ServiceError) as refused:
        Client(url).fetch("x", tmp_path)
    assert refused.value.status == 401
    assert len(asked) == 2


@pytest.mark.parametrize("name", ["../../out.pt", "/nowhere/x.json", "artifacts/U.pt", "U.pt/../../../x.pt", ""])
def test_no_service_chooses_where_its_files_are_written(tmp_path: Path, name: str) -> None:
    files = ["U.pt", name]
    with stub({**RUN, "files": files}) as url, pytest.raises(ValueError, match="which no run has"):
        Client(url).fetch("x", tmp_path / "a" / "b")
    assert list(tmp_path.rglob("*")) == []
