"""A folder of images -> shards: the files' bytes unchanged, their paths as keys."""

import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from tilecov.storage.shardwriter import PER_SHARD, Sample, lay_out, refuse_existing, write_shard

IMAGES = frozenset({"png", "jpg", "jpeg", "webp", "npy"})
COMPANIONS = frozenset({"json", "cls", "txt"})


@dataclass(frozen=True, slots=True)
class PackReport:
    """What `pack` did.

    Parameters
    ----------
    urls : tuple of str
        The shards written.
    samples : int
        Images in them.
    bytes : int
        Size of the shards together.
    passed_over : int
        Files of the folder that are in no shard.
    """

    urls: tuple[str, ...]
    samples: int
    bytes: int
    passed_over: int


@dataclass(frozen=True, slots=True)
class _Found:
    """An image and the files that go with it, by extension; paths relative to the folder, '/' between their parts."""

    key: str
    files: dict[str, str]


def pack(
    folder: str,
    shards: str,
    *,
    per_shard: int = PER_SHARD,
    recursive: bool = True,
    overwrite: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    progress: Callable[[int], None] | None = None,
) -> PackReport:
    """Write the images of a folder into shards.

    Taken are .png, .jpg, .jpeg, .webp and .npy files (upper case too), byte for byte, in the order of their keys. A
    .json, .cls or .txt file of the same name becomes part of the image's sample. Links are followed, but each folder
    is read once, under the first name by which it is met, so a loop of links ends. Names with a leading dot (and what
    lies in such folders) are left alone.

    Parameters
    ----------
    folder : str
        A folder of this machine.
    shards : str
        Where: a brace range (``x-{000..007}.tar``), a counter (``x-%06d.tar``) or one shard (``x.tar``), on any fsspec
        URL. Folders on the way are made.
    per_shard : int
        Images in a shard, where ``shards`` has a counter.
    recursive : bool
        Whether to look into the folders inside.
    overwrite : bool
        Whether shards that exist may be replaced.
    storage_options : mapping, optional
        For fsspec's file system.
    progress : callable, optional
        Called with 1 for each image read.

    Raises
    ------
    FileNotFoundError, NotADirectoryError
        Where ``folder`` is no folder.
    ValueError
        Where it holds no image, two images would get one key, or ``shards`` names no shards to write.
    FileExistsError
        Where a shard exists and ``overwrite`` is false; nothing is written then.
    """
    files = list(_walk(folder, recursive=recursive))
    found = _group(folder, files)
    if not found:
        raise ValueError(_nothing(folder, files, recursive=recursive))
    layout = lay_out(shards, len(found), per_shard)
    urls = tuple(url for url, _ in layout)
    if not overwrite:
        refuse_existing(urls, storage_options)
    samples = _read(folder, found, progress)
    size = sum(write_shard(url, islice(samples, len(numbers)), storage_options) for url, numbers in layout)
    return PackReport(urls, len(found), size, len(files) - sum(len(sample.files) for sample in found))


def key_of(stem: str) -> str:
    """Turn a path without its extension into a key that WebDataset reads back as it was written.

    A key ends at the first dot of the base name (in some readers: of the path), so dots become underscores, as do
    characters that do not print. A first folder of the form ``__x__`` loses an underscore: WebDataset skips such names.
    """
    key = "".join(char if char.isprintable() and char != "." else "_" for char in stem)
    return re.sub(r"^__+(?=[^/]*__/)", "_", key)


def _walk(folder: str, *, recursive: bool) -> Iterator[str]:
    """Yield the relative path of every file, in one order on every machine."""
    seen = {_identity(Path(folder))}
    for where, folders, names in os.walk(folder, followlinks=True, onerror=_raise):
        folders[:] = [name for name in sorted(folders) if recursive and _is_new(Path(where, name), seen)]
        inside = PurePosixPath(os.path.relpath(where, folder))
        yield from (str(inside / name) for name in sorted(names))


def _is_new(folder: Path, seen: set[tuple[int, int]]) -> bool:
    if folder.name.startswith(".") or _identity(folder) in seen:
        return False
    seen.add(_identity(folder))
    return True


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _raise(error: OSError) -> NoReturn:
    raise error  # os.walk would pass over a folder that it cannot read


def _group(folder: str, files: Iterable[str]) -> list[_Found]:
    """Return the images with their companions, in the order of their keys."""
    images: dict[str, str] = {}
    companions: dict[str, dict[str, str]] = {}
    for file in files:
        stem, extension = _parts(file)
        if extension in IMAGES and _is_file(folder, file):
            _claim(images, key_of(stem), file, f"sample {key_of(stem)!r}")
        elif extension in COMPANIONS and _is_file(folder, file):
            _claim(companions.setdefault(stem, {}), extension, file, f"the .{extension} file of {stem!r}")
    found = []
    for key, file in sorted(images.items()):
        stem, extension = _parts(file)
        found.append(_Found(key, {extension: file} | companions.get(stem, {})))
    return found


def _parts(file: str) -> tuple[str, str]:
    """Part a path into its stem and its extension, in lower case and without the dot; hidden files have none."""
    folder, slash, name = file.rpartition("/")
    stem, dot, extension = name.rpartition(".")
    if not dot or name.startswith("."):
        return file, ""
    return folder + slash + stem, extension.lower()


def _is_file(folder: str, file: str) -> bool:
    """Return whether this is a file or a link to one: not a broken link, and no pipe that reading would wait on."""
    try:
        return stat.S_ISREG(Path(folder, file).stat().st_mode)
    except OSError:
        return False


def _claim(taken: dict[str, str], name: str, file: str, role: str) -> None:
    if name in taken:
        raise ValueError(f"{taken[name]} and {file} would both be {role}; rename one of them or move it away")
    taken[name] = file


def _read(folder: str, found: Iterable[_Found], progress: Callable[[int], None] | None) -> Iterator[Sample]:
    for sample in found:
        files = {extension: Path(folder, file).read_bytes() for extension, file in sample.files.items()}
        if progress:
            progress(1)
        yield {"__key__": sample.key, **files}


def _nothing(folder: str, files: list[str], *, recursive: bool) -> str:
    kinds = Counter(f".{_parts(file)[1]}" if _parts(file)[1] else "without an extension" for file in files)
    held = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5))
    depth = "and the folders inside it hold" if recursive else "(the folders inside it were not looked into) holds"
    wanted = ", ".join(f".{extension}" for extension in sorted(IMAGES))
    return f"{folder} {depth} no image: {len(files)} files{f' ({held})' if held else ''}; images are {wanted} files"
