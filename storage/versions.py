"""Which version of a remote file is there."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

_ETAGS = ("ETag", "etag")
_TIMES = ("mtime", "LastModified", "last_modified", "Last-Modified", "updated", "created")


class ReplacedError(OSError):
    """A remote file was replaced while it was read: what was read so far must not be mixed with what is there now."""


def tag_of(info: Mapping[str, Any]) -> str:
    """Return the version in what a store says of a file: its generation, ETag, time of the last change, or nothing."""
    if info.get("generation"):
        return str(info["generation"])
    etag = next((str(info[name]).strip('"') for name in _ETAGS if info.get(name)), "")
    return etag or next((_time(info[name]) for name in _TIMES if info.get(name)), "")


def _time(value: Any) -> str:
    """Return a time in seconds; stores give it as a number, a datetime or text, some of them now this and now that."""
    if isinstance(value, datetime):
        return str(value.timestamp())
    try:
        return str(datetime.fromisoformat(value).timestamp())
    except (TypeError, ValueError):
        return str(value)
