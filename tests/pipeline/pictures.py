"""Pictures of every kind, as bytes, and what Pillow makes of them."""

import io
import struct
import warnings
import zlib
from collections.abc import Iterable
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tilecov.pipeline.images import decode

MODES = {1: "L", 3: "RGB"}
HEIGHT, WIDTH = 23, 17


def photo(height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> Image.Image:
    """Return an RGB picture with edges, slopes and noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    slopes = np.stack([127 + 90 * np.sin(x / (3 + c)) * np.cos(y / (5 - c)) for c in range(3)], axis=-1)
    noise = rng.integers(-40, 40, slopes.shape)
    return Image.fromarray((slopes + noise + 60 * (x > y)[..., None]).clip(0, 255).astype(np.uint8))


def encode(picture: Image.Image, kind: str, **options: Any) -> bytes:
    """Encode with Pillow."""
    sink = io.BytesIO()
    picture.save(sink, kind, **options)
    return sink.getvalue()


def by_pillow(data: bytes, channels: int, resolution: int | None = None) -> npt.NDArray[np.uint8]:
    """Decode to (H, W, C) as Pillow does: what we promise to equal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a palette's alpha, which is dropped on purpose
        picture: Image.Image = Image.open(io.BytesIO(data)).convert(MODES[channels])
    if resolution and picture.size != (resolution, resolution):
        picture = picture.resize((resolution, resolution), Image.Resampling.BILINEAR)
    return np.asarray(picture).reshape(picture.height, picture.width, channels)


def assert_same_verdict(data: bytes, channels: int = 3) -> bool:
    """Hold that Pillow and we decode to the same pixels, or that neither decodes; return whether both did."""
    try:
        expected = by_pillow(data, channels)
    except Exception:  # noqa: BLE001 - Pillow raises what it likes
        with pytest.raises(ValueError, match=r"\w"):
            decode(data, channels)
        return False
    np.testing.assert_array_equal(decode(data, channels), expected)
    return True


# PNG, chunk by chunk --------------------------------------------------------------------------------------------------


def chunk(name: bytes, body: bytes = b"", *, sound: bool = True) -> bytes:
    """Return one chunk, with a wrong checksum where it is not to be sound."""
    checksum = zlib.crc32(name + body) ^ (not sound)
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", checksum)


def png_header(width: int, height: int, depth: int = 8, colour: int = 0, interlace: int = 0) -> bytes:
    """Return the signature and IHDR."""
    body = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", body)


def png_file(header: bytes, scanlines: bytes, before: bytes = b"", after: bytes = b"", pieces: int = 1) -> bytes:
    """Return a whole PNG; its image data in so many pieces."""
    packed = zlib.compress(scanlines)
    size = -(-len(packed) // pieces)
    data = b"".join(chunk(b"IDAT", packed[at : at + size]) for at in range(0, len(packed), size))
    return header + before + data + after + chunk(b"IEND")


def scanlines(rows: Iterable[npt.NDArray[Any]]) -> bytes:
    """Return unfiltered scanlines of rows of bytes."""
    return b"".join(b"\x00" + row.tobytes() for row in rows)


def interlaced_png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Return gray (H, W) pixels in the seven passes of Adam7, which Pillow cannot write."""
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    parts = (pixels[y::dy, x::dx] for x, y, dx, dy in passes)
    body = b"".join(scanlines(part) for part in parts if part.size)
    return png_file(png_header(pixels.shape[1], pixels.shape[0], interlace=1), body)


def _raw_png(depth: int, colour: int, samples: int) -> bytes:
    bits = -(-WIDTH * samples * depth // 8)
    rows = np.random.default_rng(depth).integers(0, 256, (HEIGHT, bits), dtype=np.uint8)
    return png_file(png_header(WIDTH, HEIGHT, depth, colour), scanlines(rows))


GRAY_HEADER = png_header(WIDTH, HEIGHT)
GRAY_LINES = scanlines(np.asarray(photo().convert("L")))


# Damage ---------------------------------------------------------------------------------------------------------------


EDITS = st.lists(
    st.tuples(
        st.sampled_from(["flip", "set", "cut", "drop", "insert", "join", "append"]),
        st.floats(0, 1, exclude_max=True),
        st.integers(0, 255),
    ),
    min_size=1,
    max_size=4,
)


def edited(data: bytes, edits: list[tuple[str, float, int]]) -> bytes:
    """Damage the bytes; a place is a fraction of their length."""
    out = bytearray(data)
    for edit, place, value in edits:
        at = int(place * len(out))
        if edit in {"flip", "set"} and out:
            out[at] = out[at] ^ (1 << value % 8) if edit == "flip" else value
        elif edit == "cut":
            del out[at:]
        elif edit == "drop":
            del out[at : at + value % 16]
        elif edit == "insert":
            out[at:at] = bytes([value]) * (1 + value % 3)
        elif edit == "join":  # cut the middle out, keep the end
            out[at:] = out[-12:]
        else:
            out += bytes([value])
    return bytes(out)


def with_sound_frames(data: bytes) -> bytes:
    """Make the lengths of a WebP and the checksums of a PNG fit the damage, so that it is met further in."""
    if data[:4] == b"RIFF" and len(data) > 20:
        data += b"\0" * (len(data) % 2)
        return struct.pack("<4sI8sI", b"RIFF", len(data) - 8, data[8:16], len(data) - 20) + data[20:]
    out, at = bytearray(data), 8
    while data[1:4] == b"PNG" and at + 12 <= len(out):
        end = at + 8 + int.from_bytes(out[at : at + 4], "big")
        if end + 4 > len(out):
            break
        out[end : end + 4] = zlib.crc32(out[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(out)


# Tables ---------------------------------------------------------------------------------------------------------------


def _exif() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter, which `convert` does not undo
    return exif.tobytes()


def _plain() -> dict[str, bytes]:
    rgb, gray = photo(), photo().convert("L")
    info = PngInfo()
    info.add_text("date:create", "2024")
    coded = {
        f"JPEG {name} {quality} {sampling}": encode(picture, "JPEG", quality=quality, subsampling=sampling)
        for (name, picture), quality, sampling in product(
            (("RGB", rgb), ("pixel", photo(1, 1)), ("line", photo(1, 40)), ("large", photo(150, 201))),
            (1, 30, 75, 95, 100),
            ("4:4:4", "4:2:2", "4:2:0", "4:1:1"),
        )
    }
    return coded | {
        "PNG RGB": encode(rgb, "PNG"),
        "PNG gray": encode(gray, "PNG"),
        "PNG pixel": encode(photo(1, 1), "PNG"),
        "PNG gray pixel": encode(photo(1, 1).convert("L"), "PNG"),
        "PNG large": encode(photo(150, 201), "PNG"),
        "PNG text and density": encode(rgb, "PNG", pnginfo=info, dpi=(72, 72)),
        "PNG gamma": png_file(GRAY_HEADER, GRAY_LINES, before=chunk(b"gAMA", struct.pack(">I", 22222))),
        "PNG pieces": png_file(GRAY_HEADER, GRAY_LINES, pieces=7),
        "JPEG gray": encode(gray, "JPEG"),
        "JPEG optimized": encode(rgb, "JPEG", optimize=True, dpi=(72, 72)),
        "WebP lossless": encode(rgb, "WEBP", lossless=True),
        "WebP gray": encode(gray, "WEBP"),
        "WebP pixel": encode(photo(1, 1), "WEBP"),
        **{f"WebP {quality}": encode(rgb, "WEBP", quality=quality) for quality in (0, 50, 80, 100)},
    }


def _special() -> dict[str, bytes]:
    rgb, gray = photo(), photo().convert("L")
    alpha, palette = rgb.copy(), rgb.quantize(200)
    alpha.putalpha(gray)
    frames = {"save_all": True, "append_images": [photo(seed=1), photo(seed=2)]}
    deep = Image.fromarray(np.random.default_rng(0).integers(0, 2**16, (HEIGHT, WIDTH), dtype=np.uint16))
    return {
        "PNG RGBA": encode(alpha, "PNG"),
        "PNG LA": encode(alpha.convert("LA"), "PNG"),
        "PNG bits": encode(rgb.convert("1"), "PNG"),
        "PNG 16-bit gray": encode(deep, "PNG"),
        "PNG palette": encode(palette, "PNG"),
        "PNG palette, 2 bits": encode(rgb.quantize(4), "PNG"),
        "PNG palette, one clear colour": encode(palette, "PNG", transparency=3),
        "PNG palette, alpha for each": encode(palette, "PNG", transparency=bytes(range(200))),
        "PNG clear colour": encode(rgb, "PNG", transparency=(127, 127, 127)),
        "PNG clear gray": encode(gray, "PNG", transparency=127),
        "PNG profile": encode(rgb, "PNG", icc_profile=b"profile"),
        "PNG Exif": encode(rgb, "PNG", exif=_exif()),
        "PNG animated": encode(rgb, "PNG", **frames),
        "PNG animated, default image": encode(rgb, "PNG", **frames, default_image=True),
        "PNG interlaced": interlaced_png(np.asarray(gray)),
        **{f"PNG gray of {depth} bits": _raw_png(depth, 0, 1) for depth in (1, 2, 4, 16)},
        **{f"PNG colour {colour} of 16 bits": _raw_png(16, colour, n) for colour, n in ((2, 3), (4, 2), (6, 4))},
        "JPEG CMYK": encode(rgb.convert("CMYK"), "JPEG"),
        "JPEG RGB colours": encode(rgb, "JPEG", keep_rgb=True),
        "JPEG progressive": encode(rgb, "JPEG", progressive=True),
        "JPEG progressive gray": encode(gray, "JPEG", progressive=True),
        "JPEG restarts": encode(rgb, "JPEG", restart_marker_blocks=1),
        "JPEG Exif": encode(rgb, "JPEG", exif=_exif()),
        "JPEG profile": encode(rgb, "JPEG", icc_profile=b"profile"),
        "JPEG comment": encode(rgb, "JPEG", comment=b"hello"),
        "JPEG and more": encode(rgb, "JPEG") + b"more",
        "JPEG of many": encode(rgb, "MPO", **frames),
        "WebP RGBA": encode(alpha, "WEBP"),
        "WebP RGBA lossless": encode(alpha, "WEBP", lossless=True),
        "WebP Exif": encode(rgb, "WEBP", exif=_exif()),
        "WebP animated": encode(rgb, "WEBP", **frames),
        "WebP and more": encode(rgb, "WEBP") + b"more",
    }


PLAIN = _plain()
SPECIAL = _special()
PICTURES = PLAIN | SPECIAL
