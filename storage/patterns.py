"""Patterns of URLs: brace ranges, lists and variables, expanded as webdataset does."""

import os
import re
from collections.abc import Iterable
from typing import cast

from braceexpand import braceexpand

from .redact import redact

_VARIABLE = re.compile(r"\$\{(\w+)\}")
_DEPTH = 10  # a variable may name others, to this depth


def expand(patterns: str | Iterable[str]) -> list[str]:
    """Expand brace ranges and ``::`` lists by webdataset's rules; order and duplicates are kept.

    Because ``::`` separates URLs, fsspec's chained URLs cannot be written here.

    Raises
    ------
    ValueError
        For a ``pipe:`` URL (it would run a shell), an empty URL, unbalanced braces and an unset ``${NAME}`` (which is
        read from the environment variable ``WDS_NAME``).
    """
    urls = [url for pattern in ([patterns] if isinstance(patterns, str) else patterns) for url in _expand_one(pattern)]
    for url in urls:
        if not url.strip():
            raise ValueError("A shard URL is empty; look for a stray '::' or ',' in the pattern.")
        if url.strip().lower().startswith("pipe:"):
            raise ValueError(f"{redact(url)!r} would run a shell, which is refused; give a path or an fsspec URL.")
    return urls


def _expand_one(pattern: str) -> list[str]:
    # webdataset.shardlists does the same and imports torch, for which nobody should wait before the shards are listed.
    try:
        return [url for part in pattern.split("::") for url in cast("Iterable[str]", braceexpand(_substitute(part)))]
    except KeyError as error:
        raise ValueError(
            f"{redact(pattern)!r} cannot be expanded: the environment variable {error.args[0]} is missing; set it, or "
            "write the value out."
        ) from error
    except ValueError as error:
        raise ValueError(
            f"{redact(pattern)!r} cannot be expanded: {redact(str(error))}; write ranges as {{000..099}}."
        ) from error


def _substitute(text: str) -> str:
    for _ in range(_DEPTH):
        text, count = _VARIABLE.subn(lambda found: os.environ[f"WDS_{found[1]}"], text)
        if not count:
            break
    return text
