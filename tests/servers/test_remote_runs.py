"""Whole jobs with shards and run folder in an S3 store: the digest of the local run, faults or not."""

import json
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


@pytest.mark.parametrize("strategy", ["resident", "staged"])
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
