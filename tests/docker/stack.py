"""The image and the services of docker/compose.yaml, built and started for the tests."""

import contextlib
import json
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from engine import Engine

sys.path.insert(0, str(Path(__file__).parents[1] / "servers"))

from cephstore import write_credentials
from stores import KEY, SECRET

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
USER = "12345"
LONG = 180.0  # seconds after which something that should happen has not


def variables(file: Path = DOCKER / ".env.example") -> dict[str, str]:
    """Return what an .env file sets; by default, what is documented."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def need_torch() -> None:
    """Lay a CPU wheel of torch into the build context; skip where pip finds none."""
    folder = DOCKER / "wheels"
    wanted = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch=="))
    if list(folder.glob(f"{wanted.replace('==', '-')}+cpu*")):
        return
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, f"{wanted}+cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"pip finds no CPU wheel of {wanted}, and docker/wheels has none")


@dataclass(frozen=True)
class Stack:
    """A compose project.

    Parameters
    ----------
    engine : Engine
    project : str
    env : Path
        The .env file.
    """

    engine: Engine
    project: str
    env: Path

    @property
    def options(self) -> dict[str, Any]:
        """How the tests themselves reach the store."""
        port = self.compose("port", "store", "7480").rpartition(":")[2]
        return {"endpoint_url": f"http://127.0.0.1:{port}", "key": KEY, "secret": SECRET}

    def set(self, **changed: str) -> None:
        """Change lines of the .env file."""
        values = variables() | variables(self.env) | changed
        self.env.write_text("".join(f"{name}={value}\n" for name, value in values.items()))

    def compose(self, *arguments: str) -> str:
        """Run ``docker compose`` and return what it prints."""
        return self.engine.docker(*self._command(), *arguments)

    def try_compose(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run ``docker compose`` and return how it ended."""
        return self.engine.try_docker(*self._command(), *arguments)

    def containers(self, service: str) -> list[str]:
        """Return the containers of a service that run."""
        return self.compose("ps", "--quiet", service).split()

    def inspect(self, container: str) -> dict[str, Any]:
        """Return what the engine says of a container."""
        return dict(json.loads(self.engine.docker("inspect", container))[0])

    def job(self, *arguments: str) -> str:
        """Start a job, and return its container."""
        return self.compose("run", "--detach", "job", *arguments)

    def end_of(self, container: str) -> str:
        """Wait for a container that must end well; return what it said."""
        code = self.engine.docker("wait", container)
        done = self.engine.try_docker("logs", container)
        assert code == "0", done.stdout + done.stderr
        return done.stdout + done.stderr

    def _command(self) -> list[str]:
        files = ["--file", str(DOCKER / "compose.yaml"), "--env-file", str(self.env)]
        return ["compose", *files, "--project-name", self.project, "--profile", "store"]


@contextlib.contextmanager
def running(engine: Engine, folder: Path) -> Iterator[Stack]:
    """Build the images, start the store, the scheduler and two workers; take all away in the end."""
    for base in ("python:3.11-slim-bookworm", "debian:trixie-slim"):
        engine.need_base(base)
    need_torch()
    stack = Stack(engine, f"tilecov-test-{uuid.uuid4().hex[:8]}", folder / "env")
    credentials = write_credentials(folder / "credentials")
    folder.chmod(0o755)
    stack.set(CREDENTIALS=str(credentials), STORE_PORT="0", TILECOV_USER=f"{USER}:{USER}", WORKER_MEMORY="1g")
    try:
        stack.compose("build", "--quiet", "store", "scheduler")
        stack.compose("up", "--detach", "--wait", "--no-build", "--scale", "worker=2")
        yield stack
    finally:
        stack.compose(
            "--profile", "job", "--profile", "service", "down", "--volumes", "--remove-orphans", "--timeout", "5"
        )


def until(what: Callable[[], Any]) -> Any:
    """Wait until ``what`` gives something true; return it."""
    deadline = time.monotonic() + LONG
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.2)
    return found
