"""Pixels from one order of memory to another: by C where it was compiled, else by NumPy.

What is done here for every picture is a few microseconds in C (`_pixels.c`) and, in Python or in the codecs' own way,
as long as the decoding itself. It holds no interpreter lock there. Where no compiler was at hand when tilecov was
installed, all results are the same.
"""

from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

try:
    _pixels: ModuleType | None = import_module("._pixels", __package__)
except ImportError:  # pragma: no cover - no compiler was there
    _pixels = None

Pixels = npt.NDArray[np.uint8]


def is_compiled() -> bool:
    """Return whether the C functions are there."""
    return _pixels is not None


def jpeg_plain(data: bytes | memoryview, row: Pixels) -> bool:
    """Return whether a JPEG is surely plain (`headers`), and of the size and channels of a row, (C, H, W)."""
    channels, height, width = row.shape
    return _pixels is not None and bool(_pixels.jpeg_plain(data, height, width, channels))


def planes(picture: npt.NDArray[Any], row: Pixels) -> None:
    """Write a picture, (H, W, C) or (H, W) uint8, to a row, (C, H, W)."""
    if _pixels is not None and picture.flags.c_contiguous and row.flags.c_contiguous:
        channels = picture.shape[2] if picture.ndim == 3 else 1
        _pixels.planes(picture, row, picture.size // channels, channels)
    else:
        row[...] = picture.transpose(2, 0, 1) if picture.ndim == 3 else picture


def jpeg_markers(data: bytes, start: int) -> int:
    """Return how many bytes 0xFF from ``start`` on are not followed by 0x00: markers, and no coded pixels."""
    if _pixels is not None:
        return int(_pixels.jpeg_markers(data, start))
    return data.count(b"\xff", start) - data.count(b"\xff\x00", start)


def row_norms(rows: Pixels) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return ||y||^2 of uint8 rows (n, d), y = x - 128, and the sum of ||y||^2 y, where C is compiled.

    The sum is made in float64, exact while n d is at most 2^32.
    """
    squares, third = np.empty(len(rows), np.int64), np.zeros(rows.shape[1])
    if _pixels is None:
        raise RuntimeError("no C compiler was at hand when tilecov was installed")
    if len(rows):
        _pixels.norms(np.ascontiguousarray(rows), squares, third)
    return squares, third.astype(np.int64)
