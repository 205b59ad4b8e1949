"""Byte ranges of one version of one remote file."""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import Any, cast

from fsspec.asyn import sync

from .filesystems import protocols_of
from .redact import redact_url
from .retries import PRECONDITION_FAILED, retry, status_of
from .versions import ReplacedError, tag_of

REQUEST_SECONDS = 20.0
"""A request that gives nothing for so long is given up and asked anew."""
_PIECE = 1 << 18  # bytes taken from a body at a time: what a broken connection can cost
_NO_RANGES = 200
_FORBIDDEN = 403
_GONE = 404
_RANGE_REFUSED = 416
_ONCE = {"retry_total": 0}  # of Azure's client: the reader asks again, for what is left

Sink = Callable[[bytes], None]


class Source:
    """A file on any fsspec file system, read in ranges.

    That it is one version all along is known by asking the store when reading begins, after each failure and at the
    end: file servers give a version tag to no second content.

    Parameters
    ----------
    fs : fsspec file system
    path : str
    size : int
        Bytes that the file was listed with.
    tag : str
        Version that it was listed with; where it is empty, the first answer is the version.
    """

    readers = 8
    """Ranges that may be asked for at a time."""

    def __init__(self, fs: Any, path: str, size: int, tag: str = "") -> None:
        self.fs, self.path, self.size, self.tag = fs, path, size, tag
        self.url = shown_url(fs, path)

    def check(self) -> None:
        """Ask which version is there; ReplacedError where it is another."""
        self.fs.invalidate_cache(self.path)
        self.compare(self.ask("info", self.path))

    def check_end(self) -> None:
        """Check when reading ends; nothing is left to do where every answer named its version."""
        self.check()

    def compare(self, info: Mapping[str, Any]) -> None:
        """Compare what the store says with what was listed; ReplacedError where it differs."""
        tag, size = tag_of(info), info.get("size")
        self.tag = self.tag or tag
        size = self.size if size is None else size
        if size != self.size or (tag and tag != self.tag):
            self.refuse(f"{size} bytes, version {tag or '?'}")

    def refuse(self, now: str) -> None:
        """Raise ReplacedError."""
        raise ReplacedError(
            f"{self.url} was replaced while it was read: {self.size} bytes, version {self.tag or '?'} was listed, "
            f"{now} is there; leave the shards as they are during a run and run the command again"
        )

    def fetch(self, start: int, end: int, sink: Sink) -> None:
        """Give the bytes from ``start`` to ``end`` to ``sink`` as they come; fewer where the body is cut."""
        sink(cast("bytes", self.ask("cat_file", self.path, start=start, end=end)))

    def ask(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of the file system, under the time limit where it can be given up."""
        if not getattr(self.fs, "async_impl", False):
            return getattr(self.fs, name)(*args, **kwargs)
        return sync(self.fs.loop, getattr(self.fs, f"_{name}"), *args, timeout=REQUEST_SECONDS, **kwargs)

    def close(self) -> None:
        """Let go of what is open."""


class S3Source(Source):
    """An S3 object: each request is on the condition that the version listed is there, and its body comes in pieces."""

    def check(self) -> None:
        """Do nothing: the next answer will tell."""

    def fetch(self, start: int, end: int, sink: Sink) -> None:
        """Give the bytes as they come, so that those before a cut are kept."""
        try:
            sync(self.fs.loop, self._fetch, start, end, sink)
        except Exception as error:
            if status_of(error) in {PRECONDITION_FAILED, _RANGE_REFUSED}:
                self.refuse("another")
            raise

    async def _fetch(self, start: int, end: int, sink: Sink) -> None:
        bucket, key, version = self.fs.split_path(self.path)
        condition = {"VersionId": version} if version else {}
        condition |= {"IfMatch": f'"{self.tag}"'} if self.tag else {}
        call = self.fs._call_s3(  # noqa: SLF001  (s3fs has no conditional read)
            "get_object", Bucket=bucket, Key=key, **{**self.fs.req_kw, "Range": _range(start, end)}, **condition
        )
        answer = await asyncio.wait_for(call, REQUEST_SECONDS)
        body = answer["Body"]
        try:
            self.compare({"ETag": answer.get("ETag"), "size": _total(answer.get("ContentRange"))})
            while piece := await asyncio.wait_for(body.read(_PIECE), REQUEST_SECONDS):
                sink(piece)
        finally:
            body.close()


class AzureSource(Source):
    """An Azure blob: each request is on the condition that the version listed is there."""

    def check(self) -> None:
        """Do nothing where a version is known: the next answer will tell."""
        if not self.tag:
            super().check()

    def fetch(self, start: int, end: int, sink: Sink) -> None:
        """Give a whole range; what came before a cut is lost."""
        try:
            sink(sync(self.fs.loop, self._fetch, start, end, timeout=REQUEST_SECONDS))
        except Exception as error:
            if status_of(error) in {_GONE, PRECONDITION_FAILED, _RANGE_REFUSED}:
                super().check()  # says what is there now, or that nothing is
                self.refuse("another")
            raise

    async def _fetch(self, start: int, end: int) -> bytes:
        from azure.core import MatchConditions

        container, blob, version = self.fs.split_path(self.path)
        condition = {"etag": f'"{self.tag}"', "match_condition": MatchConditions.IfNotModified} if self.tag else {}
        async with self.fs.service_client.get_blob_client(container, blob) as client:
            answer = await client.download_blob(start, end - start, version_id=version, **condition, **_ONCE)
            self.compare({"etag": answer.properties.etag})
            return cast("bytes", await answer.readall())


class GoogleSource(Source):
    """A Google object: each answer names its generation, which is asked for, and its body comes in pieces."""

    def check(self) -> None:
        """Do nothing where a version is known: the next answer will tell."""
        if not self.tag:
            super().check()

    def fetch(self, start: int, end: int, sink: Sink) -> None:
        """Give the bytes as they come, so that those before a cut are kept."""
        sync(self.fs.loop, self._fetch, start, end, sink)

    async def _fetch(self, start: int, end: int, sink: Sink) -> None:
        from gcsfs.retry import validate_response

        session = await self.fs._set_session()  # noqa: SLF001  (gcsfs has no conditional read)
        headers = self.fs._get_headers({"Range": _range(start, end), "Accept-Encoding": "identity"})  # noqa: SLF001
        wanted = self.fs._get_params({"ifGenerationMatch": self.tag or None})  # noqa: SLF001
        call = session.get(self.fs.url(self.path), params=wanted, headers=headers, timeout=self.fs.requests_timeout)
        answer = await asyncio.wait_for(call, REQUEST_SECONDS)
        async with answer:
            if answer.status in {PRECONDITION_FAILED, _RANGE_REFUSED}:
                self.refuse("another")
            if answer.status == _FORBIDDEN:
                raise PermissionError(f"{answer.status} {answer.reason}")
            validate_response(answer.status, b"" if answer.ok else await answer.read(), self.path)
            total = _total(answer.headers.get("Content-Range"))
            self.compare({"generation": answer.headers.get("X-Goog-Generation"), "size": total})
            while piece := await asyncio.wait_for(answer.content.read(_PIECE), REQUEST_SECONDS):
                sink(piece)


class HttpSource(Source):
    """A file on a web server that knows ranges: each answer names its version, and its body comes in pieces."""

    def check(self) -> None:
        """Ask for the first byte."""
        self.fetch(0, 1, lambda _: None)

    def check_end(self) -> None:
        """Do nothing where the server has told the version with each answer."""
        if not self.tag:
            self.check()

    def fetch(self, start: int, end: int, sink: Sink) -> None:
        """Give the bytes as they come; NotImplementedError where the server gives the whole file instead."""
        sync(self.fs.loop, self._fetch, start, end, sink)

    async def _fetch(self, start: int, end: int, sink: Sink) -> None:
        session = await self.fs.set_session()
        settings = dict(self.fs.kwargs)
        # A compressed answer would be counted in other bytes.
        wanted = {"Range": _range(start, end), "Accept-Encoding": "identity"}
        settings["headers"] = {**settings.get("headers", {}), **wanted}
        call = session.get(self.fs.encode_url(self.path), **settings)
        answer = await asyncio.wait_for(call, REQUEST_SECONDS)
        async with answer:
            if answer.status == _RANGE_REFUSED:
                self.refuse("a shorter one")
            self.fs._raise_not_found_for_status(answer, self.path)  # noqa: SLF001  (its own rule for errors)
            if answer.status == _NO_RANGES:
                raise NotImplementedError(f"{self.url}: the server knows no ranges")
            told = {name: answer.headers.get(name) for name in ("ETag", "Last-Modified")}
            self.compare({**told, "size": _total(answer.headers.get("Content-Range"))})
            while piece := await asyncio.wait_for(answer.content.read(_PIECE), REQUEST_SECONDS):
                sink(piece)


class Sequential(Source):
    """A file on a web server that knows no ranges: one stream, read through from its start where it broke."""

    readers = 1
    _stream: Any = None
    _at = 0

    def fetch(self, start: int, end: int, sink: Sink) -> None:
        """Give what comes next in the stream."""
        try:
            if self._stream is None or self._at > start:
                self.close()
                self._stream, self._at = self.fs.open(self.path, "rb", block_size=0), 0
            while self._at < end and (data := self._stream.read(min(_PIECE, end - self._at))):
                sink(data[max(0, start - self._at) :])
                self._at += len(data)
        except Exception:
            self.close()
            raise
        if self._at < end:
            self.close()

    def close(self) -> None:
        """Close the stream."""
        stream, self._stream = self._stream, None
        if stream is not None:
            with contextlib.suppress(Exception):  # it may be broken already
                stream.close()


def open_source(fs: Any, path: str, size: int, tag: str, *, fresh: bool = False) -> Source:
    """Return how the file is read; its version is checked where no read can tell it, and it is not ``fresh``.

    Raises
    ------
    ReplacedError
        Where the version there is not the one listed.
    """
    protocols = protocols_of(fs)
    if protocols & {"s3", "s3a"} and hasattr(fs, "_call_s3"):
        return S3Source(fs, path, size, tag)
    if protocols & {"http", "https"} and hasattr(fs, "set_session"):
        return _web_source(fs, path, size, tag)
    source = _kind(fs, protocols)(fs, path, size, tag)
    if not fresh:
        retry(source.check)
    return source


def _kind(fs: Any, protocols: set[str]) -> type[Source]:
    if hasattr(fs, "service_client"):
        return AzureSource
    return GoogleSource if "gs" in protocols and hasattr(fs, "_set_session") else Source


def _web_source(fs: Any, path: str, size: int, tag: str) -> Source:
    """Return how a file of a web server is read, which may know ranges or not."""
    source: Source = HttpSource(fs, path, size, tag)
    try:
        retry(source.check)
    except NotImplementedError:
        source = Sequential(fs, path, size, tag)
        retry(source.check)
    return source


def shown_url(fs: Any, path: str) -> str:
    """Return the URL of a file as messages name it, without credentials."""
    return redact_url(str(fs.unstrip_protocol(path)))


def _range(start: int, end: int) -> str:
    return f"bytes={start}-{end - 1}"


def _total(content_range: str | None) -> int | None:
    """Return the size of the file that a range was taken from, where the server knows it."""
    total = (content_range or "").rpartition("/")[2]
    return int(total) if total.isdigit() else None
