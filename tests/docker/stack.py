"""The image and the services of docker/compose.yaml, built and started for the tests."""

import contextlib
import json
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import waiting
from engine import Engine

sys.path.insert(0, str(Path(__file__).parents[1] / "servers"))

from cephstore import write_credentials
from stores import KEY, SECRET

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
USER = "12345"
SECRETS = {"credentials": "canary-of-credentials", "token": "canary-of-token", ".env": "CANARY=canary-of-env"}
"""What lies in docker/ beside what git keeps, as on a user's machine: nothing of it may come into an image."""
LONG = 180.0  # seconds after which something that should happen has not
until = partial(waiting.until, seconds=LONG, pause=0.2)


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


def copy_tree(folder: Path) -> Path:
    """Copy what git keeps, and the wheels, to where a test may lay files of its own beside it."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
    for path in filter(Path.is_file, (ROOT / name for name in listed if name)):
        (folder / path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, folder / path.relative_to(ROOT))
    for wheel in (DOCKER / "wheels").glob("*.whl"):
        target = folder / "docker" / "wheels" / wheel.name
        try:
            target.hardlink_to(wheel)
        except OSError:  # another file system
            shutil.copy2(wheel, target)
    return folder


@contextlib.contextmanager
def images(engine: Engine) -> Iterator[dict[str, str]]:
    """Give names of images that no user has, as variables of compose; the images go in the end."""
    need_torch()
    for base in ("python:3.11-slim-bookworm", "debian:trixie-slim"):
        engine.need_base(base)
    name = f"tilecov-test-{uuid.uuid4().hex[:8]}"
    names = {"TILECOV_IMAGE": name, "TILECOV_CUDA_IMAGE": f"{name}:cuda", "STORE_IMAGE": f"{name}-store"}
    try:
        yield names
    finally:
        engine.try_docker("image", "rm", *names.values())


@dataclass(frozen=True)
class Stack:
    """A compose project.

    Parameters
    ----------
    engine : Engine
    project : str
    env : Path
        The .env file.
    tree : Path
        A copy of the repository.
    """

    engine: Engine
    project: str
    env: Path
    tree: Path

    @property
    def image(self) -> str:
        """The image of tilecov."""
        return variables(self.env)["TILECOV_IMAGE"]

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

    def tasks_of(self, container: str) -> int:
        """Return how many tasks the scheduler believes a worker to be at."""
        code = "import distributed, json; print(json.dumps(distributed.Client('tcp://127.0.0.1:8786').processing()))"
        said = json.loads(self.compose("exec", "-T", "scheduler", "python3", "-c", code))
        networks = self.inspect(container)["NetworkSettings"]["Networks"].values()
        here = {network["IPAddress"] for network in networks}
        return sum(len(tasks) for worker, tasks in said.items() if worker.split("/")[2].split(":")[0] in here)

    def end_of(self, container: str) -> str:
        """Wait for a container that must end well; return what it said."""
        code = self.engine.docker("wait", container)
        done = self.engine.try_docker("logs", container)
        assert code == "0", done.stdout + done.stderr
        return done.stdout + done.stderr

    def _command(self) -> list[str]:
        files = ["--file", str(self.tree / "docker" / "compose.yaml"), "--env-file", str(self.env)]
        return ["compose", *files, "--project-name", self.project, "--profile", "store"]


@contextlib.contextmanager
def built(engine: Engine, folder: Path, *services: str) -> Iterator[Stack]:
    """Build the images of services, beside a user's secrets; take all away in the end."""
    with images(engine) as names:
        tree = copy_tree(folder / "tree")
        for name, content in SECRETS.items():
            (tree / "docker" / name).write_text(f"{content}\n")
        stack = Stack(engine, names["TILECOV_IMAGE"], folder / "env", tree)
        credentials = write_credentials(folder / "credentials")
        folder.chmod(0o755)
        stack.set(
            **names, CREDENTIALS=str(credentials), STORE_PORT="0", TILECOV_USER=f"{USER}:{USER}", WORKER_MEMORY="1g"
        )
        try:
            began = time.monotonic()
            stack.compose("build", "--quiet", *services)
            print(f"built in {time.monotonic() - began:.0f} s")  # noqa: T201
            yield stack
        finally:
            profiles = [word for profile in ("job", "service", "gpu") for word in ("--profile", profile)]
            stack.compose(*profiles, "down", "--volumes", "--remove-orphans", "--timeout", "5")


@contextlib.contextmanager
def running(engine: Engine, folder: Path) -> Iterator[Stack]:
    """Build the images, start the store, the scheduler and two workers; take all away in the end."""
    with built(engine, folder, "store", "scheduler") as stack:
        stack.compose("up", "--detach", "--wait", "--no-build", "--scale", "worker=2")
        yield stack
