"""What a picture declares, read from a few bytes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import HEIGHT, PICTURES, PLAIN, SPECIAL, WIDTH, chunk, png_file, png_header

from tilecov.pipeline.headers import picture_format, read_header


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


@settings(deadline=None)
@given(st.sampled_from(["PNG", "JPEG", "WebP"]), st.binary(max_size=80))
def test_random_bytes_are_no_plain_picture(image_format: str, tail: bytes) -> None:
    start = {"PNG": png_header(1, 1)[:16], "JPEG": b"\xff\xd8\xff", "WebP": b"RIFF\0\0\0\0WEBPVP8"}[image_format]
    header = read_header(start + tail, image_format)
    assert not (header and header.plain)
