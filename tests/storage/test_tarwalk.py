"""Plain members found in C are those that Python finds, in sound and in damaged archives alike."""

import io
import tarfile
from typing import Any

import pytest
from compiled import A_COMPILER_IS_HERE
from hypothesis import given, settings
from hypothesis import strategies as st

from tilecov.storage import tar
from tilecov.storage.tar import Member, TarError, members

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
NAMES = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8),
    st.sampled_from(["a.png", "b/c.png", "folder/", "x" * 100, "y" * 101, "d" * 60 + "/" + "e" * 60, "__meta__"]),
)
KINDS = st.sampled_from([tarfile.REGTYPE] * 5 + [tarfile.DIRTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE, tarfile.SYMTYPE])

Outcome = tuple[list[tuple[str, int, int, bytes | None, str | None]], str]


def test_it_is_compiled_where_a_compiler_is() -> None:
    """Installing goes on without it: this is where that would be seen."""
    compiled = tar.plain_members.__module__.endswith("_tarwalk")
    assert compiled or not A_COMPILER_IS_HERE


@st.composite
def archives(draw: st.DrawFn) -> bytes:
    """Return a tar, and now and then bytes of it changed, or its end cut off."""
    out = io.BytesIO()
    headers = draw(st.sampled_from([None, {"comment": "global"}]))
    with tarfile.open(fileobj=out, mode="w", format=draw(st.sampled_from(FORMATS)), pax_headers=headers) as archive:
        for name, kind, size in draw(st.lists(st.tuples(NAMES, KINDS, st.integers(0, 1500)), max_size=8)):
            info = tarfile.TarInfo(name)
            info.type, info.size = kind, size if kind == tarfile.REGTYPE else 0
            try:
                archive.addfile(info, io.BytesIO(bytes(size)) if info.size else None)
            except ValueError:  # a name that this format cannot hold
                continue
    data = bytearray(out.getvalue())
    headers_end = min(len(data), 4096)
    for at, value in draw(st.lists(st.tuples(st.integers(0, headers_end - 1), st.integers(0, 255)), max_size=3)):
        data[at] = value
    return bytes(data[: draw(st.sampled_from([len(data), len(data) // 2, len(data) - 1024]))])


def outcome(data: bytes, chunk_bytes: int, wanted: Any) -> Outcome:
    found: list[Member] = []
    try:
        for member in members(io.BytesIO(data), max_bytes=1000, wanted=wanted, chunk_bytes=chunk_bytes):
            found.append(member)  # noqa: PERF402  (what came before the error counts)
        said = ""
    except TarError as error:
        said = str(error)
    return [(*item[:3], item.data and bytes(item.data), item.refused) for item in found], said


@pytest.mark.parametrize("chunk_bytes", [1, 700, 1 << 20])
@pytest.mark.parametrize("wanted", [None, lambda name: "a" not in name], ids=["all", "some"])
@settings(max_examples=150)
@given(data=archives())
def test_c_and_python_find_the_same(data: bytes, chunk_bytes: int, wanted: Any) -> None:
    found = outcome(data, chunk_bytes, wanted)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tar, "plain_members", lambda data, at: [])
        assert outcome(data, chunk_bytes, wanted) == found


@pytest.mark.parametrize("at", [-5, -1, 0, 1, 511, 512, 1023, 1024, 5000])
def test_nothing_is_found_where_no_member_begins(at: int) -> None:
    assert tar.plain_members(bytes(1024), at) == []
    assert tar.plain_members(b"\xff" * 1024, at) == []
    assert tar.plain_members(b"", at) == []
