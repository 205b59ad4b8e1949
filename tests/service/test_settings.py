"""What the operator may set, and what is refused before anything is bound."""

import os
from pathlib import Path
from typing import Any

import pytest

from tilecov.pipeline.cli import run_safely
from tilecov.pipeline.service.settings import Settings, is_loopback, read_token

TOKEN = "0123456789abcdef0123456789abcdef"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", ""])
def test_no_address_but_loopback_without_a_token(host: str) -> None:
    with pytest.raises(ValueError, match="needs a token"):
        Settings("/r", host=host)
    assert Settings("/r", host=host, token=TOKEN).host == host


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("[::1]", True), ("localhost", True), ("0.0.0.0", False),
     ("localhost.evil.com", False), ("127.0.0.1.evil.com", False), ("", False)],
)  # fmt: skip
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [({"token": "short"}, "5 of 16 letters"), ({"memory": 1 << 27}, "256 MiB are the least"),
     ({"memory": 1 << 30, "concurrent": 8}, "128.0 MiB"), ({"allow": ("/",)}, "--allow /")],
)  # fmt: skip
def test_settings_that_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings("/r", **options)


def test_the_token_is_compared_whole_and_shown_nowhere() -> None:
    settings = Settings("/r", token=TOKEN, storage_options={"secret": "hunter2hunter2"})
    assert settings.is_token(TOKEN)
    for wrong in ("", TOKEN[:-1], TOKEN + "0", TOKEN.upper(), "\udcff", settings.session):
        assert not settings.is_token(wrong)
    assert settings.is_session(settings.session)
    assert not settings.is_session(TOKEN)
    assert TOKEN not in repr(settings)
    assert "hunter2" not in repr(settings)


def test_the_time_of_a_comparison_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compared goes through `hmac.compare_digest`, and has one length whatever was given."""
    lengths: list[tuple[int, int]] = []

    def compare(given: bytes, own: bytes) -> bool:
        lengths.append((len(given), len(own)))
        return given == own

    monkeypatch.setattr("hmac.compare_digest", compare)
    settings = Settings("/r", token=TOKEN)
    for given in ("", "x", TOKEN[:-1], TOKEN, "y" * 5000):
        assert settings.is_token(given) == (given == TOKEN)
        assert not settings.is_session(given)
    assert lengths == [(32, 32)] * 10


def test_a_token_is_read_from_its_file_or_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    file.chmod(0o600)
    assert read_token(str(file), {}) == TOKEN
    assert read_token(None, {"TILECOV_TOKEN": TOKEN}) == TOKEN
    assert read_token(None, {}) == ""
    file.chmod(0o644)
    with pytest.raises(ValueError, match="chmod 600"):
        read_token(str(file), {})
    file.chmod(0o600)
    file.write_text("\n")
    with pytest.raises(ValueError, match="empty"):
        read_token(str(file), {})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--host", "0.0.0.0"], "needs a token"), (["--allow", "s3://"], "would allow everything"),
     (["--token-file", "/nowhere/token"], "No such file"), (["--memory", "1MiB"], "256 MiB")],
)  # fmt: skip
def test_serve_refuses_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(os.environ, "TILECOV_TOKEN", raising=False)
    assert run_safely(["serve", "--root", str(tmp_path / "root"), *arguments]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "root").exists()
