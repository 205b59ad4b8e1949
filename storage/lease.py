"""A lease on a run folder: one process works on it, and a dead one does not block it for ever."""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .objects import Folder

NAME = "lease.json"
LIFETIME = 60.0
"""Seconds after which a lease that was not renewed is over."""
RENEWAL = 10.0
"""Seconds between renewals."""


class LeaseHeldError(RuntimeError):
    """Another process holds the lease; the message names it."""


@contextmanager
def lease(folder: Folder, lifetime: float = LIFETIME, renewal: float = RENEWAL) -> Iterator[None]:
    """Hold the lease on ``folder`` while the block runs.

    A lease is over when it was not renewed for ``lifetime`` seconds, or at once where its owner was a process of this
    machine that is gone.

    Raises
    ------
    LeaseHeldError
        Where another process holds it.
    """
    owner = {"id": uuid.uuid4().hex, "host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid())}
    _take(folder, owner, lifetime)
    stop = threading.Event()
    thread = threading.Thread(target=_keep, args=(folder, owner, lifetime, renewal, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        if (_read(folder) or {}).get("id") == owner["id"]:
            folder.remove(NAME)


def _take(folder: Folder, owner: dict[str, Any], lifetime: float) -> None:
    content = _content(owner, lifetime)
    for _ in range(3):  # another process may take an expired lease between our look and our try
        try:
            folder.create(NAME, content)
        except FileExistsError:
            _remove_if_over(folder)
        else:
            return
    raise LeaseHeldError(
        f"another process has just begun to work on {folder.url}; wait for it, or choose another --out"
    )


def _remove_if_over(folder: Folder) -> None:
    held = _read(folder)
    if held is None:
        return  # given back since: what is there next is somebody's
    left = held.get("until", 0) - time.time()  # one that cannot be read is nobody's
    if left > 0 and not _is_gone(held):
        raise LeaseHeldError(
            f"process {held['pid']} on {held['host']} works on {folder.url}; wait for it, choose another --out, or, "
            f"if it is gone, try again in {left:.0f} s"
        )
    _take_over(folder, held)


def _take_over(folder: Folder, held: dict[str, Any]) -> None:
    """Remove a lease that is over; of several who see it so, one does, and none removes the lease that follows it."""
    marker = f"{NAME}.{held.get('id', 'damaged')}"
    try:
        folder.create(marker, f"{time.time()} {uuid.uuid4().hex}".encode())
    except FileExistsError:
        with suppress(FileNotFoundError):
            if time.time() - float(folder.read(marker).split()[0]) > LIFETIME:  # who wrote it died at once
                folder.remove(marker)
        return
    try:
        if _read(folder) == held:
            folder.remove(NAME)
    finally:
        folder.remove(marker)


def _is_gone(held: dict[str, Any]) -> bool:
    if held["host"] != socket.gethostname() or not Path("/proc/self").exists():
        return False
    # A container that is started again gives its processes the same numbers.
    started = _started(held["pid"])
    return not started or started != held.get("started", started)


def _started(pid: int) -> str:
    """Return when a process of this machine began, in the kernel's ticks since the boot; nothing where it is gone.

    One that has ended and that its parent has not asked after yet (Z), as init may leave an orphan for seconds or a
    container's first process for ever, is gone.
    """
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state in "ZX" else fields[18]


def _keep(folder: Folder, owner: dict[str, Any], lifetime: float, renewal: float, stop: threading.Event) -> None:
    while not stop.wait(renewal):
        with suppress(OSError):  # a store that is away for a moment; the next renewal may pass
            if (_read(folder) or owner)["id"] != owner["id"]:
                return  # taken over; what both write is the same to the bit
            folder.write(NAME, _content(owner, lifetime))


def _content(owner: dict[str, Any], lifetime: float) -> bytes:
    return json.dumps({**owner, "until": time.time() + lifetime}).encode()


def _read(folder: Folder) -> dict[str, Any] | None:
    """Return the lease that is there, None where there is none; one that is damaged says nothing."""
    try:
        return dict(json.loads(folder.read(NAME)))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        return {}
