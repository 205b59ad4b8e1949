"""How a stage is noted as finished: once its files are on the disk, which they get to while the next stage computes."""

import copy
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from tilecov.storage.runs import RunFolder


class Finishing:
    """Flushes what stages wrote and notes them in run.json, on a thread; a context manager that waits for it.

    A run that is killed before a stage is noted does that stage again, so nothing may be removed that it needs: what
    stages no longer need goes after they are noted.

    Parameters
    ----------
    run : RunFolder
    """

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        self._folders: list[str] = []
        self._afterwards: list[Callable[[], None]] = []
        self._under_way: Future[None] | None = None

    def flush(self, folder: str) -> None:
        """Have a folder's files flushed before the stage under way is noted as finished."""
        self._folders.append(folder)

    def afterwards(self, remove: Callable[[], None]) -> None:
        """Have what the stage under way no longer needs removed after it was noted as finished."""
        self._afterwards.append(remove)

    def note(self, manifest: Mapping[str, Any]) -> None:
        """Write the manifest as it is now, once the files are on the disk; returns before that, if there are any."""
        self.wait()
        work = copy.deepcopy(dict(manifest)), self._folders, self._afterwards
        self._folders, self._afterwards = [], []
        if not (work[1] and self._run.root.is_local):
            self._finish(*work)
            return
        pool = ThreadPoolExecutor(1, "tilecov-finish")
        self._under_way = pool.submit(self._finish, *work)
        pool.shutdown(wait=False)  # its thread ends with its work

    def wait(self) -> None:
        """Wait until everything was noted; raise what kept it from being noted, once."""
        under_way = self._under_way
        if under_way is None:
            return
        try:
            under_way.result()
        finally:
            if under_way.done():  # else this was interrupted, and is called again
                self._under_way = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait, however often that is interrupted: afterwards another process may work on the run."""
        try:
            if error is None:
                self.wait()
        finally:
            while self._under_way is not None:
                with suppress(Exception, KeyboardInterrupt):  # of two errors the first one is raised
                    self.wait()

    def _finish(self, manifest: dict[str, Any], folders: list[str], afterwards: list[Callable[[], None]]) -> None:
        for folder in folders:
            self._run.folder(folder).sync()
        self._run.save(manifest)
        for remove in afterwards:
            remove()
