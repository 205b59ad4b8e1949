"""Credentials are found nowhere, whether a run ends well or not: in files, in what is printed, in errors."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from conftest import random_images, write_shards
from fsspec.implementations.memory import MemoryFileSystem

from tilecov.pipeline import Job, run
from tilecov.pipeline.cli import run_safely
from tilecov.storage.listing import list_shards
from tilecov.storage.objects import Folder
from tilecov.storage.redact import redact, redact_url, secrets_of, without_secrets
from tilecov.storage.retries import retry

SECRET = "hunter2/Zx+9hunter2"
OPTIONS = {
    "key": f"key-{SECRET}",
    "secret": SECRET,
    "token": {"private_key": f"private-{SECRET}"},
    "account_key": f"account-{SECRET}",
    "connection_string": f"AccountName=x;AccountKey={SECRET}",
    "client_kwargs": {"headers": {"Authorization": f"Bearer {SECRET}"}},
}
SIGNED = "X-Amz-Date=20260101T0000&X-Amz-Signature=hunter2a"
ENVIRONMENT = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AZURE_STORAGE_CONNECTION_STRING")


class Signed(MemoryFileSystem):  # type: ignore[misc]  # fsspec has no types
    """Gives files only for a signed query, and says the whole URL where it refuses."""

    protocol = "signed"
    cachable = False
    refusal: OSError | None = None

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.given = options

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("signed://").lstrip("/").rstrip("/")

    def _name(self, path: str) -> str:
        if self.refusal is not None:
            raise type(self.refusal)(f"{self.refusal}: signed:/{path} with {self.given}")
        name, _, query = path.partition("?")
        if "Signature=hunter2" not in query and "/run" not in name:
            raise PermissionError(f"403 for signed:/{path} with {self.given}")
        return name

    def cat_file(self, path: str, start: Any = None, end: Any = None, **kwargs: Any) -> Any:
        return super().cat_file(self._name(path), start, end, **kwargs)

    def info(self, path: str, **kwargs: Any) -> Any:
        return {**super().info(self._name(self._strip_protocol(path)), **kwargs), "name": self._strip_protocol(path)}

    def _open(self, path: str, *args: Any, **kwargs: Any) -> Any:
        return super()._open(self._name(self._strip_protocol(path)), *args, **kwargs)


@pytest.fixture(autouse=True)
def signed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[type[Signed]]:
    for name in ENVIRONMENT:
        monkeypatch.setenv(name, f"environment-{SECRET}")
    monkeypatch.setattr("tilecov.storage.retries.FIRST_PAUSE", 1e-4)
    monkeypatch.setattr("tilecov.storage.retries.LONGEST_PAUSE", 1e-3)
    fsspec.register_implementation("signed", Signed, clobber=True)
    for path in write_shards(tmp_path / "local", random_images(24, 4), 2):
        fsspec.filesystem("memory").pipe_file(f"/bucket/{path.name}", path.read_bytes())
    yield Signed
    Signed.store.clear()
    Signed.pseudo_dirs[:] = [""]


def urls(query: str = SIGNED) -> list[str]:
    return [f"signed://bucket/part-00{index}.tar?{query}" for index in range(2)]


def assert_no_secret(*texts: str) -> None:
    for text in texts:
        assert "hunter2" not in text


def files_in(folder: Path) -> list[str]:
    found = [path for path in folder.rglob("*") if path.is_file()]
    return [path.read_bytes().decode("latin-1") + str(path) for path in found]


@pytest.mark.parametrize("strategy", ["resident", "staged"])
def test_a_run_that_ends_well_holds_none(tmp_path: Path, strategy: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["run", *urls(), "-r", "4", "--strategy", strategy, "--storage-options", json.dumps(OPTIONS)]
    for more in ([], ["--log", "json"], ["--json", "--keep-rows"]):
        assert run_safely([*command, "--out", str(tmp_path / "run" / str(len(more))), *more]) == 0
    for look in ("status", "verify"):
        assert run_safely([look, str(tmp_path / "run" / "0")]) == 0
    files = files_in(tmp_path / "run")
    assert any("bucket/part-000.tar" in text for text in files)
    assert_no_secret(*capsys.readouterr(), *files)


def test_a_run_goes_on_with_urls_signed_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = {"resolution": 4, "rank": 0, "out": str(tmp_path / "run"), "keep_rows": True}

    class Crash(BaseException):
        pass

    def crash(*_args: Any) -> None:
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr("tilecov.pipeline.stages._add_parts", crash)
        with pytest.raises(Crash):
            run(Job(shards=tuple(urls()), **job))
    assert list((tmp_path / "run" / "work" / "commits" / "moments").iterdir())
    assert_no_secret(*files_in(tmp_path / "run"))  # with its commits
    anew = "X-Amz-Date=20270101T0000&X-Amz-Signature=hunter2b"
    done = run(Job(shards=tuple(urls(anew)), **job))
    assert done["state"] == "complete"
    assert run(Job(shards=tuple(urls("X-Amz-Date=2028&X-Amz-Signature=hunter2c")), **job)) == done
    local = tuple(map(str, sorted((tmp_path / "local").iterdir())))
    assert (
        run(Job(shards=local, resolution=4, rank=0, out=str(tmp_path / "other")))["moments_digest"]
        == (done["moments_digest"])
    )


def test_a_shard_signed_twice_is_one_shard() -> None:
    with pytest.raises(ValueError, match="is named 2 times") as caught:
        list_shards([urls()[0], urls("X-Amz-Date=1&X-Amz-Signature=hunter2b")[0]])
    assert_no_secret(str(caught.value))


def test_many_signed_shards_are_asked_for_one_by_one() -> None:
    for index in range(20):
        fsspec.filesystem("memory").pipe_file(f"/many/{index}.tar", b"x")
    found = list_shards([f"signed://many/{index}.tar?{SIGNED}" for index in range(20)])
    assert len({shard.url for shard in found}) == 20
    again = pickle.loads(pickle.dumps(found[0]))
    assert SIGNED in again.address  # workers read from it
    assert_no_secret(repr(found), json.dumps(found[0].as_dict()))


REFUSALS = {
    "access": PermissionError("denied"),
    "bucket": FileNotFoundError("no bucket"),
    "busy": ConnectionError("503 Slow Down"),
    "value": OSError("SignatureDoesNotMatch"),
}


@pytest.mark.parametrize("log", ["text", "json"])
@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS)
def test_a_store_that_refuses(
    tmp_path: Path, refusal: OSError, log: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Signed, "refusal", refusal)
    command = ["run", *urls(), "-r", "4", "--out", str(tmp_path / "run"), "--log", log]
    assert run_safely([*command, "--storage-options", json.dumps(OPTIONS)]) == 1
    out, err = capsys.readouterr()
    assert "signed://bucket/part-000.tar" in err or "signed://" in err
    assert_no_secret(out, err)


def test_a_query_that_is_not_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = urls("X-Amz-Signature=wrong-hunter2")
    assert run_safely(["run", *shards, "-r", "4", "--out", str(tmp_path / "run")]) == 1
    out, err = capsys.readouterr()
    assert "403" in err
    assert_no_secret(out, err)


BAD_OPTIONS = {
    "cut": '{"secret": "hunter2',
    "a list": '["hunter2"]',
    "a text": '"hunter2"',
    "behind @": '@{"secret": "hunter2"}',
    "long, behind @": "@" + "hunter2" * 1000,
    "no text": "@/dev/null\0hunter2",
}


@pytest.mark.parametrize("text", BAD_OPTIONS.values(), ids=BAD_OPTIONS)
@pytest.mark.parametrize("command", ["run", "plan", "merge", "status"])
def test_storage_options_that_are_wrong(command: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    more = {"run": ["-r", "4", "--out", "x"], "plan": ["-r", "4"], "merge": ["--out", "x"], "status": []}[command]
    assert run_safely([command, "a", *more, "--storage-options", text]) == 2
    out, err = capsys.readouterr()
    assert "--storage-options" in err
    assert_no_secret(out, err)


WRONG = {
    "an option": ["run", "a.tar", "-r", "0", "--out", "x"],
    "too many": ["status", "x", "https://me:hunter2@h/x"],
    "a command": ["https://me:hunter2@h/x"],
    "a shell": ["run", "pipe:curl https://me:hunter2@h/x", "-r", "4", "--out", "x"],
    "braces": ["run", "memory://me:hunter2@h/{0..x}.tar", "-r", "4", "--out", "x"],
    "a missing run": ["status", "memory://me:hunter2@h/x"],
    "a missing source": ["merge", "memory://me:hunter2@h/x", "--out", "memory://me:hunter2@h/y"],
    "a glob": ["run", "memory://me:hunter2@h/**/x.tar", "-r", "4", "--out", "x"],
    "a folder": ["plan", "memory://me:hunter2@h/x", "-r", "4"],
}


@pytest.mark.parametrize("arguments", WRONG.values(), ids=WRONG)
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_safely(arguments) in {1, 2}
    assert_no_secret(*capsys.readouterr())


def test_a_source_with_a_password_is_refused(tmp_path: Path) -> None:
    local = tuple(map(str, sorted((tmp_path / "local").iterdir())))
    job = Job(shards=local, resolution=4, out=str(tmp_path / "run"), extend="memory://me:hunter2@h/x")
    with pytest.raises(ValueError, match=r"memory://\*\*\*@h/x.*--storage-options") as caught:
        run(job)
    assert_no_secret(str(caught.value), repr(job), str(job), repr(job.what()))


def test_what_is_shown_of_jobs_and_folders() -> None:
    job = Job(shards=tuple(urls()), resolution=4, out="ftp://me:hunter2@h/x", storage_options=OPTIONS)
    folder = Folder("ftp://me:hunter2@h/x", OPTIONS)
    assert_no_secret(repr(job), str(job), repr(job.what()), repr(folder), folder.url, folder.folder("y").url)
    assert "ftp://***@h/x" in repr(job)
    assert folder.folder("y").absolute == "ftp://me:hunter2@h/x/y"  # what workers are told


def test_a_bug_is_shown_without(tmp_path: Path) -> None:
    """A traceback is for us; what its message says is not."""
    text = f"raise KeyError('https://me:hunter2@h/x?sig=hunter2', {SECRET!r})"
    program = f"import sys; from tilecov.pipeline import cli; cli.run_safely = lambda _: exec({text!r}); cli.main()"
    options = ["run", "x", "--storage-options", json.dumps(OPTIONS)]
    found = subprocess.run(
        [sys.executable, "-c", program, *options], capture_output=True, text=True, check=False, env=dict(os.environ)
    )
    assert found.returncode == 1
    assert "KeyError" in found.stderr
    assert_no_secret(found.stdout, found.stderr)


def test_a_stores_error_keeps_its_kind() -> None:
    def refuse() -> None:
        raise PermissionError("403: https://h/x?sig=hunter2")

    with pytest.raises(PermissionError, match=r"403: https://h/x\?sig=\*\*\*") as caught:
        retry(refuse)
    assert caught.value.__suppress_context__
    plain = PermissionError(13, "denied", "x.tar")
    assert without_secrets(plain) is plain


HIDDEN = {
    "https://me:pw@h/x": "https://***@h/x",
    "https://token@h/x": "https://***@h/x",
    "ftp://me:p@w@h/x": "ftp://***@h/x",
    "https://h/x?a=1&sig=abc&se=2030&sv=7": "https://h/x?a=1&sig=***&se=***&sv=***",
    "https://h/x?token=abc": "https://h/x?token=***",
    "https://h/x?X-Goog-Signature=a&X-Goog-Date=b#c": "https://h/x?X-Goog-Signature=***&X-Goog-Date=***#c",
    "no https://h/x?Signature=abc; check it": "no https://h/x?Signature=***; check it",
    "AccountName=x;AccountKey=abcdefgh==;y": "AccountName=x;AccountKey=***;y",
    "{'secret': 'abcdefgh'}": "{'secret': '***'}",
    "Authorization: Bearer abcdefgh": "Authorization: Bearer ***",
}
SHOWN = [
    "abfs://container@account.dfs.core.windows.net/x.tar",
    "s3://bucket/a@b:c/x-?.tar",
    "github://org:repo@main/x.tar",
    "https://h:8080/a@1/x.tar?download=1&key=a.tar",
    "sample 'key' of a.tar: token is missing",
    "ssh://me@host/x.tar",
]


@pytest.mark.parametrize(("text", "expected"), HIDDEN.items())
def test_what_is_hidden(text: str, expected: str) -> None:
    assert redact(text) == expected
    assert redact(expected) == expected


@pytest.mark.parametrize("text", SHOWN)
def test_what_is_shown(text: str) -> None:
    assert redact(text) == redact_url(text) == text


def test_secrets_are_known_by_their_names() -> None:
    found = secrets_of(OPTIONS, {"AWS_SECRET_ACCESS_KEY": "env-secret", "HOME": "/home/me", "TOKEN": "short"})
    assert {SECRET, f"key-{SECRET}", f"private-{SECRET}", f"Bearer {SECRET}", "env-secret"} <= found
    assert not found & {"/home/me", "short"}


def test_a_working_directory_is_no_password() -> None:
    assert secrets_of({"PWD": "/home/somebody", "OLDPWD": "/home/somebody/else"}) == frozenset()
    assert secrets_of({"DB_PWD": "hunter-two"}, {"pwd": "hunter-three"}) == {"hunter-two", "hunter-three"}


def test_parts_of_credentials_of_clouds_are_secrets() -> None:
    text = "DefaultEndpointsProtocol=https;AccountName=somebody;AccountKey=a2V5LW9mLWF6dXJl==;EndpointSuffix=core"
    found = secrets_of({"AZURE_STORAGE_CONNECTION_STRING": text})
    assert {text, "a2V5LW9mLWF6dXJl=="} <= found
    assert not found & {"somebody", "https"}
    key = "-----BEGIN PRIVATE KEY-----\nabcdef\n"
    assert {key, key.replace("\n", "\\n")} <= secrets_of({"token": {"private_key": key}})
