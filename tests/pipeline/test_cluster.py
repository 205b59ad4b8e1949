"""Dask's workers come late, die and are replaced, schedulers go: the digest is the same, or one clear line says why."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dask
import pytest
from clusters import LONG, Cluster, kill, until
from conftest import random_images, write_shards

from tilecov.pipeline import Job, plan, run
from tilecov.pipeline.cli import run_safely
from tilecov.pipeline.cluster import ClusterExecutor, refuse_others, versions_here
from tilecov.pipeline.errors import ClusterError
from tilecov.pipeline.executors import executor_of, run_all
from tilecov.pipeline.machine import cores, memory_bytes
from tilecov.pipeline.observer import Observer
from tilecov.storage.retries import Retry, retry, telling

machines = ClusterExecutor.machines
INTERRUPTIBLE = ("env", "--default-signal=INT", sys.executable)
"""Python as a terminal starts it: what a script starts behind it ignores Ctrl-C."""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    started = Cluster(tmp_path)
    yield started
    started.close()


def job_of(tmp_path: Path, count: int = 24, resolution: int = 4, shards: int = 6, **options: Any) -> Job:
    """Return a job over shards that are there once a test."""
    folder = tmp_path / "shards"
    if not folder.exists():
        write_shards(folder, random_images(count, resolution), shards)
    paths = tuple(sorted(str(path) for path in folder.glob("*.tar")))
    return Job(**{"shards": paths, "resolution": resolution, "rank": 0, "out": str(tmp_path / "run"), **options})


def large_job(tmp_path: Path, **options: Any) -> Job:
    """Return a job of 12 units of some seconds of work in all: 2000 products of 3072 columns with little in each."""
    return job_of(tmp_path, 1200, 32, 12, block_rows=8, decode_threads=1, memory="4GiB", workers=12, **options)


def expected_of(tmp_path: Path, job: Job) -> str:
    alone = job.model_copy(update={"out": str(tmp_path / "alone"), "scheduler": None, "workers": 1, "block_rows": None})
    return str(run(alone)["moments_digest"])


class Watch(Observer):
    """Calls ``action`` once, as soon as ``number`` shards are done."""

    def __init__(self, number: int, action: Callable[[], Any]) -> None:
        self.left, self.actions, self.notes = number, [action], list[str]()

    def note(self, text: str) -> None:
        self.notes.append(text)

    def advance(self, done: int, rows: int = 0) -> None:
        self.left -= done
        if self.left <= 0 and self.actions:
            self.actions.pop()()


def test_workers_that_come_late_are_waited_for_and_used(tmp_path: Path, cluster: Cluster) -> None:
    class Starting(Observer):
        def note(self, text: str) -> None:
            notes.append(text)
            cluster.worker()

    notes: list[str] = []
    job = job_of(tmp_path, scheduler=cluster.address)
    assert run(job, Starting())["moments_digest"] == expected_of(tmp_path, job)
    assert notes == [f"waiting up to 60 s for workers of {cluster.address}"]


def test_the_plan_is_for_the_cores_and_memory_of_the_least_worker(
    tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.worker()
    cluster.worker()
    cluster.wait_for_workers(2)
    here = cores(), memory_bytes()
    monkeypatch.setattr(ClusterExecutor, "machines", lambda self: [*machines(self)[1:], (5, 2 << 30), (7, 3 << 30)])
    planned = plan(job_of(tmp_path, scheduler=cluster.address))
    assert planned.memory == int(0.8 * min(2 << 30, here[1]))
    assert planned.decode_threads == min(5, here[0])
    assert len(planned.units) == 3
    monkeypatch.setattr(ClusterExecutor, "machines", lambda self: [(3 * here[0], 2 << 30)] * len(machines(self)))
    assert plan(job_of(tmp_path, scheduler=cluster.address)).decode_threads == 3 * here[0]  # as many as they have


def test_without_workers_it_ends_with_one_line(tmp_path: Path, cluster: Cluster) -> None:
    import distributed

    notes: list[str] = []
    with distributed.Client(cluster.address, set_as_default=False) as client:
        executor = ClusterExecutor(client, cluster.address, patience=0.1)
        with pytest.raises(ClusterError, match=rf"{cluster.address} has had 0 workers for .* and 1 is needed"):
            executor.slots(notes.append)
    assert len(notes) == 1


def test_other_versions_are_refused_by_name() -> None:
    here = versions_here()
    refuse_others("tcp://there", here, dict(here))
    there = {name: version for name, version in here.items() if name != "zarr"} | {"torch": "1.0"}
    with pytest.raises(ClusterError) as caught:
        refuse_others("tcp://there", here, there)
    assert str(caught.value).startswith(
        f"worker tcp://there has torch 1.0, zarr missing, and this process torch {here['torch']}, zarr {here['zarr']};"
    )
    assert "install the same versions" in str(caught.value)


def test_no_scheduler_is_one_line_and_exit_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tilecov.pipeline import executors

    monkeypatch.setattr(executors, "ANSWER", 0.2)
    job = job_of(tmp_path)
    command = ["run", *job.shards, "--resolution", "4", "--out", str(job.out), "--quiet"]
    assert run_safely([*command, "--scheduler", "tcp://127.0.0.1:1"]) == 1
    assert capsys.readouterr().err == (
        "tilecov: no Dask scheduler answers at tcp://127.0.0.1:1 within 0 s; start one with `dask scheduler`, or use "
        "--workers N on this machine\n"
    )


def other_versions(folder: Path) -> str:
    """Return a folder whose imports come first and make zarr another version."""
    there = folder / "other" / "zarr-0.0.1.dist-info"
    there.mkdir(parents=True)
    (there / "METADATA").write_text("Metadata-Version: 2.1\nName: zarr\nVersion: 0.0.1\n")
    return str(there.parent)


@pytest.mark.slow
def test_a_worker_of_other_versions_is_refused_at_the_start(
    tmp_path: Path, cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.worker()
    cluster.worker(beside=other_versions(tmp_path))
    cluster.wait_for_workers(2)
    job = job_of(tmp_path)
    command = ["run", *job.shards, "--resolution", "4", "--out", str(job.out), "--quiet"]
    assert run_safely([*command, "--scheduler", cluster.address]) == 1
    said = capsys.readouterr().err
    assert re.fullmatch(r"tilecov: worker tcp://\S+ has zarr 0\.0\.1, and this process zarr \S+; install .*\n", said)


@pytest.mark.slow
def test_a_late_worker_of_other_versions_does_nothing(tmp_path: Path, cluster: Cluster) -> None:
    cluster.worker()
    cluster.wait_for_workers(1)
    job = large_job(tmp_path, scheduler=cluster.address)
    other = other_versions(tmp_path)
    with pytest.raises(ClusterError, match=r"worker tcp://\S+ has zarr 0\.0\.1, and this process"):
        run(job, Watch(1, lambda: [cluster.worker(beside=other), cluster.wait_for_workers(2)]))
    last = cluster.processes[-1]
    kill(last)
    assert run(job)["moments_digest"] == expected_of(tmp_path, job)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["resident", "staged"])
def test_a_worker_killed_in_mid_unit_costs_its_unit(tmp_path: Path, cluster: Cluster, strategy: str) -> None:
    job = large_job(tmp_path, scheduler=cluster.address, strategy=strategy)
    workers = {str(number): cluster.worker("--name", str(number)) for number in range(3)}
    cluster.wait_for_workers(3)

    def freeze() -> None:
        for worker in workers.values():  # so that the units which are under way, or given to them next, stay there
            worker.send_signal(signal.SIGSTOP)
        killing.start()

    def kill_and_replace() -> None:
        try:
            kill(workers[until(cluster.busy)[0]])
            cluster.worker("--name", "late")
        finally:
            for worker in workers.values():
                worker.send_signal(signal.SIGCONT)

    # Beside the run, which gives nobody anything to do while it waits for its observer.
    killing = threading.Thread(target=kill_and_replace)
    manifest = run(job, Watch(2, freeze))
    killing.join()
    assert [process.poll() for process in workers.values()].count(-signal.SIGKILL) == 1
    assert manifest["moments_digest"] == expected_of(tmp_path, job)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_lost_scheduler_ends_the_run_and_the_same_command_resumes(
    tmp_path: Path, cluster: Cluster, how: signal.Signals
) -> None:
    cluster.worker()
    cluster.wait_for_workers(1)
    job = large_job(tmp_path, scheduler=cluster.address)
    with pytest.raises(ClusterError, match=rf"{cluster.address} was lost.*the same command goes on"):
        run(job, Watch(2, lambda: cluster.restart_scheduler(how)))
    cluster.worker()
    read: list[int] = []
    watch = Watch(1, lambda: read.append(watch.left))
    assert run(job, watch)["moments_digest"] == expected_of(tmp_path, job)
    assert read[0] <= -1  # what was committed before counts: two shards at least at once


@pytest.mark.slow
def test_a_scheduler_that_was_started_again_is_another(tmp_path: Path, cluster: Cluster) -> None:
    import distributed

    with distributed.Client(cluster.address, set_as_default=False, timeout=LONG) as client:
        before: Any = client.scheduler_comm
        executor = ClusterExecutor(client, cluster.address)
        cluster.restart_scheduler(signal.SIGKILL)
        until(lambda: client.status == "running" and client.scheduler_comm not in {None, before})
        cluster.worker()
        with pytest.raises(ClusterError, match=rf"{cluster.address} was lost.*the same command goes on"):
            executor.slots(print)


@pytest.mark.slow
def test_a_task_that_kills_every_worker_is_named(tmp_path: Path) -> None:
    job = Job(shards=("x.tar",), resolution=4, workers=2)
    deadly = SimpleNamespace(stage="deadly", name="7")
    with executor_of(job) as executor:
        assert isinstance(executor, ClusterExecutor)
        with pytest.raises(ClusterError, match="deadly 7 was tried by 4 workers and all died"):
            list(run_all(executor, lambda task: os._exit(1), [deadly], print))


@pytest.mark.slow
def test_ctrl_c_frees_the_workers_of_a_scheduler(tmp_path: Path, cluster: Cluster) -> None:
    job = large_job(tmp_path)
    cluster.worker()
    where = ["--scheduler", cluster.address]
    options = ["--resolution", "32", "--rank", "0", "--block-rows", "8", "--out", str(job.out), "--quiet"]
    command = [*INTERRUPTIBLE, "-m", "tilecov.pipeline.cli", "run", *job.shards, *options, *where]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)
    until(lambda: list((tmp_path / "run" / "work").rglob("*.json")))
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    said = process.communicate(timeout=LONG)[1].decode()
    assert said == "tilecov: interrupted; the same command goes on where it stopped\n"
    assert process.returncode == 130
    until(lambda: not cluster.tasks())
    assert cluster.processes[-1].poll() is None
    assert run(job)["moments_digest"] == expected_of(tmp_path, job)


@pytest.mark.slow
def test_ctrl_c_frees_the_workers_of_this_machine(tmp_path: Path) -> None:
    job = large_job(tmp_path)
    options = ["--resolution", "32", "--rank", "0", "--block-rows", "8", "--out", str(job.out), "--workers", "3"]
    command = [*INTERRUPTIBLE, "-m", "tilecov.pipeline.cli", "run", *job.shards, *options, "--log", "json"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True, text=True) as process:
        assert process.stderr is not None
        events = [json.loads(process.stderr.readline())["event"] for _ in range(2)]
        time.sleep(1)  # the workers are amid their units
        os.killpg(process.pid, signal.SIGINT)
        rest = [json.loads(line) for line in process.stderr]  # to its end: the workers hold it too, and have ended
    assert [*events, *(event["event"] for event in rest)] == ["plan", "stage_started", "run_failed"]
    assert rest[-1]["error"] == "interrupted; the same command goes on where it stopped"
    assert process.returncode == 130
    assert run(job)["moments_digest"] == expected_of(tmp_path, job)


@pytest.mark.slow
def test_a_frozen_scheduler_ends_the_run(tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tilecov.pipeline.cluster.ANSWER", 2.0)
    cluster.worker()
    cluster.wait_for_workers(1)
    job = large_job(tmp_path, scheduler=cluster.address)
    begun = time.monotonic()
    with pytest.raises(ClusterError, match=rf"{cluster.address} was lost.*the same command goes on"):
        run(job, Watch(2, lambda: cluster.scheduler.send_signal(signal.SIGSTOP)))
    assert time.monotonic() - begun < LONG
    cluster.scheduler.send_signal(signal.SIGCONT)
    assert run(job)["moments_digest"] == expected_of(tmp_path, job)


def refused_once(task: Any) -> str:
    """Do a task whose store is busy at first."""
    tries = []

    def busy() -> str:
        tries.append(task)
        if len(tries) < 2:
            raise ConnectionResetError(104, "reset for https://h/x?X-Amz-Signature=hunter2hunter2")
        return "done"

    return retry(busy)


def test_retries_of_workers_are_told_here(tmp_path: Path) -> None:
    told: list[Retry] = []
    job = Job(shards=("x.tar",), resolution=4, workers=2)
    tasks = [SimpleNamespace(stage="busy", name=str(number)) for number in range(3)]
    with telling(told.append), executor_of(job) as executor:
        assert isinstance(executor, ClusterExecutor)
        assert [found for _, found in run_all(executor, refused_once, tasks, print)] == ["done"] * 3
        until(lambda: len(told) == 3)
    assert {(retry.attempt, retry.worker[:6]) for retry in told} == {(1, "tcp://")}
    assert all("reset" in retry.error and "hunter2" not in retry.error for retry in told)


def settings_there(task: Any) -> tuple[Any, ...]:
    return tuple(dask.config.get(name) for name in task.names)


def test_workers_of_this_machine_are_not_watched_a_hundred_times_a_second(tmp_path: Path) -> None:
    job = Job(shards=("x.tar",), resolution=4, workers=2)
    names = ("distributed.worker.profile.enabled", "distributed.admin.tick.interval")
    before, tasks = [dask.config.get(name) for name in names], [SimpleNamespace(stage="look", name="0", names=names)]
    with executor_of(job) as executor:
        assert isinstance(executor, ClusterExecutor)
        assert [found for _, found in run_all(executor, settings_there, tasks, print)] == [(False, "1s")]
    assert [dask.config.get(name) for name in names] == before
