"""What a picture declares, read from a few bytes."""

import numpy as np
import numpy.typing as npt
import pytest
from compiled import NO_COMPILER
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
    chunk,
    edited,
    png_file,
    png_header,
    with_sound_frames,
)

from tilecov.pipeline import pixels, png
from tilecov.pipeline.headers import Header, picture_format, read_header
from tilecov.pipeline.images import decode
from tilecov.pipeline.pixels import is_compiled, jpeg_plain
from tilecov.pipeline.png import decodes_batches, png_rows

needs_c = pytest.mark.skipif(not (is_compiled() and decodes_batches()), reason=NO_COMPILER)


@pytest.mark.parametrize("name", PICTURES)
def test_format_is_told_by_the_bytes(name: str) -> None:
    assert picture_format(PICTURES[name]) == name.split(maxsplit=1)[0]


@pytest.mark.parametrize("name", SPECIAL)
def test_size_is_declared_by_every_kind(name: str) -> None:
    header = read_header(SPECIAL[name], picture_format(SPECIAL[name]))
    assert header is not None
    assert (header.width, header.height) == (WIDTH, HEIGHT)


@pytest.mark.parametrize("name", PICTURES)
def test_plain_is_told_from_special(name: str) -> None:
    header = read_header(PICTURES[name], picture_format(PICTURES[name]))
    assert header is not None
    assert header.plain == (name in PLAIN)


@pytest.mark.parametrize("name", ["PNG RGB", "JPEG gray", "WebP 80", "WebP lossless"])
def test_cut_picture_is_never_plain(name: str) -> None:
    data = PLAIN[name]
    headers = [read_header(data[:size], name.split(maxsplit=1)[0]) for size in range(len(data))]
    assert not any(header and header.plain for header in headers)
    assert any(header and (header.width, header.height) == (WIDTH, HEIGHT) for header in headers)


@pytest.mark.parametrize(
    "data",
    [
        png_header(1, 1) + chunk(b"IEND"),
        png_file(png_header(1, 1), b"\0\0", after=chunk(b"tEXt", b"a\0b") + chunk(b"IDAT")),
        png_file(png_header(1, 1), b"\0\0", before=chunk(b"gAMA", b"\0\0\0\1", sound=False)),
        png_file(png_header(1, 1), b"\0\0", before=chunk(b"gAMA", b"\0")),
        png_file(png_header(1, 1), b"\0\0", before=chunk(b"zTXt", b"a\0\0")),
        png_file(png_header(1, 1), b"\0\0", before=chunk(b"ABCD")),
        png_file(png_header(1, 1), b"\0\0")[:-12],
    ],
    ids=["no data", "split data", "checksum", "short", "unknown", "critical", "no end"],
)
def test_png_with_odd_chunks_is_not_plain(data: bytes) -> None:
    header = read_header(data, "PNG")
    assert header is not None
    assert not header.plain


@given(st.sampled_from(["PNG", "JPEG", "WebP"]), st.binary(max_size=80))
def test_random_bytes_are_no_plain_picture(image_format: str, tail: bytes) -> None:
    start = {"PNG": png_header(1, 1)[:16], "JPEG": b"\xff\xd8\xff", "WebP": b"RIFF\0\0\0\0WEBPVP8"}[image_format]
    header = read_header(start + tail, image_format)
    assert not (header and header.plain)


def takes_png(data: bytes | memoryview, row: npt.NDArray[np.uint8]) -> bool:
    """Return whether C decodes a PNG into a row, (C, H, W)."""
    return not png_rows([data], row[np.newaxis])


def is_usual(data: bytes, header: Header) -> bool:
    """Return whether C takes a picture for plain, and hold that it then is, and that a PNG's pixels are Pillow's."""
    row = np.empty((1 if header.channels == 1 else 3, header.height, header.width), np.uint8)
    decoded, coded = takes_png(data, row), jpeg_plain(data, row)
    if not decoded and not coded:
        return False
    assert header.plain
    assert header.channels == len(row)
    assert (picture_format(data) == "PNG") == decoded != coded
    assert not decoded or np.array_equal(row, decode(data, len(row)).transpose(2, 0, 1))
    other = np.empty((4 - len(row), *row.shape[1:]), np.uint8)
    for wrong in (other, row[:, 1:], row[:, :, 1:]):
        if wrong.size:
            assert not takes_png(data, wrong)
            assert not jpeg_plain(data, wrong)
    return True


RARE = {"PNG text and density", "PNG gamma", "PNG pieces", "PNG large"}
"""Plain, but of several chunks: looked at in Python."""


@needs_c
@pytest.mark.parametrize("name", [name for name in PICTURES if not name.startswith("WebP")])
def test_c_tells_the_usual_kinds(name: str) -> None:
    header = read_header(PICTURES[name], picture_format(PICTURES[name]))
    assert header is not None
    assert is_usual(PICTURES[name], header) == (name in PLAIN and name not in RARE)


@needs_c
@settings(max_examples=400)
@given(st.sampled_from([name for name in PLAIN if not name.startswith("WebP")]), EDITS, st.booleans())
def test_c_takes_nothing_for_plain_that_is_not(name: str, edits: list[tuple[str, float, int]], repaired: bool) -> None:
    data = edited(PLAIN[name], edits)
    data = with_sound_frames(data) if repaired else data
    try:
        header = read_header(data, picture_format(data))
    except ValueError:
        header = None
    if header is not None and 0 < header.width * header.height < 2**20:
        event("usual" if is_usual(data, header) else "not usual")
    else:
        row = np.empty((3, HEIGHT, WIDTH), np.uint8)
        assert not takes_png(data, row)
        assert not jpeg_plain(data, row)


@needs_c
def test_c_leaves_a_wrong_checksum_of_the_header_to_others() -> None:
    data = bytearray(png_file(GRAY_HEADER, GRAY_LINES))
    row = np.empty((1, HEIGHT, WIDTH), np.uint8)
    assert takes_png(bytes(data), row)
    data[30] ^= 1
    assert not takes_png(bytes(data), row)


@needs_c
@pytest.mark.parametrize("name", ["PNG RGB", "PNG gray", "JPEG gray", "JPEG RGB 75 4:2:0"])
def test_c_takes_no_cut_picture_for_plain(name: str) -> None:
    row = np.empty((1 if "gray" in name else 3, HEIGHT, WIDTH), np.uint8)
    assert takes_png(PLAIN[name], row) or jpeg_plain(PLAIN[name], row)
    for size in range(len(PLAIN[name])):
        assert not takes_png(memoryview(PLAIN[name])[:size], row)
        assert not jpeg_plain(memoryview(PLAIN[name])[:size], row)


def test_without_c_nothing_is_surely_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "_pixels", None)
    monkeypatch.setattr(png, "compiled", None)
    row = np.empty((3, HEIGHT, WIDTH), np.uint8)
    assert not takes_png(PLAIN["PNG RGB"], row)
    assert not jpeg_plain(PLAIN["JPEG RGB 75 4:2:0"], row)
