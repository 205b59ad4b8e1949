"""Ranges of files, as RFC 9110 has them."""

import asyncio
from pathlib import Path

import pytest
from fastapi import Response
from fastapi.responses import StreamingResponse

from tilecov.pipeline.service.files import PIECE, send_file, span_of
from tilecov.pipeline.service.names import FILES
from tilecov.storage.objects import Folder


@pytest.mark.parametrize(
    ("header", "span"),
    [(None, None), ("bytes=0-9", (0, 10)), ("bytes=90-", (90, 100)), ("bytes=-10", (90, 100)), ("bytes=-500", (0, 100)),
     ("bytes=0-0", (0, 1)), ("bytes=99-5000", (99, 100)), ("bytes=5-3", None), ("bytes=0-1,5-6", None),
     ("lines=1-2", None), ("bytes=", None), ("bytes=-", None), ("bytes=a-b", None), ("bytes=1" + "0" * 30 + "-", None)],
)  # fmt: skip
def test_ranges(header: str | None, span: tuple[int, int] | None) -> None:
    assert span_of(header, 100) == span


@pytest.mark.parametrize("header", ["bytes=100-", "bytes=100-200", "bytes=-0"])
def test_ranges_behind_the_end(header: str) -> None:
    with pytest.raises(ValueError, match="byte"):
        span_of(header, 100)


def send(
    folder: Path, *, wanted: str | None = None, condition: str | None = None, etag: str | None = "abc"
) -> Response:
    return asyncio.run(
        send_file(Folder(str(folder)), "x.pt", "x.pt", etag=etag, wanted=wanted, condition=condition, head=False)
    )


def body_of(response: Response) -> bytes:
    async def read() -> list[bytes]:
        assert isinstance(response, StreamingResponse)
        return [bytes(piece) async for piece in response.body_iterator]  # type: ignore[arg-type]

    pieces = asyncio.run(read())
    assert all(len(piece) <= PIECE for piece in pieces)
    return b"".join(pieces)


def test_a_file_comes_in_pieces_and_a_range_is_that_range(tmp_path: Path) -> None:
    data = bytes(range(256)) * (3 * PIECE // 256) + b"rest"
    (tmp_path / "x.pt").write_bytes(data)
    whole = send(tmp_path)
    assert (whole.status_code, whole.headers["content-length"]) == (200, str(len(data)))
    assert body_of(whole) == data
    part = send(tmp_path, wanted=f"bytes={PIECE - 3}-{2 * PIECE}")
    assert part.status_code == 206
    assert part.headers["content-range"] == f"bytes {PIECE - 3}-{2 * PIECE}/{len(data)}"
    assert body_of(part) == data[PIECE - 3 : 2 * PIECE + 1]
    none = send(tmp_path, wanted=f"bytes={len(data)}-")
    assert (none.status_code, none.headers["content-range"]) == (416, f"bytes */{len(data)}")


def test_a_range_of_another_version_is_the_whole_file(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(b"0123456789")
    assert send(tmp_path, wanted="bytes=0-1", condition='"abc"').status_code == 206
    assert send(tmp_path, wanted="bytes=0-1", condition='"other"').status_code == 200
    assert send(tmp_path, wanted="bytes=0-1", condition='"abc"', etag=None).status_code == 200


def test_a_file_that_is_cut_while_it_is_sent_is_no_whole_answer(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(bytes(3 * PIECE))
    response = send(tmp_path)
    (tmp_path / "x.pt").write_bytes(bytes(PIECE))
    with pytest.raises(OSError, match="ends at byte"):
        body_of(response)


def test_no_name_leads_elsewhere() -> None:
    assert all(".." not in path and not path.startswith("/") for path in FILES.values())
