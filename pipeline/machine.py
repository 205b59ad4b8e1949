"""What this machine can do: cores, memory, and how fast it multiplies, decodes and writes."""

import ctypes
import gc
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

_CGROUP = Path("/sys/fs/cgroup")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # glibc's numbers for these parameters
_LARGE = 1 << 20
"""Bytes from which on an array goes back to the system when it is freed, where nothing is kept."""
_KEPT_UP_TO = 32 << 20
"""The same where freed arrays are kept: glibc takes no more."""
_KEPT = 32 << 20
"""Bytes at the end of the heap above which those go back to the system all the same."""
_MEASURED = 768
"""Rows and columns of the factors whose products are timed: as fast as larger ones, to a tenth."""
DEFAULT_SHARE = 0.8
"""Part of the machine's memory that a job may use when nobody says otherwise."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Facts that the plan needs.

    Parameters
    ----------
    cores : int
    memory : int
        Bytes that this machine, or its cgroup, has.
    baseline : int
        Bytes resident in a process of the job before it does anything: the interpreter and its imports.
    flops32, flops64 : float
        Floating point operations a second of a large matrix product on the job's device.
    disk : float
        Bytes a second, written to the run folder and flushed.
    disk_free : int or None
        Bytes free where the run folder will be; None where it is no local folder.
    device : str
        The type of the job's device.
    workers : int
        Workers of a scheduler that are there; 0 without one.
    worker_cores : int
        Cores of the least of them; 0 where there are none.
    exact : float
        Operations a second of the device's exact products of uint8 rows; 0 where they were not measured.
    kernel : str
        What multiplies those: int8 or float32; empty where each worker chooses for itself.
    sliced : float
        Operations a second of float32 products by the CPU's int8 matrix units; 0 where there are none.
    apart : bool
        Whether exact products are made in parts, by threads that wait for none: others may work beside them.
    """

    cores: int
    memory: int
    baseline: int
    flops32: float
    flops64: float
    disk: float
    disk_free: int | None = None
    device: str = "cpu"
    workers: int = 0
    exact: float = 0.0
    kernel: str = ""
    sliced: float = 0.0
    apart: bool = False
    worker_cores: int = 0

    @property
    def reading_cores(self) -> int:
        """Cores of a machine that reads: this one, or a scheduler's least worker's."""
        return self.worker_cores or self.cores

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON takes them."""
        return asdict(self)


def cores() -> int:
    """Return the processors that this process may use, a cgroup's quota counted in."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    old = [_read(_CGROUP / "cpu" / f"cpu.cfs_{name}_us") for name in ("quota", "period")]  # of cgroups of version 1
    for quota in (_read(_CGROUP / "cpu.max").split(), old):
        if len(quota) == 2 and all(number.isdigit() for number in quota):
            return max(1, min(allowed, -(-int(quota[0]) // int(quota[1]))))
    return allowed


def memory_bytes() -> int:
    """Return the memory of this machine, or of its cgroup where that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [_read(_CGROUP / "memory.max"), _read(_CGROUP / "memory" / "memory.limit_in_bytes")]
    return min([total, *(int(limit) for limit in limits if limit.isdigit())])


def resident_bytes() -> int:
    """Return the memory that this process holds now."""
    return _status_bytes("VmRSS")


def peak_bytes() -> int:
    """Return the most memory that this process has held since the start or the last ``reset_peak``."""
    return _status_bytes("VmHWM")


def release_memory() -> None:
    """Give memory that was freed back to the system, where the C library can (glibc keeps it otherwise)."""
    gc.collect(1)  # all of torch's objects, which a full one looks at, take longer than a small stage
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def old_objects_at_rest() -> Iterator[None]:
    """Have no garbage collection look at the objects that are there already, of which torch alone has 200,000.

    It holds the interpreter's lock for a fifth of a second on some processors. What the caller froze before
    (`gc.freeze`) stays frozen, and of what is garbage already the young is collected first.
    """
    if gc.get_freeze_count():
        yield
        return
    gc.collect(1)
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def keep_freed(*, keep: bool) -> None:
    """Have the C library (glibc) keep what is freed for the next arrays, or give large arrays back to the system.

    The pages of an array that comes from the system anew are cleared, and a virtual machine may have to ask its host
    for them: a seventh of a job's time. What is kept lies between arrays in use, and no rule says how much it becomes,
    so it is for stages whose arrays are alike, where memory is left.
    """
    parameters = {_M_MMAP_THRESHOLD: _KEPT_UP_TO if keep else _LARGE, _M_TRIM_THRESHOLD: _KEPT if keep else _LARGE}
    if keep:
        parameters[_M_ARENA_MAX] = 1  # else each thread keeps its own
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        for parameter, value in parameters.items():
            library.mallopt(parameter, value)


def reset_peak(*, keep: bool = False) -> None:
    """Start the measurement of the peak anew, where the kernel can (Linux), from what is held now.

    From here on the process keeps what it frees, or does not: see ``keep_freed``.
    """
    keep_freed(keep=keep)
    release_memory()
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:  # another system: the peak is then that of the whole process
        return


def _status_bytes(name: str) -> int:
    for line in _read(Path("/proc/self/status")).splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    import resource  # not on Linux: only the peak is known

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def measure(device: str, folder: str | None = None) -> Machine:
    """Measure this machine in about half a second: products on ``device`` and writes to the local ``folder``."""
    from . import stages  # noqa: F401  (what every process of a job imports counts in its baseline)
    from .device import choose_device, kernel_of

    kernel = kernel_of(device)
    return Machine(
        cores(), memory_bytes(), resident_bytes(), *_product_rates(device), _disk_rate(folder), _disk_free(folder),
        choose_device(device).type, exact=_exact_rate(device), kernel=kernel.name,
        sliced=sliced_rate(), apart=kernel.functions is not None,
    )  # fmt: skip


@cache
def _product_rates(device: str) -> tuple[float, float]:
    """Return operations a second in float32 and float64; measured once a process.

    A CPU's vectors hold half as many float64, so there these are not measured.
    """
    import torch

    from .device import choose_device

    chosen = choose_device(device)

    def rate(dtype: torch.dtype) -> float:
        factor = torch.ones((_MEASURED, _MEASURED), dtype=dtype, device=chosen)
        return 2 * _MEASURED**3 / best_of(2, lambda: float(torch.mm(factor.T, factor)[0, 0]))

    single = rate(torch.float32)
    return single, single / 2 if chosen.type == "cpu" else rate(torch.float64)


@cache
def _exact_rate(device: str) -> float:
    """Return operations a second of exact products; measured once a process."""
    from .device import WHOLE_TILE, kernel_of, rate_of

    return rate_of(kernel_of(device), width=WHOLE_TILE)  # as it was measured when the kernel was chosen


@cache
def sliced_rate() -> float:
    """Return operations a second of float32 products on int8 matrix units, 0 without; measured once a process."""
    import torch

    from .sliced import Multiplier, Slices
    from .units import units

    functions, size = units(), _MEASURED
    if functions is None:
        return 0.0
    factor, total = Slices.empty(size, size), torch.zeros((size, size), dtype=torch.float64)
    factor.scales.fill(0)
    with Multiplier(functions) as multiplier:
        return 2 * size**3 / best_of(2, lambda: multiplier.add(total, factor, factor))


def best_of(times: int, call: Callable[[], Any]) -> float:
    """Return the seconds of the fastest of so many calls, after one that makes ready."""
    call()
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return max(min(seconds), 1e-9)


def _nearest(folder: str) -> Path:
    """Return the folder itself or the nearest one above that exists."""
    path = Path(folder).absolute()
    return next(place for place in (path, *path.parents) if place.is_dir())


def _disk_free(folder: str | None) -> int | None:
    return None if folder is None or "://" in folder else shutil.disk_usage(_nearest(folder)).free


def _disk_rate(folder: str | None, size: int = 1 << 23) -> float:
    """Return bytes a second; a modest guess where the folder is not a local one that exists."""
    if folder is None or "://" in folder:
        return 1e8
    probe = _nearest(folder) / f".tilecov-{os.getpid()}.tmp"
    data = os.urandom(1 << 20) * (size >> 20)
    try:
        start = time.perf_counter()
        with probe.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        return size / (time.perf_counter() - start)
    except OSError:  # a folder that cannot be written says so when the job writes to it
        return 1e8
    finally:
        probe.unlink(missing_ok=True)
