"""Which shards there are: URLs, sizes and version tags, listed with few requests."""

import posixpath
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import fsspec

from .objects import absolute
from .retries import retry

_MAGIC = "*?["
_TAGS = ("ETag", "etag", "mtime", "LastModified", "last_modified", "updated", "created")
_LIST_FROM = 16  # as many shards in one folder are listed at once instead of asked for one by one


@dataclass(frozen=True, slots=True)
class Shard:
    """One tar file: where it is, how long it is and which version of it.

    Parameters
    ----------
    url : str
    size : int
        Bytes.
    tag : str
        The store's ETag where it has one, else the time of the last change.
    """

    url: str
    size: int
    tag: str

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON takes them."""
        return asdict(self)


def list_shards(urls: Sequence[str], options: Mapping[str, Any] | None = None) -> list[Shard]:
    """List the shards that URLs, globs and folders name, in the order given and by name inside a glob or folder.

    Parameters
    ----------
    urls : sequence of str
        Paths or fsspec URLs, brace ranges already expanded. A folder (or prefix) stands for the ``.tar`` files in it.
    options : mapping, optional
        For fsspec's file system.

    Raises
    ------
    FileNotFoundError
        Where a URL does not exist or a glob matches nothing.
    ValueError
        Where one shard is named twice, since its rows would be counted twice.
    """
    shards = list(_find_all([absolute(url) for url in urls], dict(options or {})))
    twice = [url for url, count in Counter(shard.url for shard in shards).items() if count > 1]
    if twice:
        raise ValueError(f"{twice[0]} is named {len(twice)} times or more; name each shard once")
    return shards


def _find_all(urls: Sequence[str], options: dict[str, Any]) -> Iterator[Shard]:
    crowded = Counter(posixpath.dirname(url) for url in urls if not _is_glob(url))
    listed: dict[str, dict[str, Shard]] = {}
    for url in urls:
        parent = posixpath.dirname(url)
        if not _is_glob(url) and crowded[parent] >= _LIST_FROM:
            if parent not in listed:
                listed[parent] = {shard.url: shard for shard in _folder(parent, options)}
            if url not in listed[parent]:
                raise FileNotFoundError(f"no shard at {url}; check the URL and the range in braces")
            yield listed[parent][url]
        else:
            yield from _find(url, options)


def _find(url: str, options: dict[str, Any]) -> Iterator[Shard]:
    fs, path = fsspec.core.url_to_fs(url, **options)
    if _is_glob(url):
        found = retry(lambda: fs.glob(path, detail=True))
        infos = [found[name] for name in sorted(found) if found[name]["type"] == "file"]
        if not infos:
            raise FileNotFoundError(f"no shard matches {url}; check the pattern")
        yield from (_shard(fs, info) for info in infos)
        return
    try:
        info = retry(lambda: fs.info(path))
    except FileNotFoundError:
        raise FileNotFoundError(f"no shard at {url}; check the URL") from None
    if info["type"] != "directory":
        yield _shard(fs, info)
        return
    inside = [shard for shard in _folder(url, options) if shard.url.endswith(".tar")]
    if not inside:
        raise FileNotFoundError(f"no .tar file in the folder {url}; `tilecov pack` makes shards of a folder of images")
    yield from inside


def _folder(url: str, options: dict[str, Any]) -> list[Shard]:
    fs, path = fsspec.core.url_to_fs(url, **options)
    infos = [info for info in retry(lambda: fs.ls(path, detail=True)) if info["type"] == "file"]
    return [_shard(fs, info) for info in sorted(infos, key=lambda info: str(info["name"]))]


def _shard(fs: Any, info: Mapping[str, Any]) -> Shard:
    tag = next((str(info[name]).strip('"') for name in _TAGS if info.get(name)), "")
    return Shard(absolute(fs.unstrip_protocol(info["name"])), int(info["size"] or 0), tag)


def _is_glob(url: str) -> bool:
    return any(letter in url for letter in _MAGIC)
