"""Whole jobs with shards and run folder in an S3 store: the digest of the local run, faults or not."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import random_images, write_shards
from faultproxy import FaultProxy, Faults
from stores import SECRET, Store, s3_proxy, s3_store  # noqa: F401  (the fixtures `proxy` and `s3`)

from tilecov.pipeline import Job, run
from tilecov.pipeline.cli import run_safely
from tilecov.pipeline.verify import verify
from tilecov.storage.objects import Folder
from tilecov.storage.runs import RunFolder


@pytest.fixture(name="job")
def stored_job(s3: Store, tmp_path: Path, request: pytest.FixtureRequest) -> dict[str, Any]:
    """Return a job whose shards lie in the store, and its digest from a local run."""
    prefix = request.node.name.replace("[", "-").rstrip("]")
    paths = write_shards(tmp_path / "shards", random_images(60, 8), 3)
    local = run(Job(shards=tuple(map(str, paths)), resolution=8, out=str(tmp_path / "run"), rank=4))
    fields = {"shards": tuple(s3.put(tmp_path / "shards", f"{prefix}/shards")), "out": f"{s3.root}/{prefix}/run"}
    return {**fields, "digest": local["moments_digest"]}


def check(job: dict[str, Any], options: dict[str, Any], **changes: Any) -> None:
    manifest = run(
        Job(
            shards=job["shards"],
            out=job["out"],
            storage_options=options,
            resolution=8,
            rank=4,
            memory="2GiB",
            **changes,
        )
    )
    assert manifest["moments_digest"] == job["digest"]


@pytest.mark.parametrize("strategy", ["resident", pytest.param("staged", marks=pytest.mark.slow)])
def test_shards_and_run_folder_in_a_store(s3: Store, job: dict[str, Any], strategy: Any) -> None:
    check(job, s3.options, strategy=strategy)
    folder = Folder(job["out"], s3.options)
    assert verify(RunFolder(folder))[1] == []
    manifest = folder.read("run.json").decode()
    assert json.loads(manifest)["state"] == "complete"
    assert SECRET not in manifest


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param(Faults(busy=0.2), id="busy"),
        pytest.param(Faults(reset=0.2), id="resets"),
        pytest.param(Faults(cut=0.2), id="cut"),
        pytest.param(Faults(rate=2e6), id="slow"),
    ],
)
@pytest.mark.slow
def test_a_job_through_faults(s3: Store, job: dict[str, Any], proxy: FaultProxy, faults: Faults) -> None:
    proxy.faults = faults
    check(job, s3.through(proxy.port))
    assert verify(RunFolder(Folder(job["out"], s3.options)))[1] == []


@pytest.mark.slow
def test_a_job_through_a_dark_line(s3: Store, job: dict[str, Any], proxy: FaultProxy) -> None:
    proxy.go_dark(10)
    check(job, s3.through(proxy.port))


@pytest.mark.slow
def test_two_workers_keep_credentials_to_themselves(s3: Store, proxy: FaultProxy, tmp_path: Path) -> None:
    """Neither of a run that fails in a worker nor of one that ends well, with retries told, is any found."""
    hidden, temporary = "hunter2/Zx+9hunter2", tmp_path / "temporary"
    temporary.mkdir()
    proxy.faults = Faults(cut=0.6)
    options = {**s3.through(proxy.port), "key": f"key-{hidden}", "secret": hidden, "token": f"token-{hidden}"}
    names = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AZURE_STORAGE_CONNECTION_STRING")
    environment = {**os.environ, **dict.fromkeys(names, f"environment-{hidden}"), "TMPDIR": str(temporary)}
    whole = write_shards(tmp_path / "shards", random_images(60, 8), 4)
    damaged = bytearray(whole[-1].read_bytes())
    image = damaged.rindex(b"IDAT")
    damaged[image : image + 60] = bytes(60)
    whole[-1].with_name("part-009.tar").write_bytes(damaged)
    s3.put(tmp_path / "shards", "hidden")
    said = ""
    for shards, code in (("part-00[0-9].tar", 1), ("part-00[0-3].tar", 0)):
        arguments = [f"s3://bucket/hidden/{shards}", "--resolution", "8", "--out", str(tmp_path / "run" / str(code))]
        command = [sys.executable, "-m", "tilecov.pipeline.cli", "run", *arguments, "--workers", "2", "--log", "json"]
        done = subprocess.run(
            [*command, "--storage-options", json.dumps(options)],
            env=environment, cwd=temporary, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        assert "part-009.tar" in done.stderr or code == 0
        said += done.stdout + done.stderr
    assert '"event": "retry"' in said
    assert "hunter2" not in said
    left = [path for folder in ("run", "temporary") for path in (tmp_path / folder).rglob("*") if path.is_file()]
    assert len(left) > 10
    assert [path for path in left if b"hunter2" in path.read_bytes() or "hunter2" in str(path)] == []


def test_a_missing_shard_is_said_in_one_line(s3: Store, capsys: pytest.CaptureFixture[str]) -> None:
    options = json.dumps(s3.options)
    code = run_safely(
        ["run", "s3://bucket/none.tar", "--resolution", "8", "--out", "s3://bucket/r", "--storage-options", options]
    )
    said = capsys.readouterr().err
    assert code == 1
    assert "no shard at s3://bucket/none.tar" in said
    assert SECRET not in said
    assert "Traceback" not in said
