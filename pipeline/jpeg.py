"""Small JPEG straight into rows, for what datasets of small images are made of.

Half of the time that libjpeg-turbo takes for a picture of 64 x 64 goes into Huffman codes, each taken apart in several
steps, and more into making and unmaking a decoder. C of our own (`_jpeg.c`) takes a code and the number behind it with
one look at a table that stays from picture to picture, and writes planes: the same pixels in three quarters of the time
(docs/decisions.md). It knows one kind of picture: baseline, gray or with as many pixels of each component (4:4:4), one
scan, up to 2**18 pixels, on x86-64 with AVX2. All others, and what decoders may read in several ways, are libjpeg's.
"""

import threading
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType

import numpy as np
import numpy.typing as npt

try:
    compiled: ModuleType | None = import_module("._jpeg", __package__)
except ImportError:  # pragma: no cover - no compiler was there, or no such processor
    compiled = None

Pixels = npt.NDArray[np.uint8]


class _Room(threading.local):
    """A thread's tables of codes: most pictures of a dataset have the same."""

    def __init__(self) -> None:
        self.tables = np.zeros(0 if compiled is None else compiled.ROOM, np.uint8)


_room = _Room()


def jpeg_rows(pictures: Sequence[bytes | memoryview], rows: Pixels) -> Sequence[int]:
    """Write the pixels of JPEG to rows; return the indices of those that are not of the kind that is known here.

    Their rows are untouched.

    Parameters
    ----------
    pictures : sequence of bytes-like
        Whole files, n of them.
    rows
        uint8 of shape (n, C, H, W).
    """
    if compiled is None or not rows.flags.c_contiguous:
        return range(len(pictures))
    left: list[int] = compiled.rows(pictures, rows, rows.shape[2], rows.shape[3], rows.shape[1], _room.tables)
    return left
