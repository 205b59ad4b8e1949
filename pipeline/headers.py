"""What a picture declares before anything is decoded: its format, its size, and whether it is plain.

Plain pictures (8-bit gray and RGB PNG, baseline JPEG, simple WebP without alpha) are those that imagecodecs decodes as
Pillow does. Two habits of it have to be kept out: it pads truncated JPEGs with gray, and it passes over broken chunks
of a PNG. So a picture is plain only where its framing is sound to the last byte. What is inside the frames, sound or
not, both read alike.
"""

import struct
import zlib
from typing import NamedTuple

from PIL import features

from .pixels import jpeg_markers


class Header(NamedTuple):
    """What a picture declares.

    Parameters
    ----------
    width, height
        Pixels; 0 is possible.
    plain
        imagecodecs decodes the picture as Pillow does, and cannot run past its end.
    channels
        Of a plain PNG or JPEG, 1 or 3; 0 where it is not known.
    """

    width: int
    height: int
    plain: bool
    channels: int = 0


_PNG_PLAIN = {b"\x08\x00\x00\x00\x00": 1, b"\x08\x02\x00\x00\x00": 3}  # 8 bits, gray or RGB, not interlaced
# Ancillary chunks that change no pixel, each with the length from which Pillow cannot stumble over it.
_PNG_HARMLESS = {b"tEXt": 0, b"tIME": 0, b"bKGD": 0, b"sRGB": 1, b"gAMA": 4, b"pHYs": 9, b"cHRM": 32}
_png_chunk = struct.Struct(">I4s").unpack_from


def _png_header(data: bytes) -> Header | None:
    if data[8:16] != b"\x00\x00\x00\x0dIHDR" or len(data) < 33:
        return None
    width, height = struct.unpack_from(">II", data, 16)
    channels = _PNG_PLAIN.get(data[24:29], 0)
    return Header(width, height, plain=channels > 0 and _png_is_sound(data), channels=channels)


def _png_is_sound(data: bytes) -> bool:
    """Whether the chunks after IHDR are harmless ones and one unbroken series of IDAT, and lead to IEND."""
    position, last, series, previous = 33, len(data) - 12, 0, b"IHDR"
    while position <= last:
        length, name = _png_chunk(data, position)
        if name == b"IEND":
            return series == 1
        if name == b"IDAT":
            series += previous != b"IDAT"
        elif not _png_chunk_is_harmless(data, position, length, name):
            return False
        position += length + 12  # length, name and checksum take four bytes each
        previous = name
    return False


def _png_chunk_is_harmless(data: bytes, position: int, length: int, name: bytes) -> bool:
    if length < _PNG_HARMLESS.get(name, 2**32):
        return False
    # Over a wrong checksum imagecodecs drops the chunk, Pillow the picture.
    end = position + 8 + length
    return zlib.crc32(data[position + 4 : end]).to_bytes(4, "big") == data[end : end + 4]


def png_image_data(data: bytes) -> bytes | memoryview | None:
    """Return what the IDAT chunks of a plain PNG hold, one after another; None where the checksum of IHDR is wrong.

    The checksums of IDAT chunks are not compared, as in Pillow: what they hold has a checksum of its own.
    """
    if zlib.crc32(data[12:29]) != int.from_bytes(data[29:33], "big"):
        return None
    view, position, parts = memoryview(data), 33, []
    while True:
        length, name = _png_chunk(data, position)
        if name == b"IDAT":
            parts.append(view[position + 8 : position + 8 + length])
        elif parts:
            return parts[0] if len(parts) == 1 else b"".join(parts)
        position += length + 12


_JPEG_SCAN, _JPEG_JFIF = 0xDA, 0xE0
_JPEG_FACTORS, _JPEG_CODES = 0xDB, 0xC4  # quantization and Huffman tables
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_PLAIN = frozenset((0xC0, 0xC1))  # Huffman-coded and sequential
_JPEG_SEGMENTS = frozenset(range(0xC0, 0xFF)) - frozenset(range(0xD0, 0xDA))  # markers that a length follows
_jpeg_segment = struct.Struct(">BBH").unpack_from
_jpeg_frame = struct.Struct(">HBHHB").unpack_from
# The IJG's own library, behind some builds of Pillow, rounds and interpolates in another way than libjpeg-turbo.
SAME_LIBJPEG = bool(features.check_feature("libjpeg_turbo"))


def _jpeg_header(data: bytes) -> Header | None:
    """Walk the segments to the first scan."""
    position, last, header, plain = 2, len(data) - 4, None, SAME_LIBJPEG
    while position <= last:
        prefix, marker, length = _jpeg_segment(data, position)
        following = position + 2 + length
        if prefix != 0xFF or marker not in _JPEG_SEGMENTS or length < 2 or following > len(data):
            break
        if marker in _JPEG_FRAMES and length >= 8:
            plain = plain and header is None
            header = _jpeg_frame_header(data, position, marker)
        elif marker == _JPEG_SCAN:
            plain = plain and _jpeg_ends_soundly(data, following)
            return header and header._replace(plain=plain and header.plain)
        elif marker == _JPEG_CODES:
            plain = plain and _codes_are_open(data[position + 4 : following])
        elif marker != _JPEG_FACTORS:
            # The usual JFIF segment; Adobe colours, Exif, several pictures, restarts and so on are Pillow's business.
            plain = plain and marker == _JPEG_JFIF and length == 16
        position = following
    return header and header._replace(plain=False)


def _codes_are_open(tables: bytes) -> bool:
    """Whether these are Huffman tables of which no code is all ones: over others libjpeg's versions differ."""
    while tables:
        lengths = tables[1:17]
        if len(lengths) < 16 or sum(count << (15 - at) for at, count in enumerate(lengths)) >= 1 << 16:
            return False
        if len(tables) < 17 + sum(lengths):
            return False
        tables = tables[17 + sum(lengths) :]
    return True


def _jpeg_frame_header(data: bytes, position: int, marker: int) -> Header:
    _length, bits, height, width, layers = _jpeg_frame(data, position + 2)
    return Header(width, height, plain=marker in _JPEG_PLAIN and bits == 8 and layers in {1, 3}, channels=layers)


def _jpeg_ends_soundly(data: bytes, scan: int) -> bool:
    """Whether the one marker after the scan's header is the end of the picture and of the bytes."""
    # In coded pixels 0xFF is followed by 0x00. A decoder that meets no other marker cannot run past the end.
    return scan <= len(data) - 2 and data.endswith(b"\xff\xd9") and jpeg_markers(data, scan) == 1


def _webp_header(data: bytes) -> Header | None:
    if len(data) < 30:
        return None
    riff, kind, chunk = struct.unpack_from("<I4x4sI", data, 4)
    sound = riff + 8 == len(data) and chunk + (chunk & 1) + 20 == len(data)
    if kind == b"VP8X":  # has alpha, metadata or many frames
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
        return Header(width, height, plain=False)
    if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", data, 26)
        return Header(width & 0x3FFF, height & 0x3FFF, plain=sound)
    if kind == b"VP8L" and data[20] == 0x2F:
        bits = int.from_bytes(data[21:25], "little")  # 14 bits of width - 1, 14 of height - 1, alpha, version
        return Header((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, plain=sound and not bits >> 28 & 1)
    return None


_READERS = {"PNG": _png_header, "JPEG": _jpeg_header, "WebP": _webp_header}


def picture_format(data: bytes) -> str:
    """Tell PNG, JPEG and WebP apart by their first bytes, or raise ValueError."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WebP"
    raise ValueError(
        f"These {len(data)} bytes are no PNG, JPEG or WebP picture: they begin with {data[:8]!r}. "
        "Convert the picture to one of the three, or skip it."
    )


def read_header(data: bytes, image_format: str) -> Header | None:
    """Read the header of a whole PNG, JPEG or WebP file; None where it is too damaged to declare a size."""
    return _READERS[image_format](data)
