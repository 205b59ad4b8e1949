"""Workers of a Dask scheduler: the same versions everywhere, and a lost worker costs no more than its task."""

import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError, Executor, Future
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from typing import Any
from uuid import uuid4

from tilecov.storage.retries import Retry, tell, telling

from .errors import ClusterError
from .machine import cores, memory_bytes

PATIENCE = 60.0
"""Seconds that a cluster may be without workers."""
ANSWER = 30.0
"""Seconds within which a scheduler must answer."""
_NOTED = ("tilecov", "torch", "zarr", "numpy")
_PAUSE = 0.5  # seconds between two looks for workers
_RESUME = "The same command goes on where it stopped"

# The plan's memory is that of one task in a process, and Dask gives a worker as many tasks as it has threads.
_one_task = threading.Lock()


@cache
def versions_here() -> dict[str, str]:
    """Return the versions that must be the same in every process of a run."""
    python = ".".join(map(str, sys.version_info[:3]))
    return {"python": python, **{name: metadata.version(name) for name in _NOTED}}


def refuse_others(worker: str, wanted: Mapping[str, str], found: Mapping[str, str]) -> None:
    """Raise ClusterError where ``worker`` has other versions than are wanted."""
    differing = [name for name in wanted if wanted[name] != found.get(name)]
    if differing:
        there = ", ".join(f"{name} {found.get(name, 'missing')}" for name in differing)
        here = ", ".join(f"{name} {wanted[name]}" for name in differing)
        raise ClusterError(
            f"worker {worker} has {there}, and this process {here}; install the same versions on both. {_RESUME}"
        )


def _cores_and_memory() -> tuple[int, int]:
    return cores(), memory_bytes()


@dataclass(frozen=True)
class CheckedCall:
    """A call that a worker unpacks and does only where its versions are the client's.

    Parameters
    ----------
    versions : mapping
        Of the client.
    packed : bytes
        The pickled function, arguments and keywords: another version may not even be able to load them.
    topic : str
        Of the events by which the client is told of retries.
    """

    versions: Mapping[str, str]
    packed: bytes
    topic: str

    @classmethod
    def of(cls, topic: str, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> "CheckedCall":
        """Pack a call of this process."""
        from distributed.protocol import pickle

        dumps: Any = pickle.dumps  # untyped
        return cls(versions_here(), dumps((fn, args, kwargs)), topic)

    def __call__(self) -> Any:
        """Check, then do the call."""
        import distributed
        from distributed.protocol import pickle

        get_worker: Any = distributed.get_worker  # untyped
        loads: Any = pickle.loads
        worker = get_worker()
        refuse_others(worker.address, self.versions, versions_here())
        fn, args, kwargs = loads(self.packed)

        def pass_on(retry: Retry) -> None:
            worker.log_event(self.topic, asdict(retry))

        with _one_task, telling(pass_on):
            return fn(*args, **kwargs)


class ClusterExecutor(Executor):
    """Submits to a Dask client; a call runs only where the versions are the same, one at a time in each worker.

    Parameters
    ----------
    client : distributed.Client
    address : str
        Of the scheduler, for messages.
    patience : float
        Seconds to wait for workers where there are none.
    """

    def __init__(self, client: Any, address: str, patience: float = PATIENCE) -> None:
        self._client, self._address, self._patience = client, address, patience
        self._stream = client.scheduler_comm
        self._topic = f"tilecov-{uuid4().hex}"  # a scheduler may serve other jobs too
        # A task that fails would fail again: stores have retries of their own. Lost workers are counted apart.
        self._inner = client.get_executor(pure=False, retries=0)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        """Hand a call to a worker; return its future."""
        future: Future[Any] = self._inner.submit(CheckedCall.of(self._topic, fn, args, kwargs))
        return future

    @contextmanager
    def told_of_retries(self) -> Iterator[None]:
        """Have who listens in this process be told of what the workers try again, while the block runs."""
        # The scheduler adds the worker's address to what the worker says.
        self._client.subscribe_topic(self._topic, lambda event: tell(Retry(**event[1])))
        try:
            yield
        finally:
            if self._is_connected():
                self._client.unsubscribe_topic(self._topic)

    def check_workers(self) -> None:
        """Raise ClusterError where a worker that is there now has other versions, or no tilecov."""
        with self._answering():
            answers = self._client.run(versions_here, on_error="return")
        for worker, found in sorted(answers.items()):
            if isinstance(found, ImportError | AttributeError):
                raise self._not_installed(worker, found)
            if not isinstance(found, Exception):  # a worker that was lost in between harms nobody
                refuse_others(worker, versions_here(), found)

    def machines(self) -> list[tuple[int, int]]:
        """Return the cores and bytes of memory of each worker that is there now: its machine's or its container's."""
        with self._answering():
            answers = self._client.run(_cores_and_memory, on_error="return")
        return [answer for answer in answers.values() if isinstance(answer, tuple)]

    def slots(self, note: Callable[[str], None]) -> int:
        """Return how many workers there are; wait where there are none.

        No more tasks than that are handed out: Dask blames every task that it had queued on a worker for its death.

        Raises
        ------
        ClusterError
            Where no worker comes in time, or the scheduler is lost.
        """
        deadline = time.monotonic() + self._patience
        noted = False
        while not (found := self._count_workers()):
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"the Dask scheduler at {self._address} has had 0 workers for {self._patience:.0f} s and 1 is "
                    f"needed; start some with `dask worker {self._address}`. {_RESUME}"
                )
            if not noted:
                note(f"waiting up to {self._patience:.0f} s for workers of {self._address}")
                noted = True
            time.sleep(_PAUSE)
        return found

    def outcome(self, future: "Future[Any]", name: str) -> Any:
        """Return the result of a finished future of the task ``name``.

        Raises
        ------
        ClusterError
            Where the task could not be done for a reason that is the cluster's.
        """
        import distributed

        killed: Any = distributed.KilledWorker
        try:
            return future.result()
        except CancelledError as error:
            raise self._lost() from error
        except killed as error:
            raise ClusterError(
                f"{name} was tried by {error.allowed_failures + 1} workers and all died of it, the last at "
                f"{error.last_worker.address}; look there for what killed it, often a lack of memory. {_RESUME}"
            ) from error
        except ModuleNotFoundError as error:
            if not (error.name or "").startswith("tilecov"):
                raise
            raise self._not_installed("of " + self._address, error) from error

    def cancel(self, futures: "list[Future[Any]]") -> None:
        """Drop what is not done yet; a lost scheduler has dropped it already."""
        if self._is_connected():
            for future in futures:
                future.cancel()

    def _count_workers(self) -> int:
        if not self._is_connected():
            raise self._lost()
        with self._answering():
            return len(self._client.sync(self._client.scheduler.ncores, callback_timeout=ANSWER))

    def _is_connected(self) -> bool:
        # A scheduler that ends in good order closes the stream, and the client neither notices nor connects again.
        # Where it did, to one that was killed and started again or after a cut, all tasks of before are gone.
        stream = self._client.scheduler_comm
        return bool(self._client.status == "running" and stream is self._stream and not stream.comm.closed())

    @contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:  # time-outs and closed connections among them
            raise self._lost() from error

    def _lost(self) -> ClusterError:
        return ClusterError(
            f"the Dask scheduler at {self._address} was lost, or the connection to it. See that it runs; "
            f"{_RESUME.lower()}"
        )

    def _not_installed(self, worker: str, error: Exception) -> ClusterError:
        return ClusterError(
            f"worker {worker} cannot load tilecov ({error}), and this process has {versions_here()['tilecov']}; "
            f"install the same version there. {_RESUME}"
        )
