"""Fifty jobs, and a service that is killed five times while they run: all are done, each once, and right."""

import hashlib
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import random_images, rows_of, write_shards
from running import Service, serving

from tilecov.pipeline import Job, run
from tilecov.pipeline.service.client import Client
from tilecov.storage.artifacts import TensorFile
from tilecov.storage.objects import Folder

JOBS, KILLS = 50, 5
PAUSES = (4.0, 1.3, 7.1, 2.7, 5.2)
"""Seconds from one start of the service to the next kill."""


def submit(client: Client, data: Path, number: int) -> str:
    """Submit job ``number``: ten datasets, in five ways."""
    job = {"shards": [f"{data}/{number % 10}/*.tar"], "resolution": 8, "rank": [0, 5, "full", 20, 192][number // 10]}
    return str(client.submit(job, key=f"job {number}")["id"])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_fifty_jobs_survive_five_kills(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for at in range(10):
        write_shards(data / str(at), random_images(40 + at, 8, seed=at), 2)
    with serving(tmp_path / "root", [str(data)], ["--concurrent", "3", "--memory", "6GiB"]) as service:
        with ThreadPoolExecutor(8) as pool:
            submitted = pool.map(lambda number: submit(service.client, data, number), range(JOBS))
            killed = [kill_and_start(service, pause) for pause in PAUSES]  # while they are submitted, and run
            runs = list(submitted)
        assert len(set(runs)) == JOBS
        with ThreadPoolExecutor(JOBS) as pool:
            found = list(pool.map(service.client.wait, runs))
        assert [item["state"] for item in found] == ["complete"] * JOBS
        assert len(service.client.runs(1000)) == JOBS
    assert len(killed) == KILLS
    assert sum(killed) > 0  # at least one kill hit runs under way
    check(tmp_path, runs)


def kill_and_start(service: Service, pause: float) -> int:
    """Kill the service after a while and start it again; return how many runs were under way."""
    time.sleep(pause)
    running = len([item for item in service.client.runs(1000) if item["state"] == "running"])
    service.kill()
    service.start()
    return running


def check(folder: Path, runs: list[str]) -> None:
    """Every run was done once, with the digest, the mean and the checksums that its data have."""
    expected = {}
    for at in range(10):
        shards = tuple(str(path) for path in sorted((folder / "data" / str(at)).iterdir()))
        expected[at] = run(Job(shards=shards, resolution=8, rank=0, out=str(folder / f"own {at}")))["moments_digest"]
    assert sorted(path.name for path in (folder / "root" / "runs").glob("[!.]*")) == sorted(runs)
    begun = 0
    for number, name in enumerate(runs):
        place = folder / "root" / "runs" / name
        manifest = json.loads((place / "run.json").read_text())
        record = json.loads((folder / "root" / "queue" / f"{name}.json").read_text())
        begun += record["begun"]
        assert manifest["moments_digest"] == expected[number % 10]
        assert record["result"]["completed"] == manifest["completed"]
        ledger = [json.loads(line) for line in (place / "ledger.jsonl").read_text().splitlines()]
        assert len({line["url"] for line in ledger}) == len(ledger) == 2  # no shard counted twice
        for file, item in manifest.get("artifacts", {}).items():
            assert hashlib.sha256((place / "artifacts" / file).read_bytes()).hexdigest() == item["sha256"]
        if "artifacts" in manifest:
            images = rows_of(random_images(40 + number % 10, 8, seed=number % 10))
            (_, mean), *_ = TensorFile.open(Folder(str(place / "artifacts")), "mean.pt").rows(192)
            np.testing.assert_allclose(mean, images.mean(axis=0) * 2 / 255 - 1, atol=1e-6)
        assert not (place / "lease.json").exists()
        assert not (place / "work").exists()
    assert JOBS < begun <= JOBS + 3 * KILLS  # what a kill cut off was begun again, and nothing else
