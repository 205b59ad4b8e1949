"""Whole jobs with shards and run folder at az:// and gs://: the digest of the local run, faults or not."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from clouds import KEY, azure_store, google_store  # noqa: F401  (the fixtures `az` and `gs`)
from conftest import random_images, write_shards
from faultproxy import FaultProxy, Faults
from stores import Store

from tilecov.pipeline import Job, run
from tilecov.pipeline.cli import run_safely
from tilecov.pipeline.observer import Observer
from tilecov.pipeline.verify import verify
from tilecov.storage.lease import NAME, LeaseHeldError, lease
from tilecov.storage.listing import Shard, list_shards
from tilecov.storage.objects import Folder
from tilecov.storage.runs import RunFolder
from tilecov.storage.streams import open_shard
from tilecov.storage.versions import ReplacedError

pytestmark = pytest.mark.slow
MIB = 1 << 20


@pytest.fixture(name="store", params=["az", "gs"])
def store_of_a_cloud(request: pytest.FixtureRequest) -> Store:
    found: Store = request.getfixturevalue(request.param)
    return found


@pytest.fixture(name="prefix")
def own_prefix(request: pytest.FixtureRequest) -> str:
    return str(request.node.name.replace("[", "-").rstrip("]"))


@pytest.fixture(name="folder")
def own_folder(store: Store, prefix: str) -> Folder:
    return Folder(f"{store.root}/{prefix}", store.options)


@pytest.fixture(name="job")
def stored_job(store: Store, prefix: str, tmp_path: Path) -> dict[str, Any]:
    """Return a job whose shards lie in the store, and its digest from a local run."""
    paths = write_shards(tmp_path / "shards", random_images(60, 8), 3)
    local = run(Job(shards=tuple(map(str, paths)), resolution=8, out=str(tmp_path / "run"), rank=4))
    store.put(tmp_path / "shards", f"{prefix}/shards")
    fields = {"shards": (f"{store.root}/{prefix}/shards/*.tar",), "out": f"{store.root}/{prefix}/run"}
    return {**fields, "digest": local["moments_digest"]}


def job_of(job: dict[str, Any], options: dict[str, Any], **changes: Any) -> Job:
    fields = {"resolution": 8, "rank": 4, "memory": "2GiB", "storage_options": options}
    return Job(shards=job["shards"], out=job["out"], **{**fields, **changes})


@pytest.mark.parametrize("strategy", ["resident", "staged"])
def test_shards_and_run_folder_in_a_store(store: Store, job: dict[str, Any], strategy: Any) -> None:
    notes: list[str] = []

    class Watch(Observer):
        def note(self, text: str) -> None:
            notes.append(text)

    wanted = job_of(job, store.options, strategy=strategy)
    manifest = run(wanted)
    assert manifest["moments_digest"] == job["digest"]
    folder = Folder(job["out"], store.options)
    assert verify(RunFolder(folder))[1] == []
    assert KEY not in folder.read("run.json").decode()
    assert run(wanted, Watch()) == manifest
    assert notes == [f"already complete: {job['out']}"]


def test_one_of_eight_creators_wins(folder: Folder) -> None:
    start = threading.Barrier(8)

    def attempt(round_: int, writer: int) -> bool:
        start.wait()
        try:
            folder.create(f"lock-{round_}", str(writer).encode() * 1000)
        except FileExistsError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        for round_ in range(5):
            won = list(pool.map(attempt, [round_] * 8, range(8)))
            assert won.count(True) == 1
            assert folder.read(f"lock-{round_}") == str(won.index(True)).encode() * 1000


def test_a_lease_is_refused_and_taken_over(folder: Folder) -> None:
    with lease(folder), pytest.raises(LeaseHeldError), lease(folder):
        pass
    assert folder.names() == []
    dead = {"id": "other", "host": "elsewhere", "pid": 1, "until": time.time() + 60}
    folder.write(NAME, json.dumps(dead).encode())
    with pytest.raises(LeaseHeldError, match="elsewhere"), lease(folder):
        pass
    folder.write(NAME, json.dumps({**dead, "until": time.time() - 1}).encode())
    with lease(folder):
        assert json.loads(folder.read(NAME))["host"] != "elsewhere"
    assert folder.names() == []


def test_a_lease_that_is_over_is_taken_by_one(folder: Folder) -> None:
    folder.write(NAME, json.dumps({"id": "other", "host": "elsewhere", "pid": 1, "until": time.time() - 1}).encode())

    refused = threading.Semaphore(0)

    def holds(_: int) -> bool:
        try:
            with lease(folder):  # until all others have looked, however slow they are
                for _ in range(7):
                    if not refused.acquire(timeout=20):
                        break  # one of them has it too
        except LeaseHeldError:
            refused.release()
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(holds, range(8))).count(True) == 1
    assert folder.names() == []


Put = Callable[..., Shard]


@pytest.fixture(name="put")
def putting(store: Store, prefix: str) -> Put:
    """Return a function that stores bytes and lists them as a shard."""

    def put(data: bytes) -> Shard:
        url = f"{store.root}/{prefix}/a.tar"
        fs, path = fsspec.core.url_to_fs(url, **store.options)
        fs.pipe_file(path, data)
        fs.invalidate_cache()
        return list_shards([url], store.options)[0]

    return put


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")  # aiohttp's, of more than 1 MiB
@pytest.mark.parametrize("change", ["bytes", "shorter", "gone"])
@pytest.mark.parametrize("when", ["before", "amid"])
def test_a_replaced_shard_is_an_error_and_not_a_mixture(store: Store, put: Put, change: str, when: str) -> None:
    size = 20 * MIB
    data = np.random.default_rng(0).bytes(size)
    shard = put(data)
    with open_shard(shard, store.options) as stream:
        if when == "amid":
            assert stream.read(MIB) == data[:MIB]
        if change == "gone":
            fs, path = fsspec.core.url_to_fs(shard.url, **store.options)
            fs.rm_file(path)
        else:
            put(np.random.default_rng(1).bytes({"bytes": size, "shorter": size - 5}[change]))
        kind = FileNotFoundError if change == "gone" else ReplacedError
        with pytest.raises(kind, match=r"a\.tar"):
            stream.read()


def test_azure_is_asked_for_the_version_listed(az: Store) -> None:
    """A range of another version is refused by the store itself; no look before or after could tell."""
    folder = Folder(f"{az.root}/pinned", az.options)
    folder.write("a.tar", b"old" * 100)
    shard = list_shards([f"{folder.url}/a.tar"], az.options)[0]
    with FaultProxy(az.port).running() as proxy, open_shard(shard, az.through(proxy.port)) as stream:
        assert stream.read(3) == b"old"
        assert [request.split()[0] for request in proxy.requests] == ["GET"]
    with open_shard(replace(shard, tag="0xANOTHER"), az.options) as stream, pytest.raises(ReplacedError):
        stream.read(3)


@pytest.mark.parametrize("wrong", ["shard", "key"])
def test_what_is_wrong_is_said_in_one_line(az: Store, wrong: str, tmp_path: Path) -> None:
    """In a process of its own, whose end also shows that what adlfs opened is closed quietly."""
    put = KEY.replace("dGls", "wr0n") if wrong == "key" else KEY
    options = json.dumps({"connection_string": az.options["connection_string"].replace(KEY, put)})
    where = ["--out", f"{az.root}/none/run", "--storage-options", options, "--quiet"]
    command = [sys.executable, "-m", "tilecov.pipeline.cli", "run", f"{az.root}/none.tar", "--resolution", "8", *where]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    said = {
        "shard": r"no shard at az://container/none.tar",
        "key": "tilecov: az://container/none.tar: the store refuses access (",
    }[wrong]
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert put not in done.stderr + done.stdout


def test_a_missing_shard_of_google_is_said_in_one_line(gs: Store, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--out", f"{gs.root}/none/run", "--storage-options", json.dumps(gs.options)]
    assert run_safely(["run", f"{gs.root}/none.tar", "--resolution", "8", *where]) == 1
    assert "no shard at gs://bucket/none.tar" in capsys.readouterr().err


def test_a_command_on_azure_ends_quietly(az: Store, job_at_azure: dict[str, Any]) -> None:
    """adlfs would close what zarr opened on a loop that is gone, and say so."""
    options = ["--resolution", "8", "--rank", "4", "--storage-options", json.dumps(az.options), "--quiet"]
    command = [sys.executable, "-m", "tilecov.pipeline.cli", "run", *job_at_azure["shards"], *options]
    done = subprocess.run([*command, "--out", job_at_azure["out"]], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.fixture
def job_at_azure(az: Store, prefix: str, tmp_path: Path) -> dict[str, Any]:
    write_shards(tmp_path / "shards", random_images(20, 8), 2)
    return {"shards": az.put(tmp_path / "shards", f"{prefix}/shards"), "out": f"{az.root}/{prefix}/run"}


def persist(job: Job) -> dict[str, Any]:
    """Run a job; again where fake-gcs-server has forgotten an upload whose last answer was cut."""
    for _ in range(9):
        try:
            return run(job)
        except FileNotFoundError as error:
            if "upload_id=" not in str(error):
                raise
    return run(job)


@pytest.mark.parametrize("faults", [pytest.param(Faults(busy=0.2), id="busy"), pytest.param(Faults(cut=0.2), id="cut")])
def test_a_job_through_faults(store: Store, job: dict[str, Any], faults: Faults) -> None:
    with FaultProxy(store.port).running() as proxy:
        proxy.faults = faults
        manifest = persist(job_of(job, store.through(proxy.port)))
    assert manifest["moments_digest"] == job["digest"]
    assert verify(RunFolder(Folder(job["out"], store.options)))[1] == []
