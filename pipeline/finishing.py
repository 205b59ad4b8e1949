"""How a stage is noted as finished: once its files are on the disk, which they get to while the next stage computes."""

import copy
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from tilecov.storage.runs import RunFolder


class Finishing:
    """Flushes what stages wrote and notes them in run.json, on a thread of its own.

    A run that is killed before a stage is noted does that stage again, so nothing may be removed that it needs: what
    stages no longer need goes after they are noted.

    Parameters
    ----------
    run : RunFolder
    """

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        self._folders: list[str] = []
        self._superfluous: list[str] = []
        self._under_way: Future[None] | None = None

    def flush(self, folder: str) -> None:
        """Have a folder's files flushed before the stage under way is noted as finished."""
        self._folders.append(folder)

    def remove(self, name: str) -> None:
        """Have a file or folder removed after the stage under way was noted as finished."""
        self._superfluous.append(name)

    def note(self, manifest: Mapping[str, Any]) -> None:
        """Write the manifest as it is now, once the files are on the disk; returns before that, if there are any."""
        self.wait()
        work = copy.deepcopy(dict(manifest)), self._folders, self._superfluous
        self._folders, self._superfluous = [], []
        if not (work[1] and self._run.root.is_local):
            self._finish(*work)
            return
        pool = ThreadPoolExecutor(1, "tilecov-finish")
        self._under_way = pool.submit(self._finish, *work)
        pool.shutdown(wait=False)  # its thread ends with its work

    def wait(self) -> None:
        """Wait until everything was noted; raise what kept it from being noted."""
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.result()

    def _finish(self, manifest: dict[str, Any], folders: list[str], superfluous: list[str]) -> None:
        for folder in folders:
            self._run.folder(folder).sync()
        self._run.save(manifest)
        for name in superfluous:
            self._run.root.remove(name)
