"""Folders and files on any fsspec URL: read, list, and write all at once or not at all."""

import contextlib
import ctypes
import glob
import io
import os
import posixpath
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, cast

from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from .filesystems import file_system, protocols_of
from .patience import pace_azure
from .redact import redact_url
from .resuming import ResumingStream
from .retries import PRECONDITION_FAILED, T, naming_refusals, retry, status_of
from .versions import tag_of

_WRITE = 2  # of sync_file_range(2): begin, and wait for nothing
_SYNCS = 8
"""Files that are flushed to the disk at a time, which is mostly waiting."""
_SHOWS_UNFINISHED = {"memory", "sftp", "ssh", "ftp", "smb"}
"""Protocols where a file can be seen while it is written; object stores show it when its upload is complete."""


def absolute(url: str) -> str:
    """Return ``url`` with a local path made absolute, so that it means the same from every working directory."""
    if "://" in url and not url.startswith("file://"):
        return url
    return os.path.abspath(Path(url.removeprefix("file://")).expanduser())  # noqa: PTH100  (takes '..' out, follows no link)


@dataclass(frozen=True)
class Folder:
    """A folder on any fsspec URL.

    Parameters
    ----------
    address : str
        A path or an fsspec URL. It may hold a password; ``url`` is what is shown.
    options : mapping
        What fsspec's file system takes (``--storage-options``). May hold credentials, so it is never shown.
    """

    address: str = field(repr=False)
    options: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __repr__(self) -> str:
        return f"Folder({self.url!r})"

    @property
    def url(self) -> str:
        """Where the folder is, without credentials."""
        return redact_url(self.address)

    @cached_property
    def _where(self) -> tuple[Any, str]:
        fs, path = file_system(self.absolute, self.options)
        return fs, path.rstrip("/") or path

    @property
    def fs(self) -> Any:
        """The fsspec file system that the folder lies on."""
        return self._where[0]

    @property
    def absolute(self) -> str:
        """The folder's URL, a local path made absolute: what other processes are told."""
        return absolute(self.address)

    @property
    def is_local(self) -> bool:
        """Whether this is a folder of this machine's file system."""
        return isinstance(self.fs, LocalFileSystem)

    def path(self, name: str = "") -> str:
        """Return the path of ``name`` as the folder's file system writes it."""
        return posixpath.join(self._where[1], name) if name else self._where[1]

    def _ask(self, call: Callable[[], T]) -> T:
        """Return ``call()``, tried again where it fails in passing; a refusal is said with the folder's URL."""
        with naming_refusals(self.url):
            return retry(call)

    def folder(self, name: str) -> "Folder":
        """Return the folder ``name`` inside this one."""
        return Folder(posixpath.join(self.address.rstrip("/") or "/", name), self.options)

    def exists(self, name: str) -> bool:
        """Return whether there is a file or folder ``name``."""
        try:
            self._ask(lambda: self.fs.info(self.path(name)))  # fsspec's exists() calls a busy store's file missing
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def read(self, name: str) -> bytes:
        """Return the bytes of file ``name``; FileNotFoundError where there is none."""
        return cast("bytes", self._ask(lambda: self.fs.cat_file(self.path(name))))

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """Open file ``name`` for reading."""
        if self.is_local:
            with self.fs.open(self.path(name), "rb") as stream:
                yield stream
            return
        self.fs.invalidate_cache()  # what was listed once may have been replaced
        info = self._ask(lambda: self.fs.info(self.path(name)))
        with ResumingStream(self.fs, self.path(name), int(info["size"]), tag_of(info), fresh=True) as stream:
            yield cast("BinaryIO", stream)

    @contextlib.contextmanager
    def writing(self, name: str, *, flush: bool = True) -> Iterator[BinaryIO]:
        """Open file ``name`` for writing; it appears whole when the block ends, and not at all when it raises.

        Local files are written beside their place, flushed to the disk and renamed; object stores show an object only
        when its upload is complete. Without ``flush`` a local file survives a power cut after ``sync`` only.
        """
        if protocols_of(self.fs) & _SHOWS_UNFINISHED:
            with self._writing_beside(name) as stream:
                yield stream
            return
        if not self.is_local:
            stream = self._ask(lambda: self.fs.open(self.path(name), "wb"))
            if hasattr(stream, "container_client"):  # adlfs gives each file a client of its own
                pace_azure(stream.container_client)
            try:
                yield stream
            except BaseException:
                _abandon(stream)
                raise
            stream.close()
            return
        target = Path(self.path(name))
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
        try:
            with beside.open("wb") as stream:
                yield stream
                stream.flush()
                if flush:
                    os.fsync(stream.fileno())
            beside.replace(target)
            if flush:
                _sync(target.parent)
        finally:
            beside.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _writing_beside(self, name: str) -> Iterator[BinaryIO]:
        """Write under another name and move, on servers that show a file while it is written."""
        if isinstance(self.fs, MemoryFileSystem):  # its mv takes names for patterns
            whole = io.BytesIO()
            yield whole
            self.write(name, whole.getvalue())
            return
        beside = self.path(f"{posixpath.dirname(name)}/.{posixpath.basename(name)}.{uuid.uuid4().hex}.tmp".lstrip("/"))
        try:
            with self._ask(lambda: self.fs.open(beside, "wb")) as stream:
                yield stream
            self._ask(lambda: self.fs.mv(beside, self.path(name)))
        finally:
            with contextlib.suppress(FileNotFoundError):
                self.fs.rm_file(beside)

    def write(self, name: str, data: bytes | memoryview) -> None:
        """Write file ``name`` all at once: a reader sees the old bytes or the new ones."""
        if self.is_local:
            with self.writing(name) as stream:
                stream.write(data)
        else:
            self._ask(lambda: self.fs.pipe_file(self.path(name), bytes(data)))

    def _holds(self, name: str, data: bytes) -> bool:
        """Return whether file ``name`` is there and holds ``data``; who has made another may have removed it since."""
        try:
            return self.read(name) == data
        except FileNotFoundError:
            return False

    def create(self, name: str, data: bytes) -> None:
        """Write file ``name`` if there is none; FileExistsError otherwise, also when two writers try at once.

        What two writers write must differ.
        """
        if not self.is_local:
            try:
                self._ask(lambda: self.fs.pipe_file(self.path(name), data, mode="create"))
            except OSError as error:
                if not isinstance(error, FileExistsError) and status_of(error) != PRECONDITION_FAILED:
                    raise
                if not self._holds(name, data):  # else it was made by a try whose answer was lost
                    raise FileExistsError(f"{self.url}/{name} is there already") from error
            return
        target = Path(self.path(name))
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
        try:
            with beside.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.link(beside, target)  # a link, unlike a rename, fails where the name is taken
            _sync(target.parent)
        finally:
            beside.unlink(missing_ok=True)

    def sync(self) -> None:
        """Make all files of a local folder survive a power cut; object stores have done so already."""
        if not self.is_local:
            return
        places = [Path(place, name) for place, _, files in os.walk(self.path()) for name in (*files, "")]
        with ThreadPoolExecutor(_SYNCS, "tilecov-sync") as pool:
            for _ in pool.map(_sync_if_there, places):
                pass

    def names(self, name: str = "") -> list[str]:
        """Return the names of what lies in the folder ``name``, sorted; none where it does not exist."""
        self.fs.invalidate_cache()
        try:
            found = self._ask(lambda: self.fs.ls(self.path(name), detail=False))
        except FileNotFoundError:
            return []
        return sorted(posixpath.basename(path.rstrip("/")) for path in found)

    def remove(self, name: str = "") -> None:
        """Remove file or folder ``name`` with all in it; nothing happens where there is none."""
        with contextlib.suppress(FileNotFoundError):
            path = self.path(name)
            if self.is_local or not glob.has_magic(path):
                self._ask(lambda: self.fs.rm(path, recursive=True))
                return
            for file in self._ask(lambda: self.fs.find(path)):  # elsewhere rm takes the name for a pattern
                self._ask(lambda file=file: self.fs.rm_file(file))  # type: ignore[misc]


def _abandon(stream: Any) -> None:
    """Give an upload up; closing it, also by the garbage collector, would complete it."""
    if hasattr(stream, "discard"):
        stream.discard()
    stream.closed = True


def begin_flush(stream: BinaryIO) -> None:
    """Have the system begin to write a local file's bytes to the disk (Linux), so that flushing it later is short."""
    with contextlib.suppress(OSError, AttributeError):  # no file, or another system
        ctypes.CDLL(None).sync_file_range(stream.fileno(), ctypes.c_int64(0), ctypes.c_int64(0), _WRITE)


def _sync_if_there(path: Path) -> None:
    """Flush a file; one that another process was writing beside its place, and has moved there, is its own to flush."""
    with contextlib.suppress(FileNotFoundError):
        _sync(path)


def _sync(path: Path) -> None:
    """Make a file, or the names in a folder, survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
