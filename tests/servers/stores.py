"""Real object stores on the loopback, each started once for all tests that want it."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import pytest
from faultproxy import FaultProxy

KEY, SECRET = "tilecov-key-id", "tilecov-secret-value"


@dataclass(frozen=True)
class Store:
    """A running store.

    Parameters
    ----------
    port : int
    root : str
        URL of an empty bucket.
    options : dict
        For fsspec, talking to the store itself.
    """

    port: int
    root: str
    options: dict[str, Any] = field(repr=False)

    def through(self, port: int) -> dict[str, Any]:
        """Return the options for a proxy in front of the store."""
        return {
            name: value.replace(str(self.port), str(port)) if isinstance(value, str) else value
            for name, value in self.options.items()
        }

    def put(self, folder: Path, prefix: str) -> list[str]:
        """Upload the files of a folder; return their URLs."""
        fs, path = fsspec.core.url_to_fs(f"{self.root}/{prefix}", **self.options)
        files = sorted(folder.iterdir())
        for file in files:
            fs.pipe_file(f"{path}/{file.name}", file.read_bytes())
        return [f"{self.root}/{prefix}/{file.name}" for file in files]


def free_port() -> int:
    """Return a port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def process(command: list[str], log: Path, **settings: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server in a process group of its own; end it with the block."""
    with log.open("wb") as sink:
        server = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT, start_new_session=True, **settings)
        try:
            yield server
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGTERM)
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait()


def wait_for(port: int, server: subprocess.Popen[bytes], log: Path, seconds: float = 60) -> None:
    """Wait until an HTTP server answers, with whatever status."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and server.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=2).close()
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise RuntimeError(f"the server did not come up: {log.read_text()[-2000:]}")


@contextlib.contextmanager
def moto(folder: Path) -> Iterator[Store]:
    """Run moto's server with one bucket."""
    port, log = free_port(), folder / "moto.log"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with process(command, log) as server:
        wait_for(port, server, log)
        options = {"endpoint_url": f"http://127.0.0.1:{port}", "key": KEY, "secret": SECRET}
        fsspec.filesystem("s3", **options, skip_instance_cache=True).call_s3("create_bucket", Bucket="bucket")
        yield Store(port, "s3://bucket", options)


@pytest.fixture(scope="module", name="s3")
def s3_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """Return an S3 store of the package moto."""
    with moto(tmp_path_factory.mktemp("moto")) as store:
        yield store


@pytest.fixture(name="proxy")
def s3_proxy(s3: Store) -> Iterator[FaultProxy]:
    """Return a proxy in front of the S3 store that as yet does no harm."""
    with FaultProxy(s3.port).running() as proxy:
        yield proxy
