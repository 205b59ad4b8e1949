"""What 200 polling and 20 streaming clients cost a job, and how fast they are answered.

Usage: service_load.py [--rows N] [--resolution R] [--polling N] [--streaming N] [--every SECONDS]

A job runs twice in a service of its own, without clients and with them; the clients are processes beside it, as far as
this machine has cores for them. Prints one JSON object.
"""

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "service"))
from running import Service, serving

from tilecov.pipeline.synth import synth


async def poll(service: Service, run: str, seconds: list[float], every: float) -> None:
    """Ask for a run now and then, on one connection, until it is over."""
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    await asyncio.sleep(random.random() * every)  # as people are, not all at once
    request = f"GET /runs/{run} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
    try:
        while True:
            began = time.perf_counter()
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(next(line.split(b":")[1] for line in head.splitlines() if line.startswith(b"content-length")))
            body = json.loads(await reader.readexactly(length))
            seconds.append(time.perf_counter() - began)
            if body["state"] not in {"queued", "running"}:
                return
            await asyncio.sleep(every)
    finally:
        writer.close()


async def stream(service: Service, run: str) -> int:
    """Listen to a run until it is over; return how many events came."""
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    writer.write(f"GET /runs/{run}/events HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
    try:
        return (await reader.read()).count(b"event: ")
    finally:
        writer.close()


async def load(service: Service, run: str, polling: int, streaming: int, every: float) -> dict[str, Any]:
    """Keep all clients busy until the run is over."""
    seconds: list[float] = []
    pollers = [poll(service, run, seconds, every) for _ in range(polling)]
    heard = await asyncio.gather(*(stream(service, run) for _ in range(streaming)), *pollers)
    cuts = statistics.quantiles(seconds, n=100)
    return {
        "answers": len(seconds), "median_ms": round(1e3 * statistics.median(seconds), 2),
        "p95_ms": round(1e3 * cuts[94], 2), "p99_ms": round(1e3 * cuts[98], 2),
        "worst_ms": round(1e3 * max(seconds), 2), "events_heard_least": min(heard[:streaming]),
    }  # fmt: skip


def cpu_seconds(service: Service) -> float:
    """Return what the web process has computed so far, without its workers."""
    fields = Path(f"/proc/{service.process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def job_seconds(service: Service, run: str) -> float:
    """Return what the stages of a run took."""
    found = service.client.wait(run)
    if found["state"] != "complete":
        raise RuntimeError(found["error"])
    return float(sum(stage["seconds"] for stage in found["result"]["stages"].values()))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, kind, default in (
        ("rows", int, 20_000), ("resolution", int, 32), ("polling", int, 200), ("streaming", int, 20),
        ("every", float, 1.0), ("pairs", int, 3),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=kind, default=default)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        synth(f"{folder}/data/x-%06d.tar", count=given.rows, resolution=given.resolution, per_shard=1000)
        job = {"shards": [f"{folder}/data/*.tar"], "resolution": given.resolution}
        with serving(Path(folder) / "root", [f"{folder}/data"]) as service:
            job_seconds(service, service.client.submit(job)["id"])  # files are in the page cache then
            alone, beside, answers = [], [], []
            for _ in range(given.pairs):
                alone.append(job_seconds(service, service.client.submit(job)["id"]))
                run = service.client.submit(job)["id"]
                before, own = cpu_seconds(service), time.process_time()
                clients = asyncio.run(load(service, run, given.polling, given.streaming, given.every))
                clients["web_cpu_s"] = round(cpu_seconds(service) - before, 2)
                clients["clients_cpu_s"] = round(time.process_time() - own, 2)
                beside.append(job_seconds(service, run))
                answers.append(clients)
            slower = statistics.median(beside) / statistics.median(alone) - 1
            rss = subprocess.run(
                ["ps", "-o", "rss=", "-p", str(service.process.pid)], capture_output=True, text=True, check=True
            )
    found = {
        "job_alone_s": alone, "job_with_clients_s": beside, "slower": round(slower, 4), "clients": answers,
        "web_process_MiB": round(int(rss.stdout) / 1024, 1),
    }  # fmt: skip
    sys.stdout.write(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
