"""Sizes in bytes as people write them."""

import re
from decimal import Decimal

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def parse_size(text: str | int) -> int:
    """Return the bytes that ``4GiB``, ``500MB``, ``2g`` or ``1048576`` says.

    Raises
    ------
    ValueError
        Where it is no size.
    """
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?I?)B?\s*", str(text).upper())
    if not found or found[2] not in _UNITS:
        raise ValueError(f"{text!r} is no size; write it as 4GiB, 500MB or a number of bytes")
    return int(Decimal(found[1]) * _UNITS[found[2]])


def show_size(size: float) -> str:
    """Return a size as people read it, e.g. ``1.5 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        shown = f"{size:.0f}" if unit == "B" else f"{size:.1f}"
        if abs(float(shown)) < 1024:
            return f"{shown} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def show_time(seconds: float) -> str:
    """Return a duration as people read it, e.g. ``3 min 20 s``."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
