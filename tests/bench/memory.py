"""The peak memory of this process and of all below it."""

import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

SHARE = 0.02
"""Of the time, that may be spent on looking: /proc walks every page of a process to tell what it shares."""


class PeakMemory:
    """Measures while entered; ``bytes`` afterwards.

    Notes
    -----
    A process alone is measured by the kernel (VmHWM), looked at every tenth of a second, since tilecov starts that
    count anew for each stage. With children, the sum of what each holds, shared pages counted once (PSS), is sampled,
    so that a short peak may be missed.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self.bytes = max(self.bytes, _own_peak())

    def _watch(self) -> None:
        here, pause = psutil.Process(), 0.1
        while not self._stop.wait(pause):
            started = time.perf_counter()
            self.bytes = max(self.bytes, _own_peak())
            children = here.children(recursive=True)
            if children:
                self.bytes = max(self.bytes, sum(map(_held, [here, *children])))
            pause = max(0.1, (time.perf_counter() - started) / SHARE)


def _held(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.Error:  # it has ended
        return 0


def _own_peak() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))
