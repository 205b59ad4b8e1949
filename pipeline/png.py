"""PNG straight into rows, many in one call, for what datasets of small images are made of.

Over a picture of 32 x 32, inflating and undoing the filters take a third of the time that a decoder takes if Python
hands it from one function to the next. So a whole batch is decoded in one call of C (`_png.c`), which holds no
interpreter lock. Inflating is libdeflate's there too: the one that imagecodecs is linked with, called without its
wrapper. Where either cannot be had, results are the same, and pictures are decoded one by one.
"""

import ctypes
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
from imagecodecs import DeflateError, deflate_decode  # loaded here: loaded at its first call, each fork would do so

try:
    compiled: ModuleType | None = import_module("._png", __package__)
except ImportError:  # pragma: no cover - no compiler was there
    compiled = None

Pixels = npt.NDArray[np.uint8]

_NEEDED = ("libdeflate_alloc_decompressor", "libdeflate_zlib_decompress", "libdeflate_free_decompressor")
_SLACK = bytes(4)  # what may be read past a line


def _libdeflate() -> tuple[int, ...] | None:
    """Return the addresses of what is needed of libdeflate; None where imagecodecs' own cannot be reached."""
    try:
        linked = ctypes.CDLL(import_module("imagecodecs._deflate").__file__)  # finds what it is linked with too
        return tuple(ctypes.cast(getattr(linked, name), ctypes.c_void_p).value or 0 for name in _NEEDED)
    except (AttributeError, ImportError, OSError):  # pragma: no cover - linked into it, its names hidden
        return None


libdeflate = _libdeflate()


def decodes_batches() -> bool:
    """Return whether C and libdeflate are there, so that `png_rows` decodes anything."""
    return compiled is not None and libdeflate is not None


def png_rows(pictures: Sequence[bytes | memoryview], rows: Pixels) -> Sequence[int]:
    """Write the pixels of PNG to rows, in CHW order; return the indices of those that could not be.

    It takes what nearly all programs write, of the size and channels of a row: 8 bits a value, not interlaced, an IHDR,
    one IDAT and an IEND. All others are left, damaged ones too, and their rows as they were.

    Parameters
    ----------
    pictures : sequence of bytes-like
        Whole files, n of them.
    rows
        uint8 of shape (n, C, H, W).
    """
    if compiled is None or libdeflate is None or not rows.flags.c_contiguous:
        return range(len(pictures))
    left: list[int] = compiled.rows(pictures, rows, rows.shape[2], rows.shape[3], rows.shape[1], libdeflate)
    return left


def png_row(compressed: Any, row: Pixels) -> bool:
    """Write the pixels of a PNG's image data to a row, in CHW order; return whether that could be done.

    Parameters
    ----------
    compressed : bytes-like
        What the IDAT chunks hold, one after another: 8 bits a value, not interlaced.
    row
        uint8 of shape (C, H, W), overwritten; untouched where False is returned.
    """
    channels, height, width = row.shape
    if compiled is None or not row.flags.c_contiguous:
        return False
    wanted = height * (width * channels + 1)
    try:
        filtered = deflate_decode(compressed, out=wanted, raw=False)
    except DeflateError:  # damaged, or more than a picture: somebody else's to judge
        return False
    return len(filtered) == wanted and bool(compiled.unfilter(filtered + _SLACK, row, height, width, channels))
