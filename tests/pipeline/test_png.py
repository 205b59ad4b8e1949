"""PNG in C, many at a time: the pixels of imagecodecs and Pillow, and rows left alone where it is no such picture."""

import struct
import zlib

import numpy as np
import pytest
from compiled import A_COMPILER_IS_HERE, NO_COMPILER, assert_sizes_are_checked
from hypothesis import given
from hypothesis import strategies as st

from tilecov.pipeline import pixels, png
from tilecov.pipeline.images import decode, image_row
from tilecov.pipeline.png import decodes_batches, png_row, png_rows

SHAPES = st.tuples(st.sampled_from([1, 3]), st.integers(1, 9), st.integers(1, 9))


def test_it_is_compiled_where_a_compiler_is() -> None:
    """Installing goes on without it: this is where that would be seen."""
    assert png.compiled is not None or not A_COMPILER_IS_HERE


def test_the_libdeflate_of_imagecodecs_can_be_reached() -> None:
    """Else all pictures are decoded one by one: this is where that would be seen, with the wheels from PyPI."""
    assert png.libdeflate is not None
    assert len(png.libdeflate) == 3
    assert all(png.libdeflate)


needs_c = pytest.mark.skipif(not decodes_batches(), reason=NO_COMPILER)


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
    rows = np.zeros((1, *shape), np.uint8)
    assert png_rows([data], rows) == ([0] if data.count(b"IDAT") > 1 else [])
    assert np.array_equal(rows[0], row if data.count(b"IDAT") == 1 else np.zeros(shape))
    if shape[1] == shape[2]:
        again = np.zeros(row.size, np.uint8)
        image_row(data, shape[0], shape[1], again)
        assert np.array_equal(again, row.reshape(-1))


@needs_c
@pytest.mark.parametrize("channels", [1, 3])
def test_long_lines_of_every_filter(channels: int) -> None:
    random = np.random.default_rng(3)
    shape, count = (channels, 21, 301), 12
    lines = random.integers(0, 256, (count, shape[1], shape[2] * channels + 1), np.uint8)
    lines[:, :, 1:][random.random(lines[:, :, 1:].shape) < 0.5] = 0  # so that neighbours are equal, and ties occur
    lines[:, :, 0] %= 5
    pictures = [png_of(picture.tobytes(), shape) for picture in lines]
    rows = np.zeros((count, *shape), np.uint8)
    assert png_rows(pictures, rows) == []
    for picture, row in zip(pictures, rows, strict=True):
        assert np.array_equal(row, decode(picture, channels).transpose(2, 0, 1))


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


def damaged(sound: bytes) -> dict[str, bytes]:
    """Return what is no PNG of that kind, or none at all."""
    last = sound.index(b"IEND") - 9  # byte of the data, behind which its chunk's checksum comes and a length
    checksum = sound[:last] + bytes([sound[last] ^ 1]) + sound[last + 1 :]
    return {
        "nothing": b"",
        "no PNG": b"\xff\xd8\xff" + sound[3:],
        "a filter that is not there": png_of(b"\5abc" * 3, (3, 3, 1)),
        "too short": png_of(b"\0abc" * 2, (3, 3, 1)),
        "too long": png_of(b"\0abc" * 4, (3, 3, 1)),
        "another size": png_of(b"\0abc" * 2, (3, 2, 1)),
        "gray": png_of(b"\0a" * 3, (1, 3, 1)),
        "cut": sound[:-13],
        "a checksum of its data": checksum,
    }


@needs_c
def test_what_cannot_be_decoded_is_left_and_named() -> None:
    sound = png_of(b"\0abc\1def\2ghi", (3, 3, 1))
    pictures = [sound]
    for wrong in damaged(sound).values():
        pictures += [wrong, memoryview(sound)]
    rows = np.full((len(pictures), 3, 3, 1), 7, np.uint8)
    assert png_rows(pictures, rows) == list(range(1, len(pictures), 2))
    assert (rows[1::2] == 7).all()
    assert (rows[::2] == decode(sound, 3).transpose(2, 0, 1)).all()
    assert png_rows([], rows[:0]) == []


@needs_c
@given(st.binary(max_size=300), st.integers(0, 60), st.booleans())
def test_random_bytes_are_left_or_are_what_pillow_says(noise: bytes, at: int, over: bool) -> None:
    sound = png_of(b"".join(b"\4" + bytes(range(i, i + 12)) for i in range(4)), (3, 4, 4))
    data = sound[:at] + noise + sound[at + len(noise) * over :]
    rows = np.full((2, 3, 4, 4), 7, np.uint8)
    if png_rows([data, sound], rows) == []:
        assert np.array_equal(rows[0], decode(data, 3).transpose(2, 0, 1))
    else:
        assert (rows[0] == 7).all()
    assert np.array_equal(rows[1], decode(sound, 3).transpose(2, 0, 1))


@needs_c
def test_c_refuses_sizes_that_do_not_fit_the_memory() -> None:
    sound, room = png_of(b"\0ab\0cd", (1, 2, 2)), np.zeros(8, np.uint8)
    assert png.compiled is not None
    assert_sizes_are_checked(png.compiled.rows, [[sound, sound], room, 2, 2, 1, png.libdeflate], says="picture|bytes")
    filtered = np.zeros(2 * 3 + 4, np.uint8)
    assert_sizes_are_checked(png.compiled.unfilter, [filtered, room[:4], 2, 2, 1], says="picture|bytes")
    for wrong in ([sound], [sound] * 3, []):
        with pytest.raises(ValueError, match="bytes"):
            png.compiled.rows(wrong, room, 2, 2, 1, png.libdeflate)
    for strange in ([sound, None], [sound, "text"], [sound, np.zeros((4, 4))[:, ::2]], None):
        with pytest.raises((TypeError, BufferError, ValueError)):
            png.compiled.rows(strange, room, 2, 2, 1, png.libdeflate)
    room.flags.writeable = False
    with pytest.raises((ValueError, BufferError, TypeError)):
        png.compiled.rows([sound, sound], room, 2, 2, 1, png.libdeflate)


@needs_c
def test_rows_that_are_apart_are_left() -> None:
    sound = png_of(b"\0ab\0cd", (1, 2, 2))
    assert list(png_rows([sound], np.zeros((1, 1, 2, 4), np.uint8)[..., ::2])) == [0]


@pytest.mark.parametrize("missing", ["compiled", "libdeflate"])
def test_without_either_all_are_left(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = png_of(b"\0ab\0cd", (1, 2, 2))
    monkeypatch.setattr(png, missing, None)
    assert not decodes_batches()
    assert list(png_rows([sound, sound], np.zeros((2, 1, 2, 2), np.uint8))) == [0, 1]


@pytest.mark.parametrize("missing", ["compiled", "libdeflate"])
def test_without_either_pictures_are_the_same(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = png_of(b"".join(bytes([i % 5]) + bytes(range(i, i + 15)) for i in range(5)), (3, 5, 5))
    rows = [np.zeros(75, np.uint8) for _ in range(2)]
    image_row(data, 3, 5, rows[0])
    monkeypatch.setattr(pixels, "_pixels", None)
    monkeypatch.setattr(png, missing, None)
    image_row(data, 3, 5, rows[1])
    assert np.array_equal(*rows)


def test_a_wrong_checksum_of_the_header_is_left_to_pillow() -> None:
    data = bytearray(png_of(b"\0abc", (3, 1, 1)))
    data[29] ^= 1
    with pytest.raises(ValueError, match="Pillow cannot decode"):
        image_row(bytes(data), 3, 1, np.zeros(3, np.uint8))
