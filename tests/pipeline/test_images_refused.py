"""Pictures that are damaged, too large, or none: Pillow's verdict, and our limits."""

import io
import struct
import sys
import zlib

import imagecodecs
import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from pictures import (
    EDITS,
    GRAY_HEADER,
    GRAY_LINES,
    HEIGHT,
    PICTURES,
    PLAIN,
    SPECIAL,
    WIDTH,
    assert_same_verdict,
    chunk,
    edited,
    encode,
    photo,
    png_file,
    png_header,
    scanlines,
    with_sound_frames,
)
from PIL import Image

from tilecov.pipeline import images
from tilecov.pipeline.images import MAX_PIXELS, declared_size, decode, image_row

SMALL = {
    f"{kind} {mode}": encode(photo(9, 7).convert(mode), kind, **options)
    for kind, mode, options in (
        ("PNG", "RGB", {}),
        ("PNG", "L", {}),
        ("JPEG", "RGB", {}),
        ("JPEG", "L", {"quality": 30}),
        ("WEBP", "RGB", {}),
        ("WEBP", "RGB", {"lossless": True}),
    )
}


@pytest.mark.parametrize("name", SMALL)
def test_cut_pictures_have_pillows_verdict(name: str) -> None:
    data = SMALL[name]
    verdicts = [assert_same_verdict(data[:size]) for size in range(len(data))]
    assert not all(verdicts)


@settings(max_examples=400)
@given(st.sampled_from(sorted(SMALL)), EDITS, st.booleans(), st.sampled_from([1, 3]))
def test_damaged_pictures_have_pillows_verdict(
    name: str, edits: list[tuple[str, float, int]], repaired: bool, channels: int
) -> None:
    data = edited(SMALL[name], edits)
    data = with_sound_frames(data) if repaired else data
    width, height = declared_size(data) or (1, 1)
    if width * height < 2**16:
        event("decoded" if assert_same_verdict(data, channels) else "refused")


@settings(max_examples=100)
@given(EDITS, st.integers(0, 60), st.booleans())
def test_damaged_image_data_in_sound_chunks_have_pillows_verdict(
    edits: list[tuple[str, float, int]], lines: int, before_packing: bool
) -> None:
    # Checksums are right, so that the damage is left to the decompressor and the filters.
    header = png_header(WIDTH, HEIGHT)
    if before_packing:
        assert_same_verdict(png_file(header, edited(GRAY_LINES, edits) + b"\0" * lines))
    else:
        packed = edited(zlib.compress(GRAY_LINES), edits)
        assert_same_verdict(header + chunk(b"IDAT", packed[:lines]) + chunk(b"IDAT", packed[lines:]) + chunk(b"IEND"))


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.9])
def test_jpeg_cut_short_is_refused_though_imagecodecs_pads_it(keep: float) -> None:
    data = PLAIN["JPEG large 95 4:4:4"]
    data = data[: int(keep * len(data))]
    assert imagecodecs.jpeg8_decode(data).shape == (150, 201, 3)
    assert not assert_same_verdict(data)


@pytest.mark.parametrize(
    "data",
    [
        png_file(GRAY_HEADER, GRAY_LINES, before=chunk(b"gAMA", b"\0\0\0\1", sound=False)),
        png_file(GRAY_HEADER, GRAY_LINES, before=chunk(b"gAMA", b"\0")),
        png_file(GRAY_HEADER, GRAY_LINES, before=chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**21)))),
        png_file(GRAY_HEADER, GRAY_LINES)[:-12] + b"\0\0\1\0tEXtcut",
    ],
    ids=["checksum", "short", "bomb", "cut"],
)
def test_png_is_refused_for_chunks_that_imagecodecs_passes_over(data: bytes) -> None:
    assert imagecodecs.spng_decode(data).shape == (HEIGHT, WIDTH)
    assert not assert_same_verdict(data)


def test_damaged_pictures_leave_the_interpreter_sound() -> None:
    # imagecodecs.png_decode gives back one reference to None too many for each of these.
    bad = png_file(png_header(8, 8), scanlines([np.full(8, 9, np.uint8)] * 8).replace(b"\0", b"\7"))
    before = sys.getrefcount(None)
    for _ in range(500):
        with pytest.raises(ValueError, match="Pillow cannot decode"):
            decode(bad, 1)
    assert sys.getrefcount(None) > before - 250


@pytest.mark.parametrize("data", [b"", b"\x89PNG", b"GIF89a" + bytes(50), b"%!PS-Adobe"])
def test_what_is_no_picture_is_refused_by_its_first_bytes(data: bytes) -> None:
    with pytest.raises(ValueError, match=rf"{len(data)} bytes are no PNG, JPEG or WebP"):
        decode(data, 3)
    assert declared_size(data) is None


# What is too large, or nothing ----------------------------------------------------------------------------------------


def patched(name: str, at: int, patch: bytes) -> bytes:
    """Overwrite a part of a picture."""
    data = PICTURES[name]
    return data[:at] + patch + data[at + len(patch) :]


def resized(name: str, width: int, height: int) -> bytes:
    """Make a picture declare another size."""
    if name.startswith("PNG"):
        return with_sound_frames(patched(name, 16, struct.pack(">II", width, height)))
    if name.startswith("JPEG"):
        frame = b"\xff\xc2" if "progressive" in name else b"\xff\xc0"
        return patched(name, PICTURES[name].index(frame) + 5, struct.pack(">HH", height, width))
    if name in {"WebP RGBA", "WebP animated"}:
        return patched(name, 24, (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little"))
    if name == "WebP lossless":
        return patched(name, 21, (width - 1 | (height - 1) << 14).to_bytes(4, "little"))
    return patched(name, 26, struct.pack("<HH", width, height))


SIZED = ["PNG RGB", "PNG RGBA", "PNG interlaced", "JPEG gray", "JPEG progressive", "JPEG Exif", "WebP 80"]
CANVAS = ["WebP lossless", "WebP RGBA", "WebP animated"]


@pytest.mark.parametrize("name", SIZED + CANVAS)
def test_too_large_a_picture_is_refused_before_it_is_decoded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_CODECS", {})
    with pytest.raises(ValueError, match=rf"16000 x 16001 = 256,016,000 pixels.* at most {MAX_PIXELS:,} are"):
        decode(resized(name, 16_000, 16_001), 3)


@pytest.mark.parametrize("name", SIZED)
@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0)])
def test_picture_without_a_pixel_is_refused(name: str, size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=rf"{size[0]} x {size[1]} pixels: it has none"):
        image_row(resized(name, *size), 3, 8, np.empty(192, np.uint8))


@pytest.mark.parametrize("name", ["PNG RGB", "PNG RGBA", "JPEG gray", "JPEG CMYK", "WebP 80", "WebP RGBA"])
def test_limit_is_the_last_size_that_passes(name: str) -> None:
    decode(PICTURES[name], 3, max_pixels=WIDTH * HEIGHT)
    with pytest.raises(ValueError, match="17 x 23 = 391 pixels, but at most 390 are"):
        decode(PICTURES[name], 3, max_pixels=WIDTH * HEIGHT - 1)


def test_second_header_that_pillow_believes_is_limited_too() -> None:
    large = png_header(30_000, 30_000)[8:]
    data = png_file(GRAY_HEADER, GRAY_LINES, before=large)
    with pytest.raises(ValueError, match="30000 x 30000 = 900,000,000"):
        decode(data, 1)


@pytest.mark.parametrize("name", SPECIAL)
def test_our_limit_replaces_pillows_warning(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", WIDTH * HEIGHT - 1)
    with pytest.warns(Image.DecompressionBombWarning):
        Image.open(io.BytesIO(SPECIAL[name]))
    decode(SPECIAL[name], 3)  # warnings are errors here
