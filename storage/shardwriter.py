"""Writing shards: which samples go into which, and each one whole or not at all."""

import contextlib
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from webdataset import TarWriter

from .objects import Folder
from .patterns import expand

Sample = Mapping[str, bytes | str]
"""``__key__`` and, by extension, the bytes of each file: WebDataset's sample."""

PER_SHARD = 1000  # samples; a shard of 64 x 64 images is then some 10 MB, a unit of reading and of retrying

_COUNTER = re.compile(r"%d|%0\d+d")  # not every %-sign: URLs hold %20 and the like
_WAYS = "write one shard (x.tar), a brace range (x-{000..007}.tar) or a counter (x-%06d.tar)"


def lay_out(shards: str, samples: int, per_shard: int = PER_SHARD) -> list[tuple[str, range]]:
    """Decide which shards to write and which samples, by number, go into each.

    Parameters
    ----------
    shards : str
        A brace range (``x-{000..007}.tar``): the samples are spread evenly over those shards. A counter
        (``x-%06d.tar``, as WebDataset's ShardWriter takes it): ``per_shard`` samples go into each. A plain ``x.tar``:
        all go into one. Any fsspec URL.
    samples : int
        How many there are, at least one.
    per_shard : int
        Samples in a shard, for a counter only.

    Returns
    -------
    list of (str, range)
        A shard's URL and the numbers of its samples, never none; together they are ``range(samples)``.

    Raises
    ------
    ValueError
        Where ``shards`` names no shards to write, one of them twice, or more of them than there are samples.
    """
    urls = _expand(shards)
    counters = [counter for url in urls for counter in _COUNTER.findall(url)]
    if not counters:
        return _spread(urls, samples)
    if len(counters) > 1:
        raise ValueError(f"{shards!r} numbers its shards in {len(counters)} ways; {_WAYS}")
    if per_shard < 1:
        raise ValueError(f"a shard holds at least one sample, not {per_shard}")
    starts = range(0, samples, per_shard)
    return [
        (urls[0].replace(counters[0], counters[0] % number), range(start, min(start + per_shard, samples)))
        for number, start in enumerate(starts)
    ]


def _expand(shards: str) -> list[str]:
    try:
        urls = expand(shards)
    except ValueError as error:
        raise ValueError(f"{shards!r} names no shards ({error}); {_WAYS}") from error
    for url in urls:
        if not url.endswith(".tar") or re.search(r"[{}*]|(^|/)\.tar$", url):
            raise ValueError(f"{url!r} is no shard that can be written; {_WAYS}")
        if urls.count(url) > 1:
            raise ValueError(f"{shards!r} names {url} {urls.count(url)} times; name each shard once")
    return urls


def _spread(urls: Sequence[str], samples: int) -> list[tuple[str, range]]:
    if samples < len(urls):
        raise ValueError(f"{samples} samples cannot fill {len(urls)} shards; name at most {samples} shards")
    ends = [number * samples // len(urls) for number in range(len(urls) + 1)]
    return [(url, range(ends[number], ends[number + 1])) for number, url in enumerate(urls)]


def refuse_existing(urls: Iterable[str], options: Mapping[str, Any] | None = None) -> None:
    """Raise FileExistsError where one of ``urls`` is there already; each folder is listed once, not asked per shard."""
    names: dict[str, list[str]] = defaultdict(list)
    for url in urls:
        folder, name = _split(url)
        names[folder].append(name)
    for url, wanted in names.items():
        existing = sorted(set(wanted) & set(Folder(url, options or {}).names()))
        if existing:
            others = f", and {len(existing) - 1} more of them" if len(existing) > 1 else ""
            raise FileExistsError(f"{url}{existing[0]} exists already{others}; choose other names or allow overwriting")


def write_shard(url: str, samples: Iterable[Sample], options: Mapping[str, Any] | None = None) -> int:
    """Write one shard; it appears under its name when it is whole, and never otherwise.

    A local shard is written beside its place and renamed. Any other is built in this machine's temporary folder
    (``TMPDIR``: room for one shard) and then uploaded, so what fails before the upload never reaches the store.
    The same samples give the same bytes: no times, users or modes of this machine are recorded.

    Parameters
    ----------
    url : str
        Where. Folders on the way are made. What is there is replaced.
    samples : iterable of mapping
        ``__key__`` and, by extension, the bytes of each file.
    options : mapping, optional
        For fsspec's file system.

    Returns
    -------
    int
        The shard's size in bytes.
    """
    where, name = _split(url)
    folder = Folder(where, options or {})
    if folder.is_local:
        with folder.writing(name) as stream:
            _write_tar(stream, samples)
            return stream.tell()
    with tempfile.NamedTemporaryFile(suffix=".tar") as whole:
        _write_tar(whole, samples)
        whole.flush()
        _upload(whole.name, folder.fs, folder.path(name))
        return whole.tell()


def _split(url: str) -> tuple[str, str]:
    """Part a URL into its folder, with the slash, and its base name: ``memory://x.tar`` lies in ``memory://``."""
    scheme, colon, path = url.rpartition("://")
    folder, slash, name = path.rpartition("/")
    return scheme + colon + folder + slash, name


def _write_tar(stream: Any, samples: Iterable[Sample]) -> None:
    # PAX differs from WebDataset's USTAR only where a name is too long for that or not ASCII.
    with TarWriter(stream, user="", group="", mtime=0, encoder=False, format="PAX_FORMAT") as tar:
        for sample in samples:
            tar.write(sample)
            tar.tarstream.members.clear()  # tarfile remembers every header: a leak in a shard of a million samples


def _upload(source: str, fs: Any, target: str) -> None:
    """Upload a file; where that breaks off, leave there what was there before or nothing."""
    before = _size(fs, target)
    try:
        fs.put_file(source, target)
    except BaseException:
        with contextlib.suppress(Exception):  # the first error tells more than a failed clean-up
            if _size(fs, target) not in {None, before}:
                fs.rm_file(target)
        raise


def _size(fs: Any, path: str) -> int | None:
    fs.invalidate_cache()
    return int(fs.size(path)) if fs.exists(path) else None
