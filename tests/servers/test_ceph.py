"""Against real Ceph: whole jobs in its store, conditional writes, the lease, replaced shards, signatures."""

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from cephstore import ceph_store  # noqa: F401  (the fixture `s3`)
from faultproxy import FaultProxy, Faults
from stores import SECRET, Store, s3_proxy  # noqa: F401  (the fixture `proxy`)
from test_remote_runs import check, stored_job  # noqa: F401  (the fixture `job`)

from tilecov.pipeline.cli import run_safely
from tilecov.pipeline.verify import verify
from tilecov.storage.lease import NAME, LeaseHeldError, lease
from tilecov.storage.listing import Shard, list_shards
from tilecov.storage.objects import Folder
from tilecov.storage.runs import RunFolder
from tilecov.storage.streams import open_shard
from tilecov.storage.versions import ReplacedError

pytestmark = pytest.mark.slow
MIB = 1 << 20


@pytest.fixture
def folder(s3: Store, request: pytest.FixtureRequest) -> Folder:
    return Folder(f"{s3.root}/{request.node.name}", s3.options)


def command_of(job: dict[str, Any], tmp_path: Path, options: dict[str, Any]) -> list[str]:
    """Return the command of a job, its storage options in a file."""
    file = tmp_path / "options.json"
    file.write_text(json.dumps(options))
    rest = ["--resolution", "8", "--rank", "4", "--out", job["out"], "--storage-options", f"@{file}"]
    return ["run", *job["shards"], *rest]


def attempts(work: Callable[[int], object], error: type[Exception]) -> int:
    """Call ``work`` eight times at once; return how many did not end with ``error``."""

    def attempt(index: int) -> bool:
        try:
            work(index)
        except error:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        return sum(pool.map(attempt, range(8)))


# --- whole jobs


@pytest.mark.parametrize("strategy", ["resident", "staged"])
def test_shards_and_run_folder_in_ceph(
    s3: Store, job: dict[str, Any], strategy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check(job, s3.options, strategy=strategy)
    folder = Folder(job["out"], s3.options)
    assert verify(RunFolder(folder))[1] == []
    command = [*command_of(job, tmp_path, s3.options), "--memory", "2GiB", "--strategy", strategy]
    assert run_safely(command) == 0
    assert "already complete" in "".join(capsys.readouterr())
    assert SECRET not in folder.read("run.json").decode()


def test_a_job_through_faults(s3: Store, job: dict[str, Any], proxy: FaultProxy) -> None:
    proxy.faults = Faults(busy=0.1, reset=0.05, cut=0.05, latency=0.002)
    check(job, s3.through(proxy.port))
    assert verify(RunFolder(Folder(job["out"], s3.options)))[1] == []


@pytest.mark.parametrize("what", ["shards", "run folder"])
def test_a_wrong_secret_is_said_in_one_line(
    s3: Store, job: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    wrong = "not-the-secret-of-this-store"
    local = {"shards": [str(path) for path in sorted((tmp_path / "shards").iterdir())]} if what == "run folder" else {}
    command = command_of(job | local, tmp_path, s3.options | {"secret": wrong})
    begun = time.monotonic()
    assert run_safely([*command, "--quiet"]) == 1
    said = capsys.readouterr().err
    refused = job["shards"][0] if what == "shards" else job["out"]
    assert said.startswith(f"tilecov: {refused}: the store refuses access (")
    assert said.count("\n") == 1
    assert time.monotonic() - begun < 60
    assert wrong not in said


# --- conditional writes and the lease


def test_what_is_there_is_not_created_again(folder: Folder) -> None:
    folder.create("a", b"first")
    with pytest.raises(FileExistsError, match="is there already"):
        folder.create("a", b"second")
    assert folder.read("a") == b"first"


def test_of_eight_creators_one_wins(folder: Folder) -> None:
    for turn in range(5):
        won = attempts(lambda index, name=f"a{turn}": folder.create(name, f"{index}".encode()), FileExistsError)
        assert won == 1


def test_a_second_holder_is_refused(folder: Folder) -> None:
    with lease(folder):
        with pytest.raises(LeaseHeldError, match="works on s3://bucket"), lease(folder):
            pass
        assert folder.exists(NAME)
    assert folder.names() == []


def test_an_expired_lease_is_taken_over_by_one(folder: Folder) -> None:
    held = {"id": "other", "host": "elsewhere", "pid": 1, "until": time.time() - 1}
    folder.write(NAME, json.dumps(held).encode())

    def hold(_: int) -> None:
        with lease(folder):
            time.sleep(2)

    assert attempts(hold, LeaseHeldError) == 1
    assert folder.names() == []


def test_a_renewed_lease_stays(folder: Folder) -> None:
    with lease(folder, lifetime=1.5, renewal=0.2):
        time.sleep(2)
        with pytest.raises(LeaseHeldError), lease(folder):
            pass


# --- shards that change


def put(store: Store, url: str, data: bytes) -> Shard:
    fs, path = fsspec.core.url_to_fs(url, **store.options)
    fs.pipe_file(path, data)
    fs.invalidate_cache()
    return list_shards([url], store.options)[0]


@pytest.mark.parametrize("when", ["before", "amid"])
def test_a_replaced_shard_is_an_error_and_not_a_mixture(s3: Store, when: str) -> None:
    url = f"{s3.root}/replaced-{when}/a.tar"
    first, second = (np.random.default_rng(seed).bytes(40 * MIB) for seed in range(2))
    with open_shard(put(s3, url, first), s3.options) as stream:
        if when == "amid":
            assert stream.read(MIB) == first[:MIB]
        put(s3, url, second)
        with pytest.raises(ReplacedError, match=r"a\.tar"):
            stream.read()
