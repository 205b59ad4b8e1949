"""The commands of docker/README.md as they stand there: from nothing to artifacts in a bucket, and to nothing again."""

import json
import re
import subprocess
import uuid
from pathlib import Path
from subprocess import DEVNULL

import pytest
from engine import Engine
from stack import DOCKER, copy_tree, images

from tilecov.storage.objects import Folder

COMMANDS = re.findall(r"^    (.+)$", (DOCKER / "README.md").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.slow
def test_a_stranger_gets_artifacts_with_three_commands(engine: Engine, tmp_path: Path) -> None:
    """Names and the port are the test's, by the shell's environment; no word of the commands is changed."""
    first, second, third, last = COMMANDS[:4]
    project = f"tilecov-test-{uuid.uuid4().hex[:8]}"
    with images(engine) as names:
        folder = copy_tree(tmp_path) / "docker"
        assert not (folder / ".env").exists()
        environment = {**engine.environment, **names, "COMPOSE_PROJECT_NAME": project, "STORE_PORT": "0"}

        def said(command: str) -> str:
            # As a shell does it that has not been told to fail early; its user may have a umask of his own.
            shell = ["bash", "-c", f"umask 022; {command}"]
            done = subprocess.run(
                shell, cwd=folder, env=environment, text=True, stdin=DEVNULL, capture_output=True, check=False
            )
            assert done.returncode == 0, f"{command}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
            return done.stdout.strip()

        try:
            for command in (first, second, third):
                said(command)
            assert len(said("docker compose ps --quiet worker").split()) == 2
            port = said("docker compose --profile store port store 7480").rpartition(":")[2]
            options = {"endpoint_url": f"http://127.0.0.1:{port}", "key": "trial-key", "secret": "trial-secret"}
            run = Folder("s3://tilecov/run", options)
            manifest = json.loads(run.read("run.json"))
            assert (manifest["state"], manifest["dataset"]["samples"]) == ("complete", 5000)
            assert run.names("artifacts")
        finally:
            said(last)
        mine = f"label=com.docker.compose.project={project}"
        assert engine.docker("ps", "--all", "--quiet", "--filter", mine) == ""
        assert engine.docker("network", "ls", "--quiet", "--filter", mine) == ""


def test_every_command_names_services_that_are_there() -> None:
    """Each `up` says how many workers there are to be, or which service it is about."""
    ups = [command for command in COMMANDS if "docker compose" in command and " up " in command]
    assert len(ups) == 2
    assert all("--scale worker=2" in command for command in ups)
    assert [command for command in COMMANDS if command.endswith(" down")] == [COMMANDS[3]]
