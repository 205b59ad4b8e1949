"""Who runs tasks: this process, or Dask. Both are standard executors; nothing else knows the difference."""

import logging
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing import resource_tracker
from typing import Any

from .cluster import ANSWER, ClusterExecutor
from .errors import ClusterError
from .job import Job
from .machine import Machine, cores, measure

ALLOWED_DEATHS = 3
"""Workers of this machine that may die of one task; only what ran on a worker is blamed for its death."""
_LOOK = 2.0  # seconds between two looks at who is there
_CALM = {"distributed.worker.profile.enabled": False, "distributed.admin.tick.interval": "1s"}
"""Dask's settings for workers of this machine: it would look at their stacks 100 times a second and at its event loops
50 times, a tenth of two cores in all (docs/decisions.md)."""
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class SerialExecutor(Executor):
    """Runs each call at once, in this process."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        """Call ``fn`` and return its finished future."""
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001  (raised again by result(), as every executor does)
            future.set_exception(error)
        return future


TaskExecutor = SerialExecutor | ClusterExecutor


def run_all(
    executor: ClusterExecutor, work: Callable[..., Any], tasks: Iterable[Any], note: Callable[[str], None]
) -> Iterator[tuple[Any, Any]]:
    """Yield (task, ``work(task)``) of each task as it ends; whatever ends this early drops the rest."""
    waiting, running = deque(tasks), dict[Future[Any], Any]()
    try:
        while waiting or running:
            slots = executor.slots(note)
            while waiting and len(running) < slots:
                task = waiting.popleft()
                running[executor.submit(work, task)] = task
            done, _ = wait(running, _LOOK, FIRST_COMPLETED)
            for future in done:
                task = running.pop(future)
                yield task, executor.outcome(future, f"{task.stage} {task.name}")
    finally:
        executor.cancel(list(running))


@contextmanager
def executor_of(job: Job) -> Iterator[TaskExecutor]:
    """Give the executor that ``job`` asks for, and free its workers at the end.

    Raises
    ------
    ClusterError
        Where the scheduler does not answer, or a worker has other versions.
    """
    if job.scheduler is None and job.workers == 1:
        yield SerialExecutor()
        return
    import distributed

    connect: Any = distributed.Client  # untyped
    with _quiet():
        if job.scheduler is None:
            with _uninterrupted():
                cluster = _local_cluster(job)
            with cluster, connect(cluster, set_as_default=False) as client:
                executor = ClusterExecutor(client, "this machine")
                with executor.told_of_retries():
                    yield executor
            return
        try:
            client = connect(job.scheduler, timeout=ANSWER, set_as_default=False)
        except OSError as error:
            raise ClusterError(
                f"no Dask scheduler answers at {job.scheduler} within {ANSWER:.0f} s; start one with "
                "`dask scheduler`, or use --workers N on this machine"
            ) from error
        try:
            executor = ClusterExecutor(client, job.scheduler)
            executor.check_workers()
            with executor.told_of_retries():
                yield executor
        finally:
            with suppress(RuntimeError, OSError):  # of a scheduler that was lost: the run says so itself
                client.close()


def measure_for(job: Job, out: str | None) -> Machine:
    """Measure the machine that a job is planned for: this one, with the memory and cores of a scheduler's least worker.

    Workers elsewhere may have other processors, so what multiplies there is theirs to choose.
    """
    here = measure(job.device, out)
    if job.scheduler is None:
        return here
    with executor_of(job) as executor:
        found = executor.machines() if isinstance(executor, ClusterExecutor) else []
    memory = min([here.memory, *(memory for _, memory in found)])
    least = min((count for count, _ in found), default=0)
    return replace(here, memory=memory, workers=len(found), worker_cores=least, kernel="", apart=False)


def _local_cluster(job: Job) -> Any:
    """Return a scheduler and the job's workers, processes of this machine."""
    import dask
    import distributed

    cluster_of: Any = distributed.SpecCluster
    # Dask's own memory limit would kill workers; the plan keeps them inside theirs.
    local = {"host": "127.0.0.1", "dashboard": False}
    worker = {**local, "nthreads": 1, "memory_limit": 0, "silence_logs": logging.CRITICAL}
    workers = {
        index: {"cls": distributed.Nanny, "options": {**worker, "env": environment}}
        for index, environment in enumerate(worker_environments(job.workers, _devices(job)))
    }
    scheduler = {**local, "port": 0, "dashboard_address": "127.0.0.1:0", "allowed_failures": ALLOWED_DEATHS}
    with dask.config.set(_CALM):  # which the workers' processes take over
        return cluster_of(workers=workers, scheduler={"cls": distributed.Scheduler, "options": scheduler})


def worker_environments(workers: int, devices: Sequence[str]) -> list[dict[str, str]]:
    """Return the environment of each worker: its share of the cores, and one device each, in turn."""
    threads = str(max(1, cores() // workers))  # Dask would give each worker one thread to multiply with
    shared = {name: os.environ.get(name, threads) for name in _THREADS}
    if not devices:
        return [shared] * workers
    return [{**shared, "CUDA_VISIBLE_DEVICES": devices[index % len(devices)]} for index in range(workers)]


def _devices(job: Job) -> Sequence[str]:
    """Return the CUDA devices to be shared out; none where the job names one itself, or the CPU."""
    if job.device not in {"auto", "cuda"}:
        return ()
    import torch

    found = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return [name.strip() for name in named.split(",")][:found] if named else [str(index) for index in range(found)]


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back while processes are started: they and those that replace them never see it.

    A terminal sends it to all of them, and each worker would print a traceback; this process is interrupted right
    after the block, and frees its workers. Threads and processes keep the signal mask that they were started with.
    """
    resource_tracker.ensure_running()  # multiprocessing's, whose start would end the holding back
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Dask's log lines: what goes wrong becomes one error, and lost workers are no error."""
    loggers = [logging.getLogger(name) for name in ("distributed", *logging.root.manager.loggerDict)]
    before = [(logger, logger.level) for logger in loggers if logger.name.split(".")[0] == "distributed"]
    for logger, _ in before:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in before:
            logger.setLevel(level)
