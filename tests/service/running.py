"""A service of its own for a test: started, asked, killed, started again."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn

from tilecov.pipeline.service.client import Client
from tilecov.pipeline.service.serving import config_of
from tilecov.pipeline.service.settings import TOKEN, Settings

SECRET = "a token of the tests that nobody guesses"


def free_port() -> int:
    """Return a port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Service:
    """`tilecov serve` as a process.

    Parameters
    ----------
    root : Path
    allow : sequence of str
    options : sequence of str
        More of its command line.
    token : str
    """

    root: Path
    allow: Sequence[str]
    options: Sequence[str] = ()
    token: str = ""
    port: int = field(default_factory=free_port)
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def client(self) -> Client:
        return Client(self.url, self.token)

    @property
    def log(self) -> Path:
        return self.root.parent / f"{self.root.name}.log"

    def start(self) -> "Service":
        """Start it and wait until it answers."""
        allow = [part for prefix in self.allow for part in ("--allow", prefix)]
        command = [sys.executable, "-m", "tilecov.pipeline.cli", "serve", "--root", str(self.root), *allow]
        environment = {**os.environ, TOKEN: self.token}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--port", str(self.port), *self.options], env=environment, stdout=log, stderr=log
            )
        self.wait()
        return self

    def wait(self) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            assert self.process is not None
            assert self.process.poll() is None, self.log.read_text()
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/healthz", timeout=5):
                return
            time.sleep(0.05)
        raise TimeoutError(self.log.read_text())

    def kill(self) -> None:
        """End it as a power cut would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """End it in order."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.kill()


@contextlib.contextmanager
def serving(root: Path, allow: Sequence[str], options: Sequence[str] = (), token: str = "") -> Iterator[Service]:
    """Give a running service."""
    service = Service(root, allow, options, token)
    try:
        yield service.start()
    finally:
        service.stop()


@contextlib.contextmanager
def serving_here(settings: Settings) -> Iterator[int]:
    """Run the server on a thread of this process, where a test may change its limits; give its port."""
    server = uvicorn.Server(config_of(settings))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        deadline = time.monotonic() + 30
        while not server.started:
            assert thread.is_alive()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield settings.port
    finally:
        server.should_exit = True
        thread.join()
