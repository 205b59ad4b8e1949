"""Files of a run, streamed from its store in pieces; whole or a range."""

import re
from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import Any, BinaryIO

from fastapi import Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from tilecov.storage.objects import Folder

_TYPES = {".pt": "application/octet-stream", ".json": "application/json", ".jsonl": "application/jsonl"}
PIECE = 1 << 20
"""Bytes in memory at a time."""
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")

Span = tuple[int, int]


def span_of(header: str | None, size: int) -> Span | None:
    """Return the bytes (first, end) that a Range header asks for.

    None where the whole file is the answer: without a header, with one that makes no sense, or with several ranges,
    which RFC 9110 lets a server pass over. ValueError where there are no such bytes.
    """
    found = _RANGE.fullmatch((header or "").strip())
    if not found or not (found[1] or found[2]):
        return None
    if not found[1]:
        first, end = size - min(size, int(found[2])), size
        if not int(found[2]):
            raise ValueError("the last 0 bytes")
    else:
        first, end = int(found[1]), min(size, int(found[2]) + 1) if found[2] else size
        if found[2] and int(found[2]) < first:
            return None
    if first >= size:
        raise ValueError(f"byte {first} of {size}")
    return first, end


async def send_file(
    folder: Folder, path: str, name: str, *, etag: str | None, wanted: str | None, condition: str | None, head: bool
) -> Response:
    """Answer with a file, or the range ``wanted`` of it; FileNotFoundError where there is none.

    Parameters
    ----------
    folder : Folder
        The run's.
    path, name : str
        Where the file lies in the folder, and what it is called.
    etag : str or None
        Its checksum, where it has one.
    wanted, condition : str or None
        The headers Range and If-Range.
    head : bool
        Whether only headers are sent.
    """
    info: dict[str, Any] = await run_in_threadpool(lambda: folder.fs.info(folder.path(path)))
    size = int(info["size"])
    headers = {"Accept-Ranges": "bytes", "Content-Disposition": f'attachment; filename="{name}"'}
    if etag:
        headers["ETag"] = f'"{etag}"'
    if condition is not None and condition != headers.get("ETag"):
        wanted = None  # it has changed: the whole file is the answer
    try:
        span = span_of(wanted, size)
    except ValueError:
        return Response(status_code=416, headers={**headers, "Content-Range": f"bytes */{size}"})
    first, end = span or (0, size)
    if span is not None:
        headers["Content-Range"] = f"bytes {first}-{end - 1}/{size}"
    headers["Content-Length"] = str(end - first)
    kind, status = _TYPES.get("." + name.rpartition(".")[2], "application/octet-stream"), 206 if span else 200
    if head:
        return Response(status_code=status, headers=headers, media_type=kind)
    return StreamingResponse(_pieces(folder, path, first, end), status, headers, kind)


async def _pieces(folder: Folder, path: str, first: int, end: int) -> AsyncIterator[bytes]:
    with ExitStack() as stack:
        stream: BinaryIO = await run_in_threadpool(stack.enter_context, folder.open(path))
        await run_in_threadpool(stream.seek, first)
        while first < end:
            piece = await run_in_threadpool(stream.read, min(PIECE, end - first))
            if not piece:  # cut: the client sees fewer bytes than were promised
                raise OSError(f"{name_of(path)} ends at byte {first}, {end} were there")
            first += len(piece)
            yield piece


def name_of(path: str) -> str:
    """Return the last part of a path."""
    return path.rpartition("/")[2]
