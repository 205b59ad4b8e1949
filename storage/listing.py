"""Which shards there are: URLs, sizes and version tags, listed with few requests."""

import posixpath
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, cast

from .filesystems import file_system
from .objects import absolute
from .patterns import expand
from .redact import has_query, redact, redact_url
from .retries import naming_refusals, retry
from .versions import tag_of

_MAGIC = "*?["
_LIST_FROM = 16  # as many shards in one folder are listed at once instead of asked for one by one


@dataclass(frozen=True, slots=True)
class Shard:
    """One tar file: where it is, how long it is and which version of it.

    Parameters
    ----------
    url : str
        Without credentials: what the shard is known by.
    size : int
        Bytes.
    tag : str
        The store's ETag where it has one, else the time of the last change.
    address : str
        The URL that it is read from, where that holds credentials. Never shown or stored.
    """

    url: str
    size: int
    tag: str
    address: str = field(default="", repr=False, compare=False)

    @property
    def is_local(self) -> bool:
        """Whether this is a file of this machine."""
        return "://" not in self.url

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON takes them."""
        return {"url": self.url, "size": self.size, "tag": self.tag}

    def change_since(self, line: Mapping[str, Any]) -> str | None:
        """Return how this shard differs from its line in a ledger, both numbers named; None where it does not."""
        if (self.size, self.tag) == (line["size"], line["tag"]):
            return None
        then = f"{line['size']} bytes, version {line['tag']} then"
        return f"{then}, {self.size} bytes, version {self.tag} now"


def list_shards(patterns: str | Iterable[str], options: Mapping[str, Any] | None = None) -> list[Shard]:
    """List the shards that patterns name, in the order given and by name inside a glob or folder.

    Parameters
    ----------
    patterns : str or iterable of str
        Paths, globs and fsspec URLs, which may have brace ranges (`patterns.expand`). A folder (or prefix) stands for
        the ``.tar`` files in it.
    options : mapping, optional
        For fsspec's file system.

    Raises
    ------
    FileNotFoundError
        Where a URL does not exist or a glob matches nothing.
    ValueError
        Where a pattern cannot be expanded, or one shard is named twice, since its rows would be counted twice.
    """
    shards = list(_find_all([absolute(url) for url in expand(patterns)], dict(options or {})))
    twice = [url for url, count in Counter(shard.url for shard in shards).items() if count > 1]
    if twice:
        times = sum(shard.url == twice[0] for shard in shards)
        raise ValueError(f"{twice[0]} is named {times} times; name each shard once")
    return shards


def _find_all(urls: Sequence[str], options: dict[str, Any]) -> Iterator[Shard]:
    crowded = Counter(posixpath.dirname(url) for url in urls if not _is_glob(url) and not has_query(url))
    listed: dict[str, dict[str, Any]] = {}
    for url in urls:
        parent = posixpath.dirname(url)
        with naming_refusals(redact_url(url)):
            if _is_glob(url) or crowded[parent] < _LIST_FROM:
                yield from _find(url, options)
                continue
            fs, path = file_system(url, options)
            if parent not in listed:
                listed[parent] = _listing(parent, options)
            info = listed[parent].get(path)
            # What the listing does not have is asked for by itself: it may be a folder, or the store lists nothing.
            yield from [_shard(fs, info)] if info is not None else _find(url, options)


def _listing(url: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return the files in a folder by path; none where the store does not list it."""
    fs, path = file_system(url, options)
    try:
        infos = retry(lambda: fs.ls(path, detail=True))
    except (FileNotFoundError, NotADirectoryError, NotImplementedError):
        return {}
    return {str(info["name"]): info for info in infos if _is_plain(info)}


def _is_plain(info: Mapping[str, Any]) -> bool:
    return info["type"] == "file" and not info.get("islink")


def _find(url: str, options: dict[str, Any]) -> Iterator[Shard]:
    fs, path = file_system(url, options)
    if _is_glob(url):
        if "**" in path:
            raise ValueError(
                f"{redact(url)}: ** is not understood; write a * for each level of folders, or name the folders"
            )
        infos = _files(fs, sorted(_glob(fs, path), key=lambda info: str(info["name"])))
        if not infos:
            raise FileNotFoundError(f"no shard matches {redact(url)}; check the pattern")
        yield from (_shard(fs, info) for info in infos)
        return
    try:
        info = retry(lambda: fs.info(path))
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"no shard at {redact(url)}; check the URL, and the range if it had braces") from None
    if info["type"] != "directory":
        yield _shard(fs, info)
        return
    inside = [shard for shard in _folder(url, options) if shard.url.endswith(".tar")]
    if not inside:
        raise FileNotFoundError(
            f"no .tar file in the folder {redact(url)}; `tilecov pack` makes shards of a folder of images"
        )
    yield from inside


def _glob(fs: Any, path: str) -> list[Mapping[str, Any]]:
    """Return what matches ``path``, part by part.

    fsspec's own glob passes over what a store refuses to list for a moment, so that shards would be missing without a
    word.
    """
    parent, last = posixpath.split(path)
    found = _glob(fs, parent) if _is_glob(parent) else [{"name": parent or fs.root_marker, "type": "directory"}]
    folders = [str(info["name"]) for info in found if info["type"] == "directory"]
    return [info for folder in folders for info in _inside(fs, folder) if fnmatchcase(_base(info), last)]


def _inside(fs: Any, folder: str) -> list[Mapping[str, Any]]:
    try:
        return list(retry(lambda: fs.ls(folder, detail=True)))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _base(info: Mapping[str, Any]) -> str:
    return posixpath.basename(str(info["name"]).rstrip("/"))


def _folder(url: str, options: dict[str, Any]) -> list[Shard]:
    fs, path = file_system(url, options)
    infos = _files(fs, retry(lambda: fs.ls(path, detail=True)))
    return [_shard(fs, info) for info in sorted(infos, key=lambda info: str(info["name"]))]


def _files(fs: Any, infos: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the files among what was listed, links followed."""
    followed = (info if _is_plain(info) or info["type"] == "directory" else _follow(fs, info) for info in infos)
    return [info for info in followed if info is not None and info["type"] == "file"]


def _follow(fs: Any, info: Mapping[str, Any]) -> Mapping[str, Any] | None:
    try:
        return cast("Mapping[str, Any]", fs.info(info["name"]))
    except FileNotFoundError:  # a link to nothing
        return None


def _shard(fs: Any, info: Mapping[str, Any]) -> Shard:
    address = absolute(fs.unstrip_protocol(info["name"]))
    url = redact_url(address)
    return Shard(url, int(info["size"] or 0), tag_of(info), "" if url == address else address)


def _is_glob(url: str) -> bool:
    return not has_query(url) and any(letter in url for letter in _MAGIC)
