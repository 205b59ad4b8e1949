"""Ceph's S3 gateway in a container, as the stores beside it."""

import contextlib
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from engine import Engine
from stores import KEY, SECRET, Store

IMAGE = "tilecov-test-ceph"
BASE = "debian:trixie-slim"


@contextlib.contextmanager
def ceph(engine: Engine) -> Iterator[Store]:
    """Build the image, run it, and yield it with one bucket."""
    engine.need_base(BASE)
    engine.docker("build", "--quiet", "--tag", IMAGE, str(Path(__file__).parent / "ceph"))
    credentials = ("--env", f"S3_KEY={KEY}", "--env", f"S3_SECRET={SECRET}")
    container = engine.docker("run", "--detach", "--publish", "127.0.0.1::7480", *credentials, IMAGE)
    try:
        port = int(engine.docker("port", container, "7480").rpartition(":")[2])
        wait_for_gateway(engine, container, port)
        options = {"endpoint_url": f"http://127.0.0.1:{port}", "key": KEY, "secret": SECRET}
        # s3fs's own mkdir names a location, which Ceph refuses for us-east-1.
        fsspec.filesystem("s3", **options, skip_instance_cache=True).call_s3("create_bucket", Bucket="bucket")
        yield Store(port, "s3://bucket", options)
    finally:
        engine.docker("rm", "--force", "--volumes", container)


def wait_for_gateway(engine: Engine, container: str, port: int, seconds: float = 120) -> None:
    """Wait until the gateway answers."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and engine.docker("inspect", "--format", "{{.State.Running}}", container) == "true":
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=5).close()
            return
        time.sleep(0.3)
    raise RuntimeError(f"Ceph did not come up: {engine.try_docker('logs', '--tail', '30', container).stderr}")


@pytest.fixture(scope="module", name="s3")
def ceph_store(engine: Engine) -> Iterator[Store]:
    """Return a Ceph store."""
    with ceph(engine) as store:
        yield store
