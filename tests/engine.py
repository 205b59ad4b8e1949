"""A Docker engine for the tests: the one that is there, else one of the project's own, else a reason to skip."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / "docker" / "engine.sh"
UNAVAILABLE = 69  # the script's status where no engine can run


@dataclass(frozen=True)
class Engine:
    """Where containers run.

    Parameters
    ----------
    folder : Path or None
        Of an engine that the tests started; None where one was there, which then has its own ways to base images.
    """

    folder: Path | None
    environment: dict[str, str] = field(repr=False)

    def docker(self, *arguments: str, **settings: Any) -> str:
        """Run ``docker``; return what it prints, or raise with what it says."""
        done = self.try_docker(*arguments, **settings)
        if done.returncode:
            raise RuntimeError(f"docker {' '.join(arguments)}: {done.stdout[-3000:]}{done.stderr[-3000:]}")
        return done.stdout.strip()

    def try_docker(self, *arguments: str, **settings: Any) -> "subprocess.CompletedProcess[str]":
        """Run ``docker``; return how it ended."""
        command = ["docker", *arguments]
        return subprocess.run(command, env=self.environment, text=True, capture_output=True, check=False, **settings)

    def need_base(self, image: str) -> None:
        """Make the stand-in of a base image, where the engine is of our own."""
        if self.folder is not None:
            subprocess.run([SCRIPT, "base", self.folder, image], check=True, capture_output=True)


def is_useful(environment: dict[str, str]) -> bool:
    """Return whether ``docker`` reaches an engine and has compose and buildx."""
    if shutil.which("docker") is None:
        return False
    commands = (["docker", "info"], ["docker", "compose", "version"], ["docker", "buildx", "version"])
    done = (subprocess.run(each, env=environment, capture_output=True, check=False) for each in commands)
    return not any(each.returncode for each in done)


@contextmanager
def any_engine() -> Iterator[Engine]:
    """Yield an engine; skip the test where none can run."""
    here = dict(os.environ)
    if is_useful(here):
        yield Engine(None, here)
        return
    folder = Path(tempfile.mkdtemp(prefix="tilecov-engine-"))  # short: the paths of sockets are limited
    try:
        started = subprocess.run([SCRIPT, "start", folder], capture_output=True, text=True, check=False)
        if started.returncode == UNAVAILABLE:
            pytest.skip(started.stderr.strip().splitlines()[-1])
        assert not started.returncode, started.stderr
        said = subprocess.run([SCRIPT, "env", folder], capture_output=True, text=True, check=True).stdout
        yield Engine(folder, here | dict(word.split("=", 1) for word in said.split()[1:]))
    finally:
        subprocess.run([SCRIPT, "stop", folder], check=True)


@pytest.fixture(scope="session", name="engine")
def docker_engine() -> Iterator[Engine]:
    """Return the engine of all tests."""
    with any_engine() as engine:
        yield engine
