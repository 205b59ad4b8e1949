"""Ceph's S3 gateway in a container, as the stores beside it."""

import contextlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine import Engine
from stores import KEY, SECRET, Store

IMAGE = "tilecov-test-ceph"
BASE = "debian:trixie-slim"
STATE = "{{.State.Status}} {{.State.Health.Status}}"


@contextlib.contextmanager
def ceph(engine: Engine) -> Iterator[Store]:
    """Build the image, run it, and yield it with one bucket."""
    engine.need_base(BASE)
    engine.docker("build", "--quiet", "--tag", IMAGE, str(Path(__file__).parent / "ceph"))
    settings = ("--env", "S3_CREDENTIALS=/credentials", "--env", "S3_BUCKET=bucket")
    container = engine.docker("create", *settings, "--publish", "127.0.0.1::7480", IMAGE)
    try:
        with tempfile.TemporaryDirectory() as folder:
            file = write_credentials(Path(folder, "credentials"))
            engine.docker("cp", str(file), f"{container}:/credentials")
        engine.docker("start", container)
        wait_for(engine, container)
        port = int(engine.docker("port", container, "7480").rpartition(":")[2])
        yield Store(port, "s3://bucket", {"endpoint_url": f"http://127.0.0.1:{port}", "key": KEY, "secret": SECRET})
    finally:
        engine.docker("rm", "--force", "--volumes", container)


def write_credentials(file: Path) -> Path:
    """Write the credentials of all stores as AWS's tools keep them."""
    file.write_text(f"[default]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n")
    file.chmod(0o644)  # containers have users of their own
    return file


def wait_for(engine: Engine, container: str, seconds: float = 120) -> None:
    """Wait until a container says that it is well."""
    until = time.monotonic() + seconds
    while (state := engine.docker("inspect", "--format", STATE, container)) != "running healthy":
        if time.monotonic() > until or not state.startswith("running"):
            said = engine.try_docker("logs", "--tail", "30", container)
            raise RuntimeError(f"{container} is {state}: {said.stdout}{said.stderr}")
        time.sleep(0.3)


@pytest.fixture(scope="module", name="s3")
def ceph_store(engine: Engine) -> Iterator[Store]:
    """Return a Ceph store."""
    with ceph(engine) as store:
        yield store
