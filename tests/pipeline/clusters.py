"""Schedulers and workers of Dask as processes, for the tests."""

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import waiting

LONG = 120.0  # seconds after which something that should happen has not
until = partial(waiting.until, seconds=LONG, pause=0.05)
PROCESS = """
import sys
from distributed.cli.dask_{0} import main
if __name__ == "__main__":
    main(sys.argv[1:])
"""


class Cluster:
    """A scheduler and workers, each a process."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.processes = folder, list[subprocess.Popen[bytes]]()
        self.scheduler = self._start("scheduler", "--port", "0")
        self.address = self._address("scheduler", r"Scheduler at:\s+(tcp://\S+)")

    def worker(self, *options: str, beside: str | None = None) -> subprocess.Popen[bytes]:
        """Start a worker; ``beside`` is a folder that its imports are looked for first."""
        return self._start("worker", self.address, "--no-nanny", "--nthreads", "1", *options, beside=beside)

    def wait_for_workers(self, number: int) -> None:
        with self._client() as client:
            client.wait_for_workers(number, timeout=LONG)

    def busy(self) -> list[str]:
        """Return the names of the workers that are at work."""
        with self._client() as client:
            names = {address: worker["name"] for address, worker in client.scheduler_info(-1)["workers"].items()}
            return [str(names[address]) for address, tasks in client.processing().items() if tasks and address in names]

    def tasks(self) -> list[Any]:
        """Return what the workers are given to do."""
        with self._client() as client:
            return [task for tasks in client.processing().values() for task in tasks]

    def _client(self) -> Any:
        import distributed

        return distributed.Client(self.address, set_as_default=False, timeout=LONG)

    def restart_scheduler(self, how: signal.Signals) -> None:
        self.scheduler.send_signal(how)
        self.scheduler.wait()
        self.scheduler = self._start("scheduler", "--port", self.address.rpartition(":")[2])
        self._address("scheduler", r"Scheduler at:\s+(tcp://\S+)")

    def close(self) -> None:
        for process in self.processes:
            with suppress(ProcessLookupError):
                process.kill()
            process.wait()

    def _start(self, kind: str, *arguments: str, beside: str | None = None) -> "subprocess.Popen[bytes]":
        environment = {**os.environ, "OMP_NUM_THREADS": "1"} | ({"PYTHONPATH": beside} if beside else {})
        command = [sys.executable, "-c", PROCESS.format(kind), *arguments, "--host", "127.0.0.1", "--no-dashboard"]
        with (self.folder / f"{kind}.log").open("wb" if kind == "scheduler" else "ab") as log:
            process = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log, env=environment)
        self.processes.append(process)
        return process

    def _address(self, kind: str, pattern: str) -> str:
        log = self.folder / f"{kind}.log"
        found: re.Match[str] = until(lambda: re.search(pattern, log.read_text()))
        return found[1]


def kill(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()
