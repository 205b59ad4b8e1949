"""Who runs tasks: this process, or Dask. Both are standard executors; nothing else knows the difference."""

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from typing import Any

from .job import Job


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


@contextmanager
def executor_of(job: Job) -> Iterator[Executor]:
    """Give the executor that ``job`` asks for, and free its workers at the end."""
    if job.scheduler is None and job.workers == 1:
        yield SerialExecutor()
        return
    import distributed

    client_of: Any = distributed.Client  # untyped
    cluster_of: Any = distributed.LocalCluster

    if job.scheduler is not None:
        with client_of(job.scheduler, timeout="30s") as client:
            yield client.get_executor(pure=False, retries=2)
        return
    # Dask's own memory limit would kill workers; the plan keeps them inside theirs.
    cluster = cluster_of(
        n_workers=job.workers, threads_per_worker=1, processes=True, dashboard_address=None, memory_limit=0
    )
    with cluster, client_of(cluster) as client:
        yield client.get_executor(pure=False, retries=2)
