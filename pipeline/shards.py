"""Shards to samples, in WebDataset's conventions.

What of a file name is key and what extension, and which files are metadata is decided by webdataset itself; the tar is
walked by `tilecov.storage.tar`, several times as fast as by Python's ``tarfile``.
"""

import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, BinaryIO, NamedTuple, TypeAlias

import fsspec
from webdataset.handlers import reraise_exception
from webdataset.tariterators import base_plus_ext, meta_prefix, meta_suffix

from tilecov.storage.tar import CHUNK_BYTES, Member, Run, TarError, walk

try:
    from ._samples import usual as usual_samples
except ImportError:  # pragma: no cover - no compiler was there when tilecov was installed

    def usual_samples(
        entries: list[tuple[str, int, int]],  # noqa: ARG001
        at: int,
        extensions: tuple[str, ...],  # noqa: ARG001
        companion: str,  # noqa: ARG001
        open_key: str,  # noqa: ARG001
        seen: set[str],  # noqa: ARG001
        max_bytes: int,  # noqa: ARG001
        /,
    ) -> tuple[list[tuple[str, int, int, int, int, int]], int]:
        """Find none: all samples are read by Python."""
        return [], at


# The files that webdataset's tar_file_iterator leaves out before it groups: "__NAME__", and all below such a folder.
_META = re.compile(rf"{meta_prefix}[^/]*{meta_suffix}($|/)")


class Sample(NamedTuple):
    """The wanted image of one key.

    Attributes
    ----------
    key : str
        Folder and base name up to its first dot.
    extension : str
        Lower case, without the dot.
    data : memoryview or bytes
        The file. A view may keep the whole chunk alive in which it was read.
    companion : memoryview or bytes or None
        The file beside the image that was asked for, such as its ``cls``; None where there is none.
    """

    key: str
    extension: str
    data: memoryview | bytes
    companion: memoryview | bytes | None = None


@dataclass(frozen=True, slots=True)
class Unwanted:
    """A sample without a wanted image: passed over."""

    key: str


@dataclass(frozen=True, slots=True)
class Refused:
    """A sample that cannot be taken: image too large, a file twice, or a key that came before in this shard."""

    key: str
    reason: str


Item: TypeAlias = Sample | Unwanted | Refused


def samples(
    stream: BinaryIO,
    image_keys: Sequence[str],
    *,
    max_bytes: int,
    companion: str = "",
    chunk_bytes: int = CHUNK_BYTES,
) -> Iterator[Item]:
    """Read the samples of one shard, in stored order.

    Consecutive files of one key are a sample; files without an extension and metadata files do not count. Its image is
    the file with the first of ``image_keys`` that it has. Other files are not read. A key is taken once: where it comes
    back after another key it is refused, as is a sample that has a file twice (webdataset: ValueError).

    A sample is yielded when the next key begins or the archive ends. So the last sample that began before a TarError is
    not yielded: one of its files might be missing. This does not depend on ``chunk_bytes``.

    Parameters
    ----------
    stream : binary file
        As for `tilecov.storage.tar.members`.
    image_keys : sequence of str
        Wanted extensions, best first, such as ``("png", "jpg", "jpeg", "webp", "npy")``.
    max_bytes : int
        A sample whose image is larger is refused, its file is not read.
    companion : str
        The extension of a file to hand over beside the image, such as ``cls``; empty for none.
    chunk_bytes : int
        Bytes of one read.

    Raises
    ------
    TarError
        For a damaged archive, after the samples before the damage.
    """
    for items in sample_lists(stream, image_keys, max_bytes=max_bytes, companion=companion, chunk_bytes=chunk_bytes):
        yield from items


def sample_lists(
    stream: BinaryIO, image_keys: Sequence[str], *, max_bytes: int, companion: str, chunk_bytes: int = CHUNK_BYTES
) -> Iterator[list[Item]]:
    """Read as `samples` does; yield what was found from time to time, in lists of any length."""
    grouping = _Samples(image_keys, companion, max_bytes)
    for found in walk(stream, max_bytes=max_bytes, wanted=grouping.wants, chunk_bytes=chunk_bytes):
        yield grouping.take_run(found) if isinstance(found, Run) else grouping.take(found)
        del found  # lets go of its memory before more is read
    yield grouping.close()


class _Samples:
    """Members to samples, as they come."""

    def __init__(self, image_keys: Sequence[str], companion: str, max_bytes: int) -> None:
        self._extensions = tuple(dict.fromkeys(key.lower() for key in image_keys))
        self._ranks = {extension: rank for rank, extension in enumerate(self._extensions)}
        self._companion, self._max_bytes = companion, max_bytes
        self._seen: set[str] = set()
        self._group: _Group | None = None
        self._parts: tuple[str, str] | None = None

    def wants(self, name: str) -> bool:
        """Return whether a file is read; asked just before its member is taken."""
        self._parts = _split(name)
        return self._parts is not None and (self._parts[1] in self._ranks or self._parts[1] == self._companion != "")

    def take(self, member: Member) -> list[Item]:
        """Take a member; return the sample before it, if that ends here."""
        if self._parts is None:
            return []
        (key, extension), ended = self._parts, []
        if self._group is None or key != self._group.key:
            ended = self.close()
            self._group = _Group(key, _returned(member) if key in self._seen else None, self._companion)
            self._seen.add(key)
        self._group.add(member, extension, self._ranks.get(extension, math.inf))
        return ended

    def take_run(self, run: Run) -> list[Item]:
        """Take a run of members, those of usual samples many at once; return the samples that end in it."""
        (chunk, _, entries), found, at = run, [], 0
        while at < len(entries):
            open_key = "" if self._group is None else self._group.key
            usual, at = usual_samples(
                entries, at, self._extensions, self._companion, open_key, self._seen, min(self._max_bytes, sys.maxsize)
            )
            if usual:
                found += self.close()
                found += [
                    Sample(key, self._extensions[rank], chunk[start:stop], None if beside < 0 else chunk[beside:end])
                    for key, rank, start, stop, beside, end in usual
                ]
            if at < len(entries):
                found += self.take(run.member(at, max_bytes=self._max_bytes, wanted=self.wants))
                at += 1
        return found

    def close(self) -> list[Item]:
        """Return the sample that is being read, if there is one."""
        if self._group is None:
            return []
        ended, self._group = self._group.close(self._extensions), None
        return [ended]


def _split(name: str) -> tuple[str, str] | None:
    """Return key and lower-case extension of a file; None where webdataset passes it over."""
    if meta_prefix in name and _META.match(name):
        return None
    folder, slash, base = name.rpartition("/")
    stem, dot, extension = base.partition(".")
    if stem and dot and "\n" not in name:  # what webdataset's expression finds, in a quarter of its time
        return f"{folder}{slash}{stem}", extension.lower()
    key, extension = base_plus_ext(name)
    return None if key is None else (key, extension.lower())


@dataclass(slots=True)
class _Group:
    """The sample that is being read."""

    key: str
    trouble: str | None
    beside: str
    companion: memoryview | bytes | None = None
    image: Member | None = None
    rank: float = math.inf
    extensions: set[str] = field(default_factory=set)

    def add(self, member: Member, extension: str, rank: float) -> None:
        """Note a file of the sample; hold it if it is the best image so far."""
        if extension in self.extensions and self.trouble is None:
            self.trouble = (
                f"{member.name!r}, at byte {member.offset} of the shard, is its second file with the extension "
                f"{extension!r}; pack the shard with one of them."
            )
        self.extensions.add(extension)
        if self.beside and extension == self.beside:
            self.companion = member.data
        if rank < self.rank:
            self.image, self.rank = member, rank

    def close(self, image_keys: Sequence[str]) -> Item:
        """Return what the sample has come to."""
        if self.trouble is not None:
            return Refused(self.key, self.trouble)
        if self.image is None:
            return Unwanted(self.key)
        if self.image.data is None:
            return Refused(self.key, str(self.image.refused))
        return Sample(self.key, image_keys[int(self.rank)], self.image.data, self.companion)


def _returned(member: Member) -> str:
    return (
        f"{member.name!r}, at byte {member.offset} of the shard, brings back a key that other keys followed; pack the "
        "files of a sample one after another, and each sample once."
    )


def webdataset_stage(
    image_keys: Sequence[str],
    *,
    max_bytes: int,
    open_url: Callable[[str], AbstractContextManager[BinaryIO]] = fsspec.open,  # its default mode is "rb"
    handler: Callable[[Exception], bool] = reraise_exception,
) -> Callable[[Iterable[Mapping[str, Any]]], Iterator[dict[str, Any]]]:
    """Make this reader a stage of a webdataset pipeline.

    It stands where ``wds.tarfile_to_samples()`` would, and yields ``{"__key__", "__url__", extension: bytes}``::

        wds.DataPipeline(wds.SimpleShardList(urls), webdataset_stage(["png"], max_bytes=2**26), wds.decode("rgb8"))

    ``handler`` is webdataset's: it gets a ValueError for a refused sample, and the TarError or OSError of a shard, of
    which the rest is left out; it raises, or returns whether to go on.
    """
    return partial(_stage, image_keys=tuple(image_keys), max_bytes=max_bytes, open_url=open_url, handler=handler)


def _stage(
    shards: Iterable[Mapping[str, Any]],
    *,
    image_keys: Sequence[str],
    max_bytes: int,
    open_url: Callable[[str], AbstractContextManager[BinaryIO]],
    handler: Callable[[Exception], bool],
) -> Iterator[dict[str, Any]]:
    for url in (shard["url"] for shard in shards):
        try:
            with open_url(url) as stream:
                for sample in samples(stream, image_keys, max_bytes=max_bytes):
                    if isinstance(sample, Sample):
                        yield {"__key__": sample.key, "__url__": url, sample.extension: bytes(sample.data)}
                    elif isinstance(sample, Refused) and not handler(ValueError(sample.key, sample.reason, url)):
                        return
        except (OSError, TarError) as error:
            error.args = (*error.args, url)  # as webdataset's own stages do
            if not handler(error):
                return
