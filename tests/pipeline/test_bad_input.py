"""Bad input: what is said of it, what is skipped, and that nothing is lost."""

import gzip
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import npy, png, write_tar
from PIL import Image

from tilecov.pipeline import Job, run
from tilecov.pipeline.cli import run_safely

GOOD = [(f"good{i}.npy", npy(np.full(12, 20 * i, np.uint8))) for i in range(4)]
PIXELS = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)


class Bomb:
    """Runs when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('unpickled')",)


def png_of_size(width: int, height: int) -> bytes:
    """Return a tiny PNG that declares another size."""
    content = bytearray(png(PIXELS))
    content[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    import zlib

    content[29:33] = zlib.crc32(bytes(content[12:29])).to_bytes(4, "big")
    return bytes(content)


def object_array() -> bytes:
    sink = io.BytesIO()
    np.save(sink, np.array([Bomb()], dtype=object), allow_pickle=True)
    return sink.getvalue()


def jpeg(pixels: np.ndarray[Any, Any]) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "JPEG")
    return sink.getvalue()


BIG = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)

BAD_SAMPLES = {
    "corrupt image": (("bad.png", b"\x89PNG\r\n\x1a\n" + b"x" * 40), ""),
    "not an image": (("bad.png", b"hello"), ""),
    "empty file": (("bad.png", b""), ""),
    "truncated png": (("bad.png", png(BIG)[:-200]), ""),
    "truncated jpeg": (("bad.jpg", jpeg(BIG)[:-200]), ""),
    "image of zero size": (("bad.png", png_of_size(0, 4)), "0"),
    "picture of a billion pixels": (("bad.png", png_of_size(40_000, 40_000)), "40"),
    "npy of a wrong shape": (("bad.npy", npy(np.zeros(13, np.uint8))), "13"),
    "npy of objects": (("bad.npy", object_array()), "object"),
    "npy of another kind": (("bad.npy", npy(np.zeros(12, np.float32))), "float32"),
    "npy cut": (("bad.npy", npy(np.zeros(12, np.uint8))[:-3]), ""),
}


def command(*arguments: str) -> int:
    return run_safely(["run", *arguments, "--quiet"])


@pytest.mark.parametrize("case", BAD_SAMPLES)
def test_a_bad_sample_fails_the_run_with_shard_and_key(
    tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, says = BAD_SAMPLES[case]
    shard = write_tar(tmp_path / "s.tar", [*GOOD, bad])
    assert command(str(shard), "--resolution", "2", "--out", str(tmp_path / "run")) == 1
    message = capsys.readouterr().err
    assert str(shard) in message
    assert "'bad'" in message
    assert says in message
    assert "--on-error skip" in message
    assert message.count("\n") == 1


@pytest.mark.parametrize("case", BAD_SAMPLES)
def test_a_bad_sample_is_skipped_and_counted(tmp_path: Path, case: str) -> None:
    bad, says = BAD_SAMPLES[case]
    shard = write_tar(tmp_path / "s.tar", [*GOOD[:2], bad, *GOOD[2:]])
    clean = write_tar(tmp_path / "clean.tar", GOOD)
    job = {"resolution": 2, "rank": 0, "on_error": "skip", "max_skipped": 0.5}
    manifest = run(Job(shards=(str(shard),), out=str(tmp_path / "run"), **job))
    expected = run(Job(shards=(str(clean),), out=str(tmp_path / "expected"), **job))
    assert manifest["moments_digest"] == expected["moments_digest"]
    (line,) = [json.loads(line) for line in (tmp_path / "run" / "ledger.jsonl").read_text().splitlines()]
    assert (line["samples"], line["used"], [item["key"] for item in line["skipped"]]) == (5, 4, ["bad"])
    assert says in line["skipped"][0]["reason"]


def test_a_large_file_is_refused_before_it_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard = write_tar(tmp_path / "s.tar", [*GOOD, ("bad.png", bytes(200_000))])
    arguments = (str(shard), "--resolution", "2", "--max-sample", "100KB", "--out", str(tmp_path / "run"))
    assert command(*arguments) == 1
    message = capsys.readouterr().err
    assert "200,000" in message or "200000" in message
    assert "100,000" in message or "100000" in message


@pytest.mark.parametrize(
    "files",
    [
        [*GOOD, ("good1.npy", GOOD[1][1])],
        [GOOD[0], GOOD[0], *GOOD[1:]],
    ],
    ids=["key comes back", "file twice"],
)
def test_duplicate_keys(tmp_path: Path, files: list[tuple[str, bytes]], capsys: pytest.CaptureFixture[str]) -> None:
    shard = write_tar(tmp_path / "s.tar", files)
    assert command(str(shard), "--resolution", "2", "--out", str(tmp_path / "run")) == 1
    message = capsys.readouterr().err
    assert "good" in message
    assert str(shard) in message


def cut_in_the_middle(content: bytes) -> bytes:
    return content[: len(GOOD) * 512 + 100]


def bad_checksum(content: bytes) -> bytes:
    damaged = bytearray(content)
    damaged[1024 + 148] ^= 0x01
    return bytes(damaged)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda content: b"", "empty"),
        (cut_in_the_middle, "cut"),
        (bad_checksum, "checksum"),
        (gzip.compress, "gzip"),
        (lambda content: bytes(10240), "sample"),
    ],
    ids=["empty file", "cut", "checksum", "gzip", "no members"],
)
def test_a_damaged_shard(
    tmp_path: Path, damage: Callable[[bytes], bytes], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = write_tar(tmp_path / "a.tar", GOOD)
    bad = tmp_path / "b.tar"
    bad.write_bytes(damage(shard.read_bytes()))
    arguments = (str(shard), str(bad), "--resolution", "2", "--rank", "0")
    assert command(*arguments, "--out", str(tmp_path / "run")) == 1
    message = capsys.readouterr().err
    assert str(bad) in message
    assert says in message.lower()
    skipping = ("--on-error", "skip", "--max-skipped", "1")
    assert command(*arguments, *skipping, "--out", str(tmp_path / "run2")) == 0
    line = json.loads((tmp_path / "run2" / "ledger.jsonl").read_text().splitlines()[1])
    assert says in line["error"].lower()


def test_a_shard_without_a_wanted_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard = write_tar(tmp_path / "s.tar", [("a.txt", b"x"), ("b.cls", b"1")])
    assert command(str(shard), "--resolution", "2", "--out", str(tmp_path / "run")) == 1
    message = capsys.readouterr().err
    assert str(shard) in message
    assert "--image-key" in message


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_a_number_in_float_rows(tmp_path: Path, value: float, capsys: pytest.CaptureFixture[str]) -> None:
    rows = np.arange(48, dtype=np.float32).reshape(4, 12)
    rows[2, 5] = value
    shard = write_tar(tmp_path / "s.tar", ((f"row{i}.npy", npy(row)) for i, row in enumerate(rows)))
    assert command(str(shard), "--resolution", "2", "--out", str(tmp_path / "run")) == 1
    message = capsys.readouterr().err
    assert "'row2'" in message
    assert "5" in message


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_samples(tmp_path: Path, count: int, capsys: pytest.CaptureFixture[str]) -> None:
    files = [*GOOD[:count], ("notes.txt", b"x")]
    shard = write_tar(tmp_path / "s.tar", files)
    assert command(str(shard), "--resolution", "2", "--out", str(tmp_path / "run")) == 1
    assert ("at least 2 samples", "no file of png")[count == 0] in capsys.readouterr().err


@pytest.mark.parametrize("pattern", ["none-*.tar", "none.tar", "none-{0..3}.tar", "empty/"])
def test_no_shard_matches(tmp_path: Path, pattern: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert command(str(tmp_path / pattern), "--resolution", "2", "--out", str(tmp_path / "run")) == 1
    message = capsys.readouterr().err
    assert str(tmp_path) in message
    assert not (tmp_path / "run").exists()


def test_a_url_that_runs_a_shell_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    canary = tmp_path / "canary"
    assert command(f"pipe:touch {canary}", "--resolution", "2", "--out", str(tmp_path / "run")) == 1
    assert "shell" in capsys.readouterr().err
    assert not canary.exists()


def test_too_many_skipped_samples_fail_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = [(f"bad{i}.png", b"no image") for i in range(2)]
    shard = write_tar(tmp_path / "s.tar", [*GOOD, *bad])
    arguments = (str(shard), "--resolution", "2", "--rank", "0", "--on-error", "skip")
    assert command(*arguments, "--max-skipped", "0.2", "--out", str(tmp_path / "a")) == 1
    message = capsys.readouterr().err
    assert "2 of 6" in message
    assert "--max-skipped" in message
    assert command(*arguments, "--max-skipped", "0.4", "--out", str(tmp_path / "b")) == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["--resolution", "0"],
        ["--resolution", "x"],
        ["--resolution", "2", "--channels", "2"],
        ["--resolution", "2", "--rank", "many"],
        ["--resolution", "2", "--rank", "13"],
        ["--resolution", "2", "--memory", "lots"],
        ["--resolution", "2", "--image-key", "gif"],
        ["--resolution", "2", "--storage-options", "{secret"],
        ["--resolution", "2", "--no-such-option"],
        [],
    ],
)
def test_wrong_usage_exits_2(tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    shard = write_tar(tmp_path / "s.tar", GOOD)
    assert command(str(shard), *arguments, "--out", str(tmp_path / "run")) == 2
    captured = capsys.readouterr()
    assert captured.err
    assert "secret" not in captured.err
    assert not (tmp_path / "run").exists()


def test_an_unknown_device_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard = write_tar(tmp_path / "s.tar", GOOD)
    arguments = (str(shard), "--resolution", "2", "--out", str(tmp_path / "run"))
    assert command(*arguments, "--device", "cuda:99") == 1
    assert "cuda:99" in capsys.readouterr().err


def test_interrupted_exits_130_and_resumes(tmp_path: Path, shards: Callable[..., list[str]]) -> None:
    """Ctrl-C in a real process, then the same command again."""
    paths = shards(count=40, resolution=8, shards=3)
    code = (
        "import sys, signal, os, threading, tilecov.pipeline.tasks as tasks\n"
        "from tilecov.pipeline.cli import run_safely\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored in what a shell runs in the background
        "original = tasks.BlockReader.__iter__\n"
        "def slow(self):\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    yield from original(self)\n"
        "tasks.BlockReader.__iter__ = slow\n"
        "sys.exit(run_safely(sys.argv[1:]))\n"
    )
    arguments = ["run", *paths, "--resolution", "8", "--rank", "0", "--out", str(tmp_path / "run")]
    stopped = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert stopped.returncode == 130, stopped.stderr
    assert "interrupted" in stopped.stderr
    assert "same command" in stopped.stderr
    assert run_safely([*arguments, "--quiet"]) == 0
