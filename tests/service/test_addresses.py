"""Addresses that are never connected to, in this process and in those that Dask starts for it."""

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tilecov.pipeline.service.addresses import is_forbidden, is_forbidden_server


@pytest.mark.parametrize(
    ("host", "forbidden"),
    [("169.254.169.254", True), ("169.254.0.1", True), ("fe80::1", True), ("fe80::1%eth0", True),
     ("fd00:ec2::254", True), ("fd20:ce::254", True), ("::ffff:169.254.169.254", True), ("::169.254.169.254", True),
     ("64:ff9b::a9fe:a9fe", True), ("64:ff9b:1::a9fe:a9fe", True), ("2002:a9fe:a9fe::1", True),
     ("64:ff9b::6464:64c8", True), ("100.100.100.200", True), ("0.0.0.0", True), ("::", True), ("127.0.0.1", False),
     ("::1", False), ("10.0.0.1", False), ("64:ff9b::808:808", False), ("2002:808:808::1", False),
     ("2606:4700::a9fe:a9fe", False), ("data.example", False)],
)  # fmt: skip
def test_forbidden_addresses(host: str, forbidden: bool) -> None:
    assert is_forbidden(host) == forbidden


@pytest.mark.parametrize(
    ("host", "forbidden"),
    [("169.254.169.254:80", True), ("2852039166", True), ("0xA9FEA9FE:80", True), ("0251.0376.0251.0376", True),
     ("169.254.43518", True), ("[::ffff:169.254.169.254]:80", True), ("[fe80::1]", True),
     ("metadata.google.internal", True), ("Metadata.Google.Internal.:80", True), ("instance-data", True),
     ("data.example:8080", False), ("127.0.0.1:9000", False), ("[::1]:9000", False), ("2130706433", False),
     ("metadata.example", False), ("bücher.example", False)],
)  # fmt: skip
def test_forbidden_servers(host: str, forbidden: bool) -> None:
    assert is_forbidden_server(host) == forbidden


def run_python(code: str, *arguments: str) -> Any:
    """Run code in a process of its own, since the rule stays for life; return what it prints as JSON."""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


CONNECT = """
import json, socket, sys
def connect(host, port=80):
    try:
        socket.create_connection((host, port), 5).close()
    except PermissionError as error:
        return str(error)
    return "connected"
"""


def test_a_process_connects_to_no_forbidden_address() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        code = (
            CONNECT + "from tilecov.pipeline.service.addresses import forbid_addresses; forbid_addresses()\n"
            f"print(json.dumps([connect('127.0.0.1', {server.getsockname()[1]}), connect('169.254.169.254')]))"
        )
        assert run_python(code) == ["connected", "169.254.169.254 is an address that is never read"]


def test_workers_that_dask_starts_connect_to_none_either(tmp_path: Path) -> None:
    """A web job with two workers: what checks its shards installs the rule here, and there."""
    code = (
        CONNECT + "from tilecov.pipeline.executors import executor_of, run_all\n"
        "from tilecov.pipeline.job import Job\n"
        "from tilecov.pipeline.service.worker import Request, checked_job\n"
        "if __name__ == '__main__':\n"
        "    job = {'shards': ['http://127.0.0.1:1/x.tar'], 'resolution': 8, 'workers': 2}\n"
        "    try: checked_job(Request(job=job, options={}, allow=['http://127.0.0.1:1'], limit=1))\n"
        "    except OSError: pass\n"
        "    with executor_of(Job(**job)) as executor:\n"
        "        found = [executor.submit(connect, host).result() for host in ('169.254.169.254', 'fe80::1')]\n"
        "    print(json.dumps(found))\n"
    )
    assert run_python(code) == [f"{host} is an address that is never read" for host in ("169.254.169.254", "fe80::1")]
