"""JPEG by C of our own: the pixels of Pillow and imagecodecs, or hands off."""

import io
import platform
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import pytest
from compiled import A_COMPILER_IS_HERE, NO_COMPILER
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import assert_same_verdict
from PIL import Image

from tilecov.pipeline import images, jpeg, pixels
from tilecov.pipeline.headers import SAME_LIBJPEG
from tilecov.pipeline.images import image_row
from tilecov.pipeline.jpeg import jpeg_rows

Pixels = npt.NDArray[np.uint8]


def has_avx2() -> bool:
    flags = Path("/proc/cpuinfo")
    return platform.machine() == "x86_64" and flags.exists() and " avx2 " in flags.read_text()


def test_it_is_compiled_where_a_compiler_and_such_a_processor_are() -> None:
    """Installing goes on without it: this is where that would be seen."""
    assert jpeg.compiled is not None or not (A_COMPILER_IS_HERE and has_avx2())


needs_c = pytest.mark.skipif(jpeg.compiled is None or not SAME_LIBJPEG, reason=f"no AVX2 here, or {NO_COMPILER}")


def some_pixels(seed: int, shape: tuple[int, int, int]) -> Pixels:
    """Return noise, a surface, one colour, or black and white: (H, W, C)."""
    rng = np.random.default_rng(seed)
    kinds: list[Callable[[], Any]] = [
        lambda: rng.integers(0, 256, shape),
        lambda: np.cumsum(rng.integers(-6, 7, shape), axis=0) + 128,
        lambda: np.full(shape, rng.integers(0, 256)),
        lambda: rng.choice([0, 255], shape),
    ]
    return np.clip(kinds[seed % 4](), 0, 255).astype(np.uint8)


def encoded(pixels: Pixels, **how: Any) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(
        sink, "JPEG", **{"quality": 95, "subsampling": 0, **how}
    )
    return sink.getvalue()


def jpeg_row(data: bytes, row: Pixels) -> bool:
    """Decode one picture; return whether it was decoded."""
    return not jpeg_rows([data], row[np.newaxis])


def decoded(data: bytes, shape: tuple[int, int, int]) -> Pixels | None:
    """Return what was written, (C, H, W); None where nothing was."""
    height, width, channels = shape
    row = np.full((channels, height, width), 77, np.uint8)
    if jpeg_row(data, row):
        return row
    assert (row == 77).all()
    return None


def by_pillow(data: bytes) -> Pixels:
    pixels = np.asarray(Image.open(io.BytesIO(data)))
    return pixels.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1)


SHAPES = st.tuples(st.integers(1, 70), st.integers(1, 70), st.sampled_from([1, 3]))
TABLES = st.lists(st.integers(1, 255), min_size=64, max_size=64)


@needs_c
@settings(max_examples=150)
@given(SHAPES, st.integers(0, 2**32 - 1), st.integers(1, 100), st.booleans())
def test_pixels_are_those_of_pillow_and_imagecodecs(
    shape: tuple[int, int, int], seed: int, quality: int, optimize: bool
) -> None:
    data = encoded(some_pixels(seed, shape), quality=quality, optimize=optimize)
    found = decoded(data, shape)
    assert found is not None
    np.testing.assert_array_equal(found, by_pillow(data))
    library = imagecodecs.jpeg8_decode(data).reshape(*shape)
    np.testing.assert_array_equal(found, library.transpose(2, 0, 1))


@needs_c
@settings(max_examples=100)
@given(SHAPES, st.integers(0, 2**32 - 1), TABLES, TABLES)
def test_any_table_of_factors_gives_the_same_pixels_or_none(
    shape: tuple[int, int, int], seed: int, one: list[int], other: list[int]
) -> None:
    data = encoded(some_pixels(seed, shape), qtables=[one, other])
    found = decoded(data, shape)
    assert found is None or np.array_equal(found, by_pillow(data))


@needs_c
@settings(max_examples=300)
@given(st.data(), SHAPES, st.integers(0, 2**32 - 1), st.integers(20, 100))
def test_damaged_pictures_are_left_alone_or_decoded_as_pillow_does(
    data: st.DataObject, shape: tuple[int, int, int], seed: int, quality: int
) -> None:
    picture = bytearray(encoded(some_pixels(seed, shape), quality=quality))
    scan = picture.index(b"\xff\xda")
    first = data.draw(st.sampled_from([2, scan, scan]))
    for _ in range(data.draw(st.integers(1, 3))):
        last = len(picture) - 3
        at = data.draw(st.integers(min(first, last), last))
        kind = data.draw(st.sampled_from(["bit", "byte", "cut"]))
        if kind == "bit":
            picture[at] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == "byte":
            picture[at : at + 1] = data.draw(st.binary(min_size=1, max_size=4))
        else:
            del picture[at : min(at + data.draw(st.integers(1, 9)), len(picture) - 2)]
    found = decoded(bytes(picture), shape)
    assert found is None or np.array_equal(found, by_pillow(bytes(picture)))


OTHERS: dict[str, dict[str, Any]] = {
    "fewer pixels of colour": {"subsampling": 2},
    "half as many pixels of colour": {"subsampling": 1},
    "progressive": {"progressive": True},
    "with restarts": {"restart_marker_blocks": 2},
    "with Exif": {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"},
    "with a comment": {"comment": b"hello"},
    "colours stored as they are": {"keep_rgb": True},
}


@needs_c
@pytest.mark.parametrize("how", OTHERS.values(), ids=OTHERS)
def test_other_kinds_are_left_to_libjpeg(how: dict[str, Any]) -> None:
    pixels = some_pixels(1, (24, 24, 3))
    data = encoded(pixels, **how)
    assert decoded(data, pixels.shape) is None
    row = np.zeros(pixels.size, np.uint8)
    image_row(data, 3, 24, row)
    np.testing.assert_array_equal(row.reshape(3, 24, 24), by_pillow(data))


@needs_c
@pytest.mark.parametrize("shape", [(24, 23, 3), (23, 24, 3), (24, 24, 1), (48, 12, 3)])
def test_a_row_of_another_size_is_left_alone(shape: tuple[int, int, int]) -> None:
    assert decoded(encoded(some_pixels(0, (24, 24, 3))), shape) is None


@needs_c
def test_larger_pictures_are_left_to_libjpeg() -> None:
    pixels = some_pixels(1, (512, 520, 1))
    assert decoded(encoded(pixels), pixels.shape) is None
    assert decoded(encoded(pixels[:, :512]), (512, 512, 1)) is not None


@needs_c
@pytest.mark.parametrize("behind", [b"\0", b"\xff\xd9", b"\xff\xd0", b"more"])
def test_what_lies_behind_the_pixels_is_looked_at_by_others(behind: bytes) -> None:
    data = encoded(some_pixels(0, (16, 16, 3)))
    assert decoded(data + behind, (16, 16, 3)) is None
    assert decoded(data[:-2] + behind + data[-2:], (16, 16, 3)) is None
    assert all(decoded(data[:length], (16, 16, 3)) is None for length in range(len(data)))


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("which", range(4))
def test_a_code_of_all_ones_is_for_pillow_to_judge(compiled: bool, which: int) -> None:
    """The standard forbids it, libjpeg-turbo 3.2 refuses it, and 3.1 does not."""
    with pytest.MonkeyPatch.context() as patch:
        if not compiled:
            patch.setattr(pixels, "_pixels", None)
        picture = bytearray(encoded(some_pixels(1, (16, 16, 3)), quality=75))
        table = [at for at in range(len(picture)) if picture.startswith(b"\xff\xc4", at)][which]
        counts = picture[table + 5 : table + 21]
        last = max(at for at, count in enumerate(counts) if count)
        before = sum(count << (15 - at) for at, count in enumerate(counts))
        for shorter in range(
            last - 1, -1, -1
        ):  # a code of the last length becomes one of another, so that all are taken
            if before - (1 << (15 - last)) + (1 << (15 - shorter)) >= 1 << 16:
                counts[last] -= 1
                counts[shorter] += 1
                break
        picture[table + 5 : table + 21] = counts
        assert decoded(bytes(picture), (16, 16, 3)) is None
        assert_same_verdict(bytes(picture))


@needs_c
def test_tables_of_one_picture_are_not_taken_for_another_s() -> None:
    """Threads keep them, and a picture that defines none has none."""
    pictures = [encoded(some_pixels(seed, (16, 16, 3)), optimize=bool(seed % 2)) for seed in range(12)]
    wanted = [by_pillow(data) for data in pictures]
    found: list[bool] = []

    def work(first: int) -> None:
        for turn in range(400):
            at = (first + turn * 5) % len(pictures)
            row = np.zeros((3, 16, 16), np.uint8)
            found.append(jpeg_row(pictures[at], row) and np.array_equal(row, wanted[at]))

    threads = [threading.Thread(target=work, args=(first,)) for first in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 1200
    assert all(found)
    bare = pictures[0]
    while (at := bare.find(b"\xff\xc4")) >= 0:
        bare = bare[:at] + bare[at + 2 + int.from_bytes(bare[at + 2 : at + 4], "big") :]
    assert decoded(bare, (16, 16, 3)) is None


@needs_c
def test_rows_are_the_same_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    data, rows = encoded(some_pixels(0, (32, 32, 3))), [np.zeros(3072, np.uint8) for _ in range(2)]
    image_row(data, 3, 32, rows[0])
    monkeypatch.setattr(images, "jpeg_rows", lambda pictures, _: range(len(pictures)))
    image_row(data, 3, 32, rows[1])
    np.testing.assert_array_equal(*rows)


@needs_c
@pytest.mark.parametrize(
    ("shape", "length", "room"),
    [
        ((16, 16, 3), 767, 0),
        ((16, 16, 3), 0, 0),
        ((16, 16, 3), 768, -1),
        ((16, 16, 2), 512, 0),
        ((0, 16, 3), 0, 0),
        ((-16, -16, 3), 768, 0),
        ((2**62, 4, 3), 0, 0),
        ((2**31, 2**31, 1), 0, 0),
    ],
)
def test_c_refuses_sizes_that_do_not_fit_the_memory(shape: tuple[int, int, int], length: int, room: int) -> None:
    assert jpeg.compiled is not None
    data, tables = encoded(some_pixels(0, (16, 16, 3))), np.zeros(jpeg.compiled.ROOM + room, np.uint8)
    with pytest.raises(ValueError, match=r"picture|bytes"):
        jpeg.compiled.rows([data], np.zeros(length, np.uint8), *shape, tables)


@needs_c
def test_many_are_decoded_in_one_call_and_others_left() -> None:
    pixels = [some_pixels(seed, (16, 24, 3)) for seed in range(3)]
    pictures = [
        encoded(pixels[0]),
        encoded(pixels[1], subsampling=2),
        encoded(pixels[1])[:-40],
        encoded(some_pixels(0, (24, 16, 3))),
        memoryview(encoded(pixels[1])),
        b"",
        encoded(pixels[2]),
    ]
    rows = np.full((len(pictures), 3, 16, 24), 77, np.uint8)
    assert list(jpeg_rows(pictures, rows)) == [1, 2, 3, 5]
    assert (rows[[1, 2, 3, 5]] == 77).all()
    for index in (0, 4, 6):
        np.testing.assert_array_equal(rows[index], by_pillow(bytes(pictures[index])))
    assert list(jpeg_rows(pictures[:1], rows[:1, :, :, ::2])) == [0]
    assert jpeg.compiled is not None
    for wrong in (pictures[:2], pictures[:1] * 4, [pictures[0], None, pictures[0]]):
        with pytest.raises((ValueError, TypeError)):
            jpeg.compiled.rows(wrong, rows[:3], 16, 24, 3, np.zeros(jpeg.compiled.ROOM, np.uint8))
