"""Pixels in C: what NumPy and Pillow find, and nothing is touched that is not a picture."""

import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from compiled import A_COMPILER_IS_HERE, NO_COMPILER
from hypothesis import given
from hypothesis import strategies as st

from tilecov.pipeline import pixels
from tilecov.pipeline.images import decode, image_row
from tilecov.pipeline.pixels import is_compiled, jpeg_markers, planes, png_row

SHAPES = st.tuples(st.sampled_from([1, 3]), st.integers(1, 9), st.integers(1, 9))


def test_it_is_compiled_where_a_compiler_is() -> None:
    """Installing goes on without it: this is where that would be seen."""
    assert is_compiled() or not A_COMPILER_IS_HERE


needs_c = pytest.mark.skipif(not is_compiled(), reason=NO_COMPILER)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_of(filtered: bytes, shape: tuple[int, int, int], parts: int = 1) -> bytes:
    """Return a PNG whose rows are filtered as given, in any number of IDAT chunks."""
    channels, height, width = shape
    header = struct.pack(">IIBBBBB", width, height, 8, 2 if channels == 3 else 0, 0, 0, 0)
    data = zlib.compress(filtered)
    step = -(-len(data) // parts)
    series = b"".join(chunk(b"IDAT", data[start : start + step]) for start in range(0, len(data), step))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + series + chunk(b"IEND", b"")


@st.composite
def filtered_rows(draw: st.DrawFn) -> tuple[tuple[int, int, int], bytes]:
    shape = draw(SHAPES)
    channels, height, width = shape
    lines = [
        bytes([draw(st.integers(0, 4))]) + draw(st.binary(min_size=width * channels, max_size=width * channels))
        for _ in range(height)
    ]
    return shape, b"".join(lines)


@needs_c
@given(filtered_rows(), st.integers(1, 3))
def test_every_filter_gives_the_pixels_of_imagecodecs_and_pillow(
    picture: tuple[tuple[int, int, int], bytes], parts: int
) -> None:
    shape, filtered = picture
    data = png_of(filtered, shape, parts)
    row = np.zeros(shape, np.uint8)
    assert png_row(zlib.compress(filtered), row)
    assert np.array_equal(row, decode(data, shape[0]).transpose(2, 0, 1))
    if shape[1] == shape[2]:
        again = np.zeros(row.size, np.uint8)
        image_row(data, shape[0], shape[1], again)
        assert np.array_equal(again, row.reshape(-1))


@pytest.mark.parametrize("compiled", [True, False])
@given(SHAPES, st.randoms(use_true_random=False))
def test_planes_are_a_transposition(compiled: bool, shape: tuple[int, int, int], random: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if not compiled:
            patch.setattr(pixels, "_pixels", None)
        channels, height, width = shape
        picture = np.frombuffer(random.randbytes(channels * height * width), np.uint8).reshape(height, width, channels)
        row = np.zeros(shape, np.uint8)
        planes(picture, row)
        assert np.array_equal(row, picture.transpose(2, 0, 1))
        if channels == 1:
            planes(picture[:, :, 0], row)
            assert np.array_equal(row[0], picture[:, :, 0])


def test_planes_of_views_are_copied_too() -> None:
    picture = np.arange(5 * 6 * 3, dtype=np.uint8).reshape(5, 6, 3)[:, ::2]
    row = np.zeros((3, 5, 6), np.uint8)[:, :, ::2]
    planes(picture, row)
    assert np.array_equal(row, picture.transpose(2, 0, 1))


@pytest.mark.parametrize("compiled", [True, False])
@given(st.binary(max_size=40) | st.lists(st.sampled_from([0, 1, 255]), max_size=12).map(bytes), st.integers(0, 45))
def test_markers_are_what_no_zero_follows(compiled: bool, data: bytes, start: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if not compiled:
            patch.setattr(pixels, "_pixels", None)
        found = sum(data[at] == 255 and data[at + 1 : at + 2] != b"\0" for at in range(start, len(data)))
        assert jpeg_markers(data, start) == found


WRONG = {
    "no filter of this number": b"\x00abc\x05abc",
    "a row too few": b"\x00abc",
    "a byte too many": b"\x00abc\x00abcd",
    "nothing": b"",
}


@pytest.mark.parametrize("filtered", WRONG.values(), ids=WRONG)
def test_what_is_no_picture_leaves_the_row_alone(filtered: bytes) -> None:
    row = np.full((3, 2, 1), 7, np.uint8)
    assert not png_row(zlib.compress(filtered), row)
    assert (row == 7).all()


@pytest.mark.parametrize("cut", [1, 4, 7])
def test_damaged_data_leaves_the_row_alone(cut: int) -> None:
    row, data = np.full((1, 2, 1), 7, np.uint8), zlib.compress(b"\0a\0b")
    assert not png_row(data[:-cut], row)
    assert not png_row(data[:-1] + bytes([data[-1] ^ 1]), row)
    assert (row == 7).all()


@needs_c
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("unfilter", (b"\0ab", bytearray(2), 1, 1, 2)),
        ("unfilter", (b"\0a", bytearray(2), 1, 1, 1)),
        ("unfilter", (b"\0ab", bytearray(1), 1, 1, 1)),
        ("unfilter", (b"\0a", bytearray(1), -1, -1, 1)),
        ("unfilter", (b"\0a", bytearray(1), 2**62, 4, 3)),
        ("unfilter", (b"", bytearray(0), 0, 0, 1)),
        ("planes", (b"abc", bytearray(2), 1, 3)),
        ("planes", (b"ab", bytearray(3), 1, 3)),
        ("planes", (b"", bytearray(0), 0, 3)),
        ("planes", (b"", bytearray(0), 2**62, 4)),
    ],
)
def test_c_refuses_sizes_that_do_not_fit_the_memory(name: str, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match=r"picture|bytes"):
        getattr(pixels._pixels, name)(*arguments)


@needs_c
def test_c_writes_to_nothing_that_is_read_only() -> None:
    row: npt.NDArray[np.uint8] = np.zeros(1, np.uint8)
    row.flags.writeable = False
    with pytest.raises((ValueError, BufferError, TypeError)):
        pixels._pixels.planes(b"a", row, 1, 1)


def test_without_c_pictures_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    data = png_of(b"".join(bytes([i % 5]) + bytes(range(i, i + 15)) for i in range(5)), (3, 5, 5))
    rows = [np.zeros(75, np.uint8) for _ in range(2)]
    image_row(data, 3, 5, rows[0])
    monkeypatch.setattr(pixels, "_pixels", None)
    image_row(data, 3, 5, rows[1])
    assert np.array_equal(*rows)


def test_a_wrong_checksum_of_the_header_is_left_to_pillow() -> None:
    data = bytearray(png_of(b"\0abc", (3, 1, 1)))
    data[29] ^= 1
    with pytest.raises(ValueError, match="Pillow cannot decode"):
        image_row(bytes(data), 3, 1, np.zeros(3, np.uint8))
