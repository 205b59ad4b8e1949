"""Sample bytes to uint8 rows, equal to Pillow bit for bit.

Pillow defines what a picture's pixels are, but spends most of its time on a small picture in Python. So plain pictures
(see `headers`) are decoded by imagecodecs, which calls C libraries of the same kind directly and without the
interpreter lock, and the most usual ones many at a time by C of our own (`png`, `jpeg`). Everything else goes to
Pillow, and so does every picture that the others refuse: what is an error is for Pillow to say.
"""

import io
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import NamedTuple, TypeAlias

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from .headers import SAME_LIBJPEG, Header, picture_format, png_image_data, read_header
from .jpeg import jpeg_rows
from .pixels import jpeg_plain, planes
from .png import png_row, png_rows

IMAGE_EXTENSIONS = ("png", "jpg", "jpeg", "webp")

MAX_PIXELS = 2**26  # 8192 x 8192 pixels; decoding takes up to 16 bytes a pixel (WebP with alpha), so 1 GiB

_MODES = {1: "L", 3: "RGB"}
_Pixels: TypeAlias = NDArray[np.uint8]


class _Codec(NamedTuple):
    decode_plain: Callable[..., _Pixels]
    open_any: Callable[[io.BytesIO], ImageFile]  # reads the header; no search for a plug-in, no bomb warning


_CODECS = {
    # Not `png_decode`: over some damaged pictures it gives back a reference to None too many, which in the end kills
    # Python 3.11 ("deallocating None"), and it reads memory that it never wrote. libspng is as fast and does neither.
    "PNG": _Codec(imagecodecs.spng_decode, PngImageFile),
    "JPEG": _Codec(imagecodecs.jpeg8_decode, JpegImageFile),
    "WebP": _Codec(imagecodecs.webp_decode, WebPImageFile),
}


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height == 0:
        raise ValueError(f"The picture declares {width} x {height} pixels: it has none. Skip it.")
    if width * height > max_pixels:
        raise ValueError(
            f"The picture declares {width} x {height} = {width * height:,} pixels, but at most {max_pixels:,} are "
            "decoded. Shrink it, or skip it."
        )


class _Scratch(threading.local):
    """A thread's picture of the size of a row, kept: fresh memory for each costs a quarter of a JPEG's decoding.

    It begins 16 bytes past a multiple of 32: where the lines of a picture are aligned to 32 bytes, libjpeg-turbo writes
    them past the cache, and reading them again makes the whole decoding half as slow again (measured).
    """

    def __init__(self) -> None:
        self._kept = np.empty((0, 0, 3), np.uint8)

    def of(self, channels: int, height: int, width: int) -> _Pixels:
        shape = (height, width, channels)[: 3 if channels == 3 else 2]
        if self._kept.shape != shape:
            size = math.prod(shape)
            memory = np.empty(size + 32, np.uint8)
            start = (16 - memory.ctypes.data) % 32
            self._kept = memory[start : start + size].reshape(shape)
        return self._kept


_scratch = _Scratch()


def _decode_plain(image_format: str, data: bytes | memoryview, out: _Pixels | None = None) -> _Pixels | None:
    try:
        return _CODECS[image_format].decode_plain(data, out=out)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - whatever imagecodecs has against the picture, Pillow gives the verdict
        return None


@contextmanager
def _pillow_errors(image_format: str, data: bytes) -> Iterator[None]:
    """Make a ValueError of whatever Pillow raises over a picture: SyntaxError, OSError, struct.error and more."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        cause = str(error) or type(error).__name__
        raise ValueError(
            f"Pillow cannot decode this {image_format} picture of {len(data)} bytes: {cause}. "
            "Write it again, or skip it."
        ) from error


def _decode_any(image_format: str, data: bytes, mode: str, max_pixels: int) -> Image.Image:
    with _pillow_errors(image_format, data):
        picture = _CODECS[image_format].open_any(io.BytesIO(data))
    _check_size(*picture.size, max_pixels)  # again: Pillow reads stranger headers, and believes the last of several
    with _pillow_errors(image_format, data):
        picture.load()
        picture.info.pop("transparency", None)  # has no say in the colours, but makes `convert` warn
        return picture.convert(mode)


def _front(data: bytes, max_pixels: int) -> tuple[str, Header | None]:
    """Return format and header; ValueError where they declare too many pixels or none, or are of no picture."""
    image_format = picture_format(data)
    header = read_header(data, image_format)
    if header is not None:
        _check_size(header.width, header.height, max_pixels)
    return image_format, header


def _read(data: bytes, mode: str, max_pixels: int) -> _Pixels | Image.Image:
    """Decode the first frame: as stored (gray or RGB) where imagecodecs did it, else to a picture of that mode."""
    image_format, header = _front(data, max_pixels)
    pixels = _decode_plain(image_format, data) if header is not None and header.plain else None
    return _decode_any(image_format, data, mode, max_pixels) if pixels is None else pixels


def usual_rows(pictures: Sequence[bytes | memoryview], rows: _Pixels) -> Sequence[int]:
    """Decode pictures of the most usual kinds into ``rows``, (n, C, H, W), in C; return the indices of those left.

    It asks no more of a picture than one look at its header. Rows of those left are as they were.
    """
    left = png_rows(pictures, rows)
    if not SAME_LIBJPEG:
        return left
    found: list[int] = []
    for _, run in groupby(enumerate(left), lambda place: place[1] - place[0]):  # rows side by side at a time
        indices = [index for _, index in run]
        span = slice(indices[0], indices[-1] + 1)
        found += [span.start + index for index in jpeg_rows(pictures[span], rows[span])]
    return found


def _usual_to_row(data: bytes | memoryview, row: _Pixels) -> bool:
    """Decode a PNG or JPEG of the usual kinds into ``row``, (C, H, W); return whether it was one.

    This is `_plain_to_row` for what nearly all datasets hold: a single look at the header, in C.
    """
    if not usual_rows([data], row[np.newaxis]):
        return True
    return SAME_LIBJPEG and jpeg_plain(data, row) and _jpeg_to_row(data, row)


def _plain_to_row(data: bytes, row: _Pixels, max_pixels: int) -> bool:
    """Decode a plain PNG or JPEG of the size and channels of ``row``, (C, H, W), into it; return whether it was one."""
    image_format, header = _front(data, max_pixels)
    if header is None or not header.plain or row.shape != (header.channels, header.height, header.width):
        return False
    if image_format == "PNG":
        compressed = png_image_data(data)
        return compressed is not None and png_row(compressed, row)
    return _jpeg_to_row(data, row)


def _jpeg_to_row(data: bytes | memoryview, row: _Pixels) -> bool:
    pixels = _decode_plain("JPEG", data, _scratch.of(*row.shape))
    if pixels is not None:
        planes(pixels, row)
    return pixels is not None


def _picture(pixels: _Pixels | Image.Image, mode: str) -> Image.Image:
    picture = Image.fromarray(pixels) if isinstance(pixels, np.ndarray) else pixels
    return picture if picture.mode == mode else picture.convert(mode)


def _mode(channels: int) -> str:
    if channels not in _MODES:
        raise ValueError(f"A picture is read with 1 channel (gray) or 3 (RGB), not with {channels}.")
    return _MODES[channels]


def declared_size(data: bytes | memoryview) -> tuple[int, int] | None:
    """Read the width and height, in pixels, that a picture declares; None where it declares none or is no picture."""
    data = bytes(data)
    try:
        header = read_header(data, picture_format(data))
    except ValueError:
        return None
    return header and (header.width, header.height)


def decode(data: bytes | memoryview, channels: int, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Decode the first frame of a PNG, JPEG or WebP picture exactly as Pillow does.

    The bytes decide the format, not a file's extension. As in Pillow, alpha is dropped, and gamma,
    colour profile and Exif orientation are not applied. Safe to call from many threads at once.

    Parameters
    ----------
    data
        The whole file.
    channels
        3 for Pillow's ``convert("RGB")``, 1 for its ``convert("L")`` (ITU-R 601-2 luma).
    max_pixels
        A picture that declares more pixels is refused before it is decoded. Decoding takes up to 16 bytes a pixel.

    Returns
    -------
    uint8 of shape (H, W, channels), possibly read-only.

    Raises
    ------
    ValueError
        The bytes are no such picture, are damaged or cut short, or declare no pixel or too many.
    """
    mode = _mode(channels)
    pixels = _read(bytes(data), mode, max_pixels)
    if isinstance(pixels, Image.Image) or (pixels.ndim == 3) != (channels == 3):
        pixels = np.asarray(_picture(pixels, mode))
    return pixels.reshape(*pixels.shape[:2], channels)


def image_row(
    data: bytes | memoryview, channels: int, resolution: int, out: NDArray[np.uint8], *, max_pixels: int = MAX_PIXELS
) -> None:
    """Decode one picture into a row of ``d = channels * resolution**2`` values in CHW order.

    A picture of another size is resized, after the conversion, with Pillow's bilinear filter: the antialiasing one,
    which is what torchvision's ``Resize((resolution, resolution))`` applies to a PIL image.

    Parameters
    ----------
    data, channels, max_pixels
        As for `decode`.
    resolution
        Width and height of the result, in pixels.
    out
        uint8 of shape (d,), overwritten; a row of a larger block will do. Untouched where an error is raised.

    Raises
    ------
    ValueError
        As for `decode`; or `out` has another size than d.
    """
    mode = _mode(channels)
    row = out.reshape(channels, resolution, resolution)
    if resolution**2 <= max_pixels and _usual_to_row(data, row):
        return
    data = bytes(data)
    if _plain_to_row(data, row, max_pixels):
        return
    pixels = _read(data, mode, max_pixels)
    if isinstance(pixels, Image.Image) or pixels.shape[:2] != row.shape[1:] or (pixels.ndim == 3 and channels == 1):
        picture = _picture(pixels, mode)
        if picture.size != (resolution, resolution):
            picture = picture.resize((resolution, resolution), Image.Resampling.BILINEAR)
        pixels = np.asarray(picture)
    if pixels.ndim == 3 or channels == 1:
        planes(pixels, row)
    else:  # gray in three channels is the same plane three times, as in Pillow's conversion: NumPy repeats it
        row[...] = pixels
