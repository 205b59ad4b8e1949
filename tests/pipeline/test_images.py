"""Pictures to rows: Pillow's pixels."""

import tarfile
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import HEIGHT, PICTURES, PLAIN, WIDTH, assert_same_verdict, by_pillow, encode, photo
from PIL import Image

from tilecov.pipeline import images
from tilecov.pipeline.images import IMAGE_EXTENSIONS, declared_size, decode, image_row


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", PICTURES)
def test_pixels_are_those_of_pillow(name: str, channels: int) -> None:
    pixels = decode(PICTURES[name], channels)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, by_pillow(PICTURES[name], channels))


def test_every_extension_has_a_picture() -> None:
    assert {"jpg" if name.startswith("JPEG") else name.split(maxsplit=1)[0].lower() for name in PICTURES} == {
        extension.replace("jpeg", "jpg") for extension in IMAGE_EXTENSIONS
    }


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", PLAIN)
def test_plain_pictures_never_reach_pillow(name: str, channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = by_pillow(PLAIN[name], channels)
    monkeypatch.setattr(images, "_decode_any", lambda *_: pytest.fail("Pillow was asked"))
    np.testing.assert_array_equal(decode(PLAIN[name], channels), expected)


def test_every_colour_has_the_gray_of_pillow() -> None:
    levels = np.arange(0, 256, 5, dtype=np.uint8)
    pixels = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(-1, len(levels), 3)
    data = encode(Image.fromarray(pixels), "PNG", compress_level=1)
    np.testing.assert_array_equal(decode(data, 1), by_pillow(data, 1))


@settings(max_examples=40)
@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    quality=st.integers(1, 100),
    sampling=st.sampled_from(["4:4:4", "4:2:2", "4:2:0", "4:1:1"]),
    kind=st.sampled_from(["PNG", "JPEG", "WEBP"]),
    mode=st.sampled_from(["L", "RGB"]),
    channels=st.sampled_from([1, 3]),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_size_and_quality_has_the_pixels_of_pillow(
    size: tuple[int, int], quality: int, sampling: str, kind: str, mode: str, channels: int, seed: int
) -> None:
    options: dict[str, Any] = {"quality": quality, "subsampling": sampling} if kind == "JPEG" else {}
    assert assert_same_verdict(encode(photo(*size, seed=seed).convert(mode), kind, **options), channels)


@pytest.mark.parametrize("resolution", [1, 7, 16, 64])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["PNG RGB", "PNG gray", "JPEG RGB 75 4:2:0", "WebP 80", "PNG palette", "JPEG CMYK"])
@pytest.mark.parametrize("size", [None, (16, 16)])
def test_row_is_the_resized_picture_in_chw_order(
    name: str, channels: int, resolution: int, size: tuple[int, int] | None
) -> None:
    data = PICTURES[name] if size is None else encode(photo(*size).convert("L" if "gray" in name else "RGB"), "PNG")
    block = np.full((3, channels * resolution**2), 77, np.uint8)
    image_row(data, channels, resolution, block[1])
    expected = by_pillow(data, channels, resolution).transpose(2, 0, 1).reshape(-1)
    np.testing.assert_array_equal(block[1], expected)
    assert (block[::2] == 77).all()  # the neighbours


def test_bytes_may_be_a_view() -> None:
    data = PLAIN["PNG RGB"]
    view = memoryview(b"before" + data + b"after")[6:-5]
    np.testing.assert_array_equal(decode(view, 3), decode(data, 3))
    assert declared_size(view) == (WIDTH, HEIGHT)


def test_threads_do_not_disturb_one_another() -> None:
    work = [*PICTURES.values()] * 3
    with ThreadPoolExecutor(8) as threads:
        for data, pixels in zip(work, threads.map(lambda item: decode(item, 3), work), strict=True):
            np.testing.assert_array_equal(pixels, decode(data, 3))


def test_real_shards_have_the_pixels_of_pillow(real_shards: list[str]) -> None:
    row = np.empty(3 * 64 * 64, np.uint8)
    count = 0
    for path in real_shards:
        with tarfile.open(path) as shard:
            for member in shard:
                data = shard.extractfile(member).read()  # type: ignore[union-attr]
                image_row(data, 3, 64, row)
                np.testing.assert_array_equal(row, by_pillow(data, 3, 64).transpose(2, 0, 1).reshape(-1))
                count += 1
    assert count == 3786


@pytest.mark.parametrize("marker", [b"\xff\xdb", b"\xff\xc0", b"\xff\xc4", b"\xff\xda"])
def test_jpeg_with_padded_markers_is_left_to_pillow(marker: bytes) -> None:
    data = PICTURES["JPEG gray"].replace(marker, b"\xff\xff" + marker, 1)
    np.testing.assert_array_equal(decode(data, 3), decode(PICTURES["JPEG gray"], 3))


@pytest.mark.parametrize("channels", [0, 2, 4])
def test_other_numbers_of_channels_are_refused(channels: int) -> None:
    with pytest.raises(ValueError, match=rf"1 channel \(gray\) or 3 \(RGB\), not with {channels}"):
        decode(PLAIN["PNG RGB"], channels)
