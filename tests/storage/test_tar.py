"""The tar walk: equal to tarfile on what tarfile writes, TarError on everything that is damaged."""

import bz2
import gzip
import io
import lzma
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilecov.storage.tar import Member, TarError, members

SHARDS = Path(__file__).parents[2] / "../shared/data/twemoji64"
FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
LARGE = 1 << 30

Files = list[tuple[str, bytes]]


class Trickle(io.RawIOBase):
    """A pipe-like stream: it cannot seek, and each read returns the next of `steps` bytes at most."""

    def __init__(self, data: bytes, steps: tuple[int, ...] = (1 << 30,)) -> None:
        self.source, self.steps, self.count = io.BytesIO(data), steps, 0

    def seekable(self) -> bool:
        return False

    def read(self, size: int = -1) -> bytes:
        self.count += 1
        return self.source.read(min(size, self.steps[self.count % len(self.steps)]))


class Watched(io.BytesIO):
    """A file that counts the bytes read, and may claim to seek without being able to."""

    bytes_read, seeks, seek_error = 0, 0, None

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.bytes_read += len(data)
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        self.seeks += 1
        if self.seek_error is not None:
            raise self.seek_error
        return super().seek(offset, whence)


def packed(files: Files, tar_format: int = tarfile.USTAR_FORMAT) -> tuple[bytes, int]:
    """Return a tar and the offset at which its end marker begins."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tar_format, encoding="utf-8") as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        end = tar.offset
    return out.getvalue(), end


def by_tarfile(data: bytes) -> list[tuple[str, int, int, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:", encoding="utf-8") as tar:
        return [(m.name, m.size, m.offset, tar.extractfile(m).read()) for m in tar if m.isreg()]


def walked(stream: Any, **options: Any) -> list[tuple[str, int, int, bytes]]:
    # All are held before the first is looked at: a view must outlive the chunk it was cut from.
    found = list(members(stream, max_bytes=LARGE, **options))
    assert all(m.data.readonly and m.refused is None for m in found)
    return [(m.name, m.size, m.offset, bytes(m.data)) for m in found]


def until_error(stream: Any, max_bytes: int = LARGE, **options: Any) -> tuple[list[Member], TarError | None]:
    found: list[Member] = []
    try:
        found.extend(members(stream, max_bytes=max_bytes, **options))  # extend keeps what came before
    except TarError as error:
        return found, error
    return found, None


def header(
    name: bytes = b"a.png", size: int | bytes = 0, kind: bytes = b"0", *, signed: bool = False, **at: bytes
) -> bytes:
    """Return a v7 header with a right checksum; `at_257=b"ustar"` writes further fields."""
    block = bytearray(512)
    digits = size if isinstance(size, bytes) else b"%011o\0" % size
    for offset, value in [(0, name), (124, digits), (156, kind), *((int(k[3:]), v) for k, v in at.items())]:
        block[offset : offset + len(value)] = value
    block[148:156] = b" " * 8
    total = sum(memoryview(block).cast("b") if signed else block)
    block[148:156] = b"%06o\0 " % total
    return bytes(block)


def pax(*records: bytes, kind: bytes = b"x") -> bytes:
    payload = b"".join(records)
    return header(b"pax", len(payload), kind) + payload.ljust(-(-len(payload) // 512) * 512, b"\0")


END = bytes(1024)
DATA = b"payload".ljust(512, b"\0")

names = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20),
    st.binary(min_size=1, max_size=20).map(lambda b: b.replace(b"\0", b"0").decode("utf-8", "surrogateescape")),
    st.lists(st.text("ab.é/", min_size=1, max_size=60), min_size=1, max_size=6).map("/".join),
).map(lambda name: name.rstrip("/") + "n")  # tarfile strips slashes at the end
sizes = st.one_of(st.sampled_from([0, 1, 511, 512, 513, 1023, 1024, 1025]), st.integers(0, 5000))
payloads = st.builds(lambda size, seed: bytes((i * 7 + seed) % 256 for i in range(size)), sizes, st.integers(0, 255))
short_names = st.text("ab.é", min_size=1, max_size=40)
chunks = st.one_of(st.sampled_from([1, 511, 512, 513, 1024, 1536, 1 << 20]), st.integers(1, 6000))


@given(st.lists(st.tuples(names, payloads), max_size=6), st.sampled_from(FORMATS), chunks, st.data())
def test_equals_tarfile(files: Files, tar_format: int, chunk_bytes: int, data: st.DataObject) -> None:
    try:
        tar, _ = packed(files, tar_format)
    except ValueError:  # a name that ustar cannot hold
        tar, _ = packed(files, tarfile.PAX_FORMAT)
    expected = by_tarfile(tar)
    steps = tuple(data.draw(st.lists(st.integers(1, 2000), min_size=1, max_size=4)))
    assert [name for name, *_ in expected] == [name for name, _ in files]
    assert walked(io.BytesIO(tar), chunk_bytes=chunk_bytes) == expected
    assert walked(Trickle(tar, steps), chunk_bytes=chunk_bytes) == expected


@given(st.lists(st.tuples(names, payloads), max_size=4), chunks, st.sampled_from(FORMATS[1:]), st.data())
def test_a_cut_tar_is_an_error(files: Files, chunk_bytes: int, tar_format: int, data: st.DataObject) -> None:
    tar, end = packed(files, tar_format)
    cut = tar[: data.draw(st.integers(0, end + 511))]
    whole, _ = until_error(io.BytesIO(tar))
    found, error = until_error(io.BytesIO(cut), chunk_bytes=chunk_bytes)
    assert error is not None
    assert found == whole[: len(found)]
    # What comes before the damage depends neither on the chunks nor on what was read or skipped.
    skipped, error = until_error(io.BytesIO(cut), wanted=lambda name: False)
    assert error is not None
    assert [m.offset for m in skipped] == [m.offset for m in found]


def test_one_block_of_zeros_ends_a_tar() -> None:
    tar, end = packed([("a.png", b"1"), ("b.png", b"2" * 600)])
    assert walked(io.BytesIO(tar[: end + 512])) == by_tarfile(tar)
    assert walked(io.BytesIO(tar[: end + 512] + b"not looked at")) == by_tarfile(tar)
    assert walked(io.BytesIO(bytes(512))) == []


@given(st.lists(st.tuples(short_names, payloads), min_size=1, max_size=3), chunks, st.data())
def test_a_flipped_bit_is_an_error_or_leaves_the_walk_as_it_was(
    files: Files, chunk_bytes: int, data: st.DataObject
) -> None:
    # Names of fewer than 100 bytes: those in extension headers are guarded by no checksum.
    tar, end = packed(files)
    bit = data.draw(st.integers(0, (end + 512) * 8 - 1))
    damaged = bytearray(tar)
    damaged[bit // 8] ^= 1 << bit % 8
    found, error = until_error(io.BytesIO(damaged), chunk_bytes=chunk_bytes)
    walk = [(name, size, offset) for name, size, offset, _ in by_tarfile(tar)]
    assert [(m.name, m.size, m.offset) for m in found] == (walk if error is None else walk[: len(found)])


kinds = st.sampled_from(b"0\x00123456789LKxXgSMVDN")
fields = st.sampled_from([0, 100, 124, 125, 135, 156, 257, 263, 345, 511])


@given(
    st.lists(
        st.tuples(st.binary(max_size=12), st.sampled_from(b"0\x00123456789LKxXgSMVDN"), fields, st.binary(max_size=20))
    ),
    st.lists(st.tuples(st.integers(0, 20000), st.binary(max_size=9)), max_size=4),
    chunks,
    st.booleans(),
)
def test_any_bytes_give_members_or_a_tar_error(
    heads: list[tuple[bytes, int, int, bytes]], writes: list[tuple[int, bytes]], chunk_bytes: int, seekable: bool
) -> None:
    tar = bytearray(
        b"".join(header(n, 20, bytes([k]), **{f"at_{f}": v[: 512 - f]}) + DATA for n, k, f, v in heads) + END
    )
    for offset, value in writes:
        tar[offset : offset + len(value)] = value[: max(0, len(tar) - offset)]
    stream = io.BytesIO(tar) if seekable else Trickle(bytes(tar))
    found, error = until_error(stream, max_bytes=4096, chunk_bytes=chunk_bytes)
    assert error is None or str(error).endswith(".")
    assert all((m.data is None) == (m.size > 4096) for m in found)
    assert all(len(m.data) == m.size for m in found if m.data is not None)


@given(st.binary(max_size=3000))
def test_pax_payloads_of_any_bytes_give_members_or_a_tar_error(payload: bytes) -> None:
    found, error = until_error(io.BytesIO(pax(payload) + header(size=7) + DATA + END))
    assert len(found) == (error is None)


BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty: 0 bytes.* 512"),
    "short": (b"\0" * 100, r"cut at byte 100: .* 512 bytes, 100 are there"),
    "no tar": (b"<html>" * 200, "checksum"),
    "checksum": (header()[:148] + b"000001\0 " + header()[156:] + END, r"byte 0 .* checksum as 1, .* \d{3}"),
    "checksum not a number": (header()[:148] + b"zzzzzzzz" + header()[156:] + END, "checksum as None"),
    "second header": (header(size=7) + DATA + b"\1" * 512 + END, "byte 1024 .* checksum"),
    "no end": (header(size=7) + DATA, r"cut at byte 1024"),
    "cut payload": (header(size=513) + DATA, r"cut at byte 1024: 'a.png' needs 1024 bytes, 512 are there"),
    "cut unwanted payload": (header(size=513, kind=b"V") + DATA, r"cut at byte 1024: 'a.png' needs 1024 bytes, 512"),
    "cut after an extension": (pax(b"11 path=ab\n") + END, "cut: .* byte 0 "),
    "cut extension": (header(b"x", 600, b"x") + DATA, "needs 1024 bytes, 512 are there"),
    "negative base 256": (header(size=b"\xff" * 12) + END, "byte 0 declares -1 bytes, where 0 to "),
    "negative octal": (header(size=b"-0000000001\0") + END, "byte 0 declares b'-0000000001"),
    "size not octal": (header(size=b"00000000009\0") + END, "byte 0 declares b'00000000009"),
    "size not a number": (header(size=b"0x000000001\0") + END, "byte 0 declares b'0x"),
    "size with underscores": (header(size=b"0_000000001\0") + END, "byte 0 declares b'0_"),
    "absurd size": (header(size=b"\x80" + (1 << 60).to_bytes(11)) + END, r"declares 1152921504606846976 bytes"),
    "absurd pax size": (pax(b"29 size=99999999999999999999\n") + header() + END, "byte 0 declares b'9{20}' bytes"),
    "pax size not a number": (pax(b"12 size=-12\n") + header() + END, "declares b'-12' bytes"),
    "pax length": (pax(b"99 path=ab\n") + header() + END, "pax header at byte 0 .* byte 0 of its 11"),
    "pax length zero": (pax(b"0 path=ab\n") + header() + END, "pax header at byte 0"),
    "pax without length": (pax(b"path=ab\n") + header() + END, "pax header at byte 0"),
    "pax without value": (pax(b"8 path\n\n") + header() + END, "pax header at byte 0"),
    "pax second record": (pax(b"11 path=ab\n", b"junk") + header() + END, "byte 11 of its 15"),
    "huge extension": (header(b"L", 1 << 21, b"L") + END, "byte 0 declares 2097152 bytes, more than the 1048576"),
    "sparse": (header(kind=b"S") + END, "byte 0 is a GNU sparse file"),
    "pax sparse": (pax(b"22 GNU.sparse.major=1\n") + header() + END, "byte 0 is a GNU sparse file"),
    "multi-volume": (header(kind=b"M") + END, "another volume"),
    "gzip": (gzip.compress(END), "compressed with gzip .* `gzip -d`"),
    "bzip2": (bz2.compress(END), "compressed with bzip2 .* `bzip2 -d`"),
    "empty bzip2": (bz2.compress(b""), "compressed with bzip2"),
    "xz": (lzma.compress(END), "compressed with xz .* `xz -d`"),
    "zstd": (bytes(imagecodecs.zstd_encode(END)), "compressed with zstd .* `zstd -d`"),
}


@pytest.mark.parametrize("chunk_bytes", [1, 1000, 1 << 20])
@pytest.mark.parametrize(("data", "message"), BAD.values(), ids=BAD.keys())
def test_bad_archives_are_refused_with_offset_and_numbers(data: bytes, message: str, chunk_bytes: int) -> None:
    with pytest.raises(TarError, match=message):
        list(members(io.BytesIO(data), max_bytes=LARGE, chunk_bytes=chunk_bytes))


HEADERS: dict[str, tuple[bytes, str]] = {
    "v7": (header(b"a.png", 7, b"\0"), "a.png"),
    "a slash makes no directory of a typed file": (header(b"dir/", 7), "dir/"),
    "contiguous": (header(b"a.png", 7, b"7"), "a.png"),
    "name without a NUL": (header(b"n" * 100, 7), "n" * 100),
    "size in blanks": (header(size=b"         7 \0"), "a.png"),
    "size in all twelve digits": (header(size=b"000000000007"), "a.png"),
    "size in base 256": (header(size=b"\x80" + (7).to_bytes(11)), "a.png"),
    "ustar prefix": (header(b"a.png", 7, at_257=b"ustar\x0000", at_345=b"dir/sub"), "dir/sub/a.png"),
    "GNU times where ustar has its prefix": (header(b"a.png", 7, at_257=b"ustar  \0", at_345=b"14000000000"), "a.png"),
    "v7 has no prefix": (header(b"a.png", 7, at_345=b"dir"), "a.png"),
    "signed checksum": (header(b"\xe9\xff.png", 7, signed=True), "\udce9\udcff.png"),
    "unsigned checksum of high bytes": (header(b"\xff" * 100, 7, at_157=b"\xff" * 100), "\udcff" * 100),
    "looks like bzip2": (header(b"BZh9.png", 7), "BZh9.png"),
    "pax size over the header's": (pax(b"9 size=7\n") + header(), "a.png"),
    "pax global path": (pax(b"14 path=g.png\n", kind=b"g") + header(size=7), "g.png"),
    "pax path over the global": (
        pax(b"14 path=g.png\n", kind=b"g") + pax(b"14 path=l.png\n") + header(size=7),
        "l.png",
    ),
    "Solaris pax": (pax(b"14 path=s.png\n", kind=b"X") + header(size=7), "s.png"),
    "pax path taken back": (pax(b"8 path=\n") + header(size=7), "a.png"),
    "pax padded with zeros": (pax(b"14 path=p.png\n", b"\0\0\0") + header(size=7), "p.png"),
    "pax without records": (pax() + header(size=7), "a.png"),
    "GNU long link and name": (header(b"K", 7, b"K") + DATA + header(b"L", 7, b"L") + DATA + header(size=7), "payload"),
}


@pytest.mark.parametrize(("head", "name"), HEADERS.values(), ids=HEADERS.keys())
def test_dialects(head: bytes, name: str) -> None:
    after = header(b"after.png", 7) + DATA
    found = walked(io.BytesIO(head + DATA + pax(b"18 path=after.png\n") + after + END))
    assert [(n, size, data) for n, size, _, data in found] == [(name, 7, b"payload"), ("after.png", 7, b"payload")]


def test_an_extension_header_speaks_of_one_member_only() -> None:
    long, time = pax(b"14 path=l.png\n", b"9 size=7\n"), pax(b"11 mtime=1\n")
    tar = long + header() + DATA + header() + time + header(b"b.png") + END
    assert [(name, size, offset) for name, size, offset, _ in walked(io.BytesIO(tar))] == [
        ("l.png", 7, 0),
        ("a.png", 0, 2048),
        ("b.png", 0, 2560),
    ]


def test_directories_links_and_devices_are_passed_over() -> None:
    # Their size field means nothing, save for types that nobody knows.
    bare = b"".join(header(b"x.png", 512, bytes([kind])) for kind in b"123456") + header(b"v7dir/", 512, b"\0")
    unknown = header(b"label.png", 7, b"V") + DATA
    assert [m.name for m in members(io.BytesIO(bare + unknown + header() + END), max_bytes=0)] == ["a.png"]


def test_small_payloads_are_views_of_one_chunk() -> None:
    tar, _ = packed([("a", b"1" * 100), ("b", b"2" * 1000)])
    first, second = members(io.BytesIO(tar), max_bytes=LARGE)
    assert isinstance(first.data.obj, bytes)
    assert first.data.obj is second.data.obj


def test_a_stream_that_reuses_its_buffer_does_no_harm() -> None:
    tar, _ = packed([(f"{i}.png", bytes([i]) * 700) for i in range(20)])

    class Reusing(io.BytesIO):
        buffer = bytearray(1024)

        def read(self, size: int | None = -1) -> bytearray:  # type: ignore[override]  # what it is here to try
            del self.buffer[:]
            self.buffer += super().read(size)
            return self.buffer

    # A bytearray with views on it cannot change its size: this would raise BufferError.
    assert walked(Reusing(tar), chunk_bytes=1024) == by_tarfile(tar)


@pytest.mark.parametrize(
    "error", [None, ValueError("Cannot seek streaming HTTP file"), OSError(22, "Invalid argument")]
)
def test_unwanted_payloads_are_skipped_by_seek_or_else_read_through(error: Exception | None) -> None:
    tar, _ = packed([("a.png", b"a"), ("b.mp4", bytes(1 << 20)), ("c.png", b"c")])
    stream = Watched(tar)
    stream.seek_error = error
    found = list(members(stream, max_bytes=LARGE, wanted=lambda name: name.endswith("png"), chunk_bytes=4096))
    assert [(m.name, m.size, m.data, m.refused) for m in found] == [
        ("a.png", 1, b"a", None),
        ("b.mp4", 1 << 20, None, None),
        ("c.png", 1, b"c", None),
    ]
    assert stream.seeks == 1
    assert (stream.bytes_read < 20_000) == (error is None)


@pytest.mark.parametrize("make", [io.BytesIO, Trickle])
@pytest.mark.parametrize("missing", [1, 512, 100_000])
def test_a_cut_in_a_skipped_payload_is_found(make: Callable[[bytes], Any], missing: int) -> None:
    tar, end = packed([("a.png", b"a"), ("b.mp4", bytes(1 << 20))])
    walk = members(make(tar[: end - missing]), max_bytes=LARGE, wanted=lambda name: False, chunk_bytes=4096)
    assert next(walk).name == "a.png"
    with pytest.raises(TarError, match=rf"byte {end - missing}: .* needs 1048576 bytes, {2**20 - missing} are"):
        next(walk)


def test_each_name_is_asked_for_once() -> None:
    asked: list[str] = []
    tar, _ = packed([("a", b"1"), ("b" * 150, b"2"), ("a", b"3")], tarfile.PAX_FORMAT)
    list(members(io.BytesIO(tar), max_bytes=LARGE, wanted=lambda name: asked.append(name) or True))
    assert asked == ["a", "b" * 150, "a"]


def test_a_payload_over_the_limit_is_refused_and_the_walk_goes_on() -> None:
    tar, _ = packed([("a.png", b"1" * 100), ("b.png", b"2" * 101), ("c.txt", b"3" * 101), ("d.png", b"4" * 100)])
    found = list(members(io.BytesIO(tar), max_bytes=100, wanted=lambda name: name.endswith("png")))
    assert [m.data for m in found] == [b"1" * 100, None, None, b"4" * 100]
    assert [m.refused for m in found] == [None, "'b.png' has 101 bytes, more than the 100 allowed.", None, None]


@pytest.mark.parametrize(("max_bytes", "payloads"), [(1 << 30, 1), (1 << 20, 0)])
def test_memory_is_bounded(max_bytes: int, payloads: int) -> None:
    chunk, size = 1 << 16, 1 << 24
    heads = {0: header(size=size), 1 + size // 512: header(b"b", size), 2 + size // 256: END[:512]}

    class Blocks(Trickle):
        """Makes the tar as it is read."""

        def read(self, count: int = -1) -> bytes:
            first = self.count
            self.count += count // 512
            return b"".join(heads.get(block, bytes(512)) for block in range(first, self.count))

    tracemalloc.start()
    try:
        for member in members(Blocks(b""), max_bytes=max_bytes, chunk_bytes=chunk):
            del member
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # The stand-in stream itself needs one chunk more than a file would, as a list of blocks.
    assert peak < payloads * size + 6 * chunk


def test_chunks_of_no_bytes_are_refused() -> None:
    with pytest.raises(ValueError, match="chunk_bytes is 0"):
        list(members(io.BytesIO(END), max_bytes=1, chunk_bytes=0))


def test_real_shards_equal_tarfile() -> None:
    if not SHARDS.is_dir():
        pytest.skip("the real shards are not on this machine")
    for path in sorted(SHARDS.glob("*.tar"))[:2]:
        with path.open("rb") as stream:
            assert walked(stream) == by_tarfile(path.read_bytes())
