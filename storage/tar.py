"""Members of a tar byte stream, walked header by header.

Python's ``tarfile`` builds a large object for each member and reads a few thousand of them a second; image shards hold
many small files, so the walk is done here: one pass, no seeking back, payloads as views into the chunk just read.
Plain members are found in C, where that was compiled; every other one is read by Python.
"""

import io
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

from . import tar_headers as headers
from .tar_headers import BLOCK, TarError

try:
    from ._tarwalk import plain_members
except ImportError:  # pragma: no cover - no compiler was there when tilecov was installed

    def plain_members(data: Any, at: int, /) -> list[tuple[str, int, int]]:  # noqa: ARG001
        """Find none: all members are read by Python, several times as slowly."""
        return []


__all__ = ["CHUNK_BYTES", "Member", "Run", "TarError", "members", "walk"]

CHUNK_BYTES = 1 << 20  # one read of the stream: large enough for object stores, small beside a block of rows


class Member(NamedTuple):
    """One regular file of an archive.

    Attributes
    ----------
    name : str
        Path as stored, UTF-8 with surrogateescape.
    size : int
        Payload in bytes.
    offset : int
        Byte offset of the member's first header, extension headers included (as ``tarfile.TarInfo.offset``).
    data : memoryview or None
        The payload, read-only; None where it was skipped. It may be a slice of a whole chunk, which it keeps alive:
        take ``bytes(data)`` to keep a few members for long.
    refused : str or None
        Why a wanted payload was skipped; None where it was read or not wanted.
    """

    name: str
    size: int
    offset: int
    data: memoryview | None
    refused: str | None = None


def members(
    stream: BinaryIO,
    *,
    max_bytes: int,
    wanted: Callable[[str], bool] | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> Iterator[Member]:
    """Walk the regular files of a tar, in stored order.

    Directories, links and devices are passed over. A member is yielded once all its blocks are there, so what comes
    before a TarError does not depend on ``chunk_bytes``. Memory: two chunks and the largest payload that is read.

    Parameters
    ----------
    stream : binary file
        Only ``read(n)`` is needed; a ``seekable()`` stream skips long payloads by ``seek``.
    max_bytes : int
        A larger payload is not read but refused.
    wanted : callable, optional
        Called once for each file's name; where it returns False the payload is not read. Default: all are wanted.
    chunk_bytes : int
        Bytes of one ``stream.read``.

    Raises
    ------
    TarError
        For a compressed, empty, cut or damaged archive, and for sparse and multi-volume members.
    """
    for found in walk(stream, max_bytes=max_bytes, wanted=wanted, chunk_bytes=chunk_bytes):
        if isinstance(found, Member):
            yield found
        else:
            for index in range(len(found.entries)):
                yield found.member(index, max_bytes=max_bytes, wanted=wanted)
        del found  # lets go of its memory before more is read


class Run(NamedTuple):
    """Plain members that lie one after another in a chunk, whole.

    Attributes
    ----------
    chunk : memoryview
        Read-only.
    base : int
        Where the chunk lies in the stream.
    entries : list of (name, size, at)
        ``at`` is where the member's header begins in the chunk; its payload follows `BLOCK` bytes later.
    """

    chunk: memoryview
    base: int
    entries: list[tuple[str, int, int]]

    def member(self, index: int, *, max_bytes: int, wanted: Callable[[str], bool] | None) -> Member:
        """Return a member, as `members` yields it."""
        name, size, at = self.entries[index]
        if wanted is not None and not wanted(name):
            return Member(name, size, self.base + at, None)
        if size > max_bytes:
            return _too_large(name, size, self.base + at, max_bytes)
        start = at + BLOCK
        return Member(name, size, self.base + at, self.chunk[start : start + size])


def walk(
    stream: BinaryIO, *, max_bytes: int, wanted: Callable[[str], bool] | None, chunk_bytes: int
) -> Iterator[Member | Run]:
    """Walk as `members` does, and yield the plain ones run by run: a run may be read faster than its members."""
    reader, extensions = _Reader(stream, chunk_bytes), headers.Extensions()
    for kind, name, size, offset in _entries(reader, extensions):
        blocks = 0 if kind in headers.BARE else -(-size // BLOCK) * BLOCK
        if kind not in headers.FILES:
            reader.skip(blocks, name)
        elif wanted is not None and not wanted(name):
            reader.skip(blocks, name)
            yield Member(name, size, offset, None)
        elif size > max_bytes:
            reader.skip(blocks, name)
            yield _too_large(name, size, offset, max_bytes)
        else:
            yield Member(name, size, offset, reader.payload(blocks, name)[:size])
        if not extensions.always:  # which would have a say in plain members too
            entries = plain_members(reader.chunk, reader.at)
            if entries:
                _, length, at = entries[-1]
                reader.at = at + BLOCK - (-length // BLOCK) * BLOCK
                yield Run(reader.chunk, reader.base, entries)


def _too_large(name: str, size: int, offset: int, max_bytes: int) -> Member:
    return Member(name, size, offset, None, f"{name!r} has {size} bytes, more than the {max_bytes} allowed.")


def _entries(reader: "_Reader", extensions: headers.Extensions) -> Iterator[tuple[int, str, int, int]]:
    """Yield type, name, size and offset of each member, whose payload the caller must take or skip."""
    while (header := _next_header(reader)) is not None:
        offset = reader.offset - BLOCK
        size = headers.size(header, offset)
        if header[156] in headers.EXTENSIONS:
            extensions.add(header[156], _extension(reader, size, offset), offset)
            continue
        if header[156] in headers.REFUSED:
            what = headers.REFUSED[header[156]]
            raise TarError(f"The member at byte {offset} is {what}, which is refused; pack the shard anew.")
        said, size, offset = extensions.claim(size, offset)
        name = said or headers.name(header)
        yield headers.kind(header, name), name, size, offset
    if extensions.start is not None:
        raise TarError(f"The tar is cut: its end follows the extension header at byte {extensions.start} of a member.")


def _next_header(reader: "_Reader") -> bytes | None:
    """Take the next header and check it; None at the end of the archive."""
    offset = reader.offset
    block = reader.take(BLOCK).tobytes()
    if offset == 0:
        headers.refuse_other_formats(block)
    if len(block) < BLOCK:
        raise _cut(offset + len(block), "the next header", BLOCK, len(block))
    if headers.is_end(block):
        return None
    headers.check(block, offset)
    return block


def _extension(reader: "_Reader", size: int, offset: int) -> bytes:
    """Take the payload of the extension header at byte `offset`."""
    if size > headers.MAX_EXTENSION:
        raise TarError(
            f"The extension header at byte {offset} declares {size} bytes, more than the {headers.MAX_EXTENSION} that "
            "any file name needs: the tar is damaged; fetch or pack the shard again."
        )
    return reader.payload(-(-size // BLOCK) * BLOCK, "(extension header)")[:size].tobytes()


class _Reader:
    """Reads a stream ahead in chunks; `chunk[at]` lies at byte `base + at` of the stream."""

    __slots__ = ("at", "base", "chunk", "chunk_bytes", "seekable", "stream")

    def __init__(self, stream: BinaryIO, chunk_bytes: int) -> None:
        if chunk_bytes < 1:
            raise ValueError(f"chunk_bytes is {chunk_bytes}; it must be at least 1.")
        self.stream, self.chunk_bytes = stream, chunk_bytes
        self.seekable = bool(getattr(stream, "seekable", bool)())
        self.chunk, self.at, self.base = memoryview(b""), 0, 0

    @property
    def offset(self) -> int:
        """Where in the stream the next byte lies."""
        return self.base + self.at

    def take(self, count: int) -> memoryview:
        """Take `count` bytes, fewer only where the stream ends; without a copy where they lie in one chunk."""
        at, end = self.at, self.at + count
        if end <= len(self.chunk):
            self.at = end
            return self.chunk[at:end]
        whole, have = memoryview(bytearray(count)), 0
        while have < count and (self.at < len(self.chunk) or self._next_chunk()):
            part = self.chunk[self.at : self.at + count - have]
            whole[have : have + len(part)] = part
            have += len(part)
            self.at += len(part)
        return whole[:have].toreadonly()

    def payload(self, count: int, name: str) -> memoryview:
        """Take the `count` bytes of member `name`, padding included."""
        data = self.take(count)
        if len(data) < count:
            raise _cut(self.offset, repr(name), count, len(data))
        return data

    def skip(self, count: int, name: str) -> None:
        """Pass over the `count` bytes of member `name` in the memory of a chunk."""
        end = self.offset + count
        if self.seekable and end > self.base + len(self.chunk) + self.chunk_bytes:
            self._seek(end - 1)  # and not to the end: its last byte is read below, to know that it is there
        while end > self.base + len(self.chunk):
            if not self._next_chunk():
                last = self._end()
                raise _cut(last, repr(name), count, count - (end - last))
        self.at = end - self.base

    def _end(self) -> int:
        """Return where the stream ends, after an empty read: before `base`, if a seek went past it."""
        return self.base - (self.stream.tell() - self.stream.seek(0, io.SEEK_END) if self.seekable else 0)

    def _seek(self, target: int) -> None:
        # fsspec's streaming HTTP file says that it can seek and raises ValueError: then the payload is read through.
        try:
            self.stream.seek(target - self.base - len(self.chunk), io.SEEK_CUR)
        except (OSError, ValueError):
            self.seekable = False
        else:
            self.chunk, self.at, self.base = memoryview(b""), 0, target

    def _next_chunk(self) -> bool:
        self.base += len(self.chunk)
        self.chunk, self.at = memoryview(b""), 0  # lets go of the old chunk before the new one is read
        # bytes() costs nothing on bytes and guards views of it against a stream that reuses its buffer.
        self.chunk = memoryview(bytes(self.stream.read(self.chunk_bytes) or b""))
        return len(self.chunk) > 0


def _cut(end: int, what: str, needed: int, there: int) -> TarError:
    return TarError(
        f"The tar is cut at byte {end}: {what} needs {needed} bytes, {there} are there; fetch or pack the shard again."
    )
