"""Where shards may lie: the prefixes that the operator allows, and nothing beside them.

A request names URLs; whoever sends it must not read other files of this machine, ask other servers, or be led from an
allowed place to another one. So a URL is taken apart here, in one canonical way, and what has two readings is refused.
"""

import itertools
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import unquote

from tilecov.storage.listing import Shard
from tilecov.storage.patterns import expand
from tilecov.storage.redact import redact

from .addresses import is_forbidden_server

MOST_URLS = 100_000
"""Shards that one job may name, braces expanded."""
_LONGEST = 2048  # letters of a URL
_MAGIC = re.compile(r"[*?\[]")
_SCHEME = re.compile(r"[a-z][a-z0-9+.\-]*", re.IGNORECASE)
_RANGE = re.compile(r"(-?\d+|[A-Za-z])\.\.(-?\d+|[A-Za-z])(?:\.\.-?\d+)?")
_INNERMOST = re.compile(r"\{([^{}]*)\}")
_ALIASES = {"s3a": "s3", "gcs": "gs", "abfss": "abfs"}
_WEB = {"http", "https"}


class RefusedUrlError(ValueError):
    """A URL that a request may not name."""


@dataclass(frozen=True, slots=True)
class Place:
    """A URL taken apart.

    Parameters
    ----------
    scheme : str
        ``file`` for paths.
    host : str
        Bucket, container or server; empty for paths.
    parts : tuple of str
        The path, cut at its slashes.
    """

    scheme: str
    host: str
    parts: tuple[str, ...]

    @classmethod
    def parse(cls, url: str) -> "Place":
        """Take ``url`` apart; RefusedUrlError where it has two readings, or carries credentials."""
        _check_letters(url)
        scheme, mark, rest = url.partition("://")
        if not mark:
            if not url.startswith("/"):
                raise RefusedUrlError("a path must be absolute, and a URL must begin with its scheme and ://")
            return cls("file", "", _parts_of(os.path.normpath(url).lstrip("/"), url))
        scheme = _ALIASES.get(scheme.lower(), scheme.lower())
        if not _SCHEME.fullmatch(scheme):
            raise RefusedUrlError("it is no URL")
        host, _, path = rest.partition("/")
        if "@" in host:
            raise RefusedUrlError("it carries a user name; the operator of the service gives credentials, no request")
        if scheme == "file":
            if host:
                raise RefusedUrlError("file:// is followed by an absolute path")
            return cls("file", "", _parts_of(os.path.normpath("/" + path).lstrip("/"), path))
        if scheme in _WEB:
            _check_web(path)
        return cls(scheme, host.lower() if scheme in _WEB else host, _parts_of(path, path))

    @property
    def url(self) -> str:
        """The one way to write this place."""
        path = "/".join(self.parts)
        return f"/{path}" if self.scheme == "file" else f"{self.scheme}://{self.host}/{path}"

    def holds(self, other: "Place") -> bool:
        """Return whether ``other`` is this place or lies below it."""
        same = (self.scheme, self.host) == (other.scheme, other.host)
        return same and other.parts[: len(self.parts)] == self.parts

    def resolved(self) -> "Place":
        """Return this place with links followed as far as its name is literal; others are as they are."""
        if self.scheme != "file":
            return self
        literal = tuple(itertools.takewhile(lambda part: not _MAGIC.search(part), self.parts))
        real = os.path.realpath("/" + "/".join(literal))
        return Place("file", "", (*_parts_of(real.lstrip("/"), real), *self.parts[len(literal) :]))


def _check_letters(url: str) -> None:
    if not url or len(url) > _LONGEST:
        raise RefusedUrlError(f"it has {len(url)} letters; 1 to {_LONGEST} are taken")
    if not url.isprintable() or "\\" in url or url != url.strip():
        raise RefusedUrlError("it has letters that no URL has: control characters, backslashes or outer blanks")
    if "::" in url:
        raise RefusedUrlError("chained URLs and lists (::) are not taken; name each URL by itself")
    if "$" in url:
        raise RefusedUrlError("variables ($) are not taken; write the value out")


def _check_web(path: str) -> None:
    if "?" in path or "#" in path:
        raise RefusedUrlError("a web address may have no query: signed URLs carry credentials")
    if re.search(r"%(2e|2f|5c|25)", path, re.IGNORECASE) or unquote(path) != unquote(unquote(path)):
        raise RefusedUrlError("dots, slashes and percent signs must not be written as %xx")


def _check_name(url: str) -> None:
    if _MAGIC.search(url):
        raise RefusedUrlError("a name with *, ? or [ would be read as a pattern; rename the file, or its folder")


def _parts_of(path: str, written: str) -> tuple[str, ...]:
    if any(part in {".", ".."} for part in written.split("/")):
        raise RefusedUrlError("'.' and '..' are not taken; write the path out")
    return tuple(path.rstrip("/").split("/")) if path.strip("/") else ()


class Places:
    """The prefixes that the operator allows.

    Parameters
    ----------
    prefixes : iterable of str
        Absolute paths and URLs. Each stands for itself and what is below it: ``s3://b/a`` does not allow ``s3://b/ab``.

    Raises
    ------
    ValueError
        Where a prefix allows too much, such as a scheme without a host, or has a pattern in it.
    """

    def __init__(self, prefixes: Iterable[str]) -> None:
        self.prefixes = tuple(prefixes)
        self._places = [place for prefix in self.prefixes for place in _prefix(prefix)]

    def check(self, patterns: Sequence[str]) -> list[str]:
        """Return the URLs that ``patterns`` name, braces expanded and globs left, each in its one way to be written.

        Raises
        ------
        RefusedUrlError
            Where one is not below an allowed prefix, or could be read in another way.
        """
        found: list[str] = []
        for pattern in patterns:
            try:
                _check_letters(pattern)
                if len(found) + count_braces(pattern) > MOST_URLS:
                    raise RefusedUrlError(f"it names more than {MOST_URLS:,} shards; use a glob, or several jobs")
                found += [self.check_one(url) for url in expand(pattern)]
            except ValueError as error:
                raise RefusedUrlError(f"{redact(pattern)!r}: {error}") from error
        return found

    def check_one(self, url: str) -> str:
        """Return ``url`` in its one way to be written; RefusedUrlError where it is not below an allowed prefix."""
        place = Place.parse(url)
        if "{" in url or "}" in url:  # whoever reads it expands it once more
            raise RefusedUrlError("it has braces that are no range or list")
        # The name itself must lie below a prefix too: whether a link elsewhere leads there would tell what it is.
        if not any(prefix.holds(place) for prefix in self._places) or not self._holds(place.resolved()):
            allowed = ", ".join(self.prefixes) or "none"
            raise RefusedUrlError(f"it is not below an allowed prefix ({allowed}); the operator sets them with --allow")
        return place.url

    def check_found(self, shards: Iterable[Shard]) -> None:
        """Check what globs, folders and listings came to; RefusedUrlError names the first that is outside.

        What is found is listed again, by its name, so a name that would then be a pattern is refused too.
        """
        for shard in shards:
            try:
                _check_name(self.check_one(shard.address or shard.url))
            except RefusedUrlError as error:
                raise RefusedUrlError(f"{shard.url!r}: {error}") from error

    def _holds(self, place: Place) -> bool:
        return any(prefix.holds(place) for prefix in self._places)


def _prefix(prefix: str) -> list[Place]:
    """Return the place of a prefix, and the one that its links lead to."""
    try:
        place = Place.parse(prefix.rstrip("/") or "/" if "://" not in prefix else prefix)
    except RefusedUrlError as error:
        raise ValueError(f"--allow {prefix}: {error}") from error
    place = Place(place.scheme, place.host, tuple(part for part in place.parts if part))
    if _MAGIC.search(prefix) or "{" in prefix:
        raise ValueError(f"--allow {prefix}: a prefix has no patterns; it allows all below it")
    if not place.host and not place.parts and place.scheme != "memory":
        raise ValueError(f"--allow {prefix}: it would allow everything; name a folder, bucket or server")
    if place.scheme in _WEB and is_forbidden_server(place.host):
        raise ValueError(f"--allow {prefix}: machines hand out credentials at such addresses; it is never read")
    return [place] if place.scheme != "file" else [place, place.resolved()]


def count_braces(pattern: str) -> int:
    """Return at most how many URLs a pattern's braces stand for, without expanding them."""
    total, left = 1, pattern
    while found := _INNERMOST.search(left):
        bounds = _RANGE.fullmatch(found[1])
        total *= _span(bounds[1], bounds[2]) if bounds else found[1].count(",") + 1
        left = left[: found.start()] + "x" + left[found.end() :]
    return total


def _span(first: str, last: str) -> int:
    ends = [ord(end) if end.isalpha() else int(end[:20]) for end in (first, last)]
    return abs(ends[1] - ends[0]) + 1


def is_web(url: str) -> bool:
    """Return whether ``url`` is read from a web server."""
    return url.partition("://")[0].lower() in _WEB
