"""Compose, for real: the digest of a local run, whatever is killed, inside the limits of containers."""

import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import random_images, write_tar
from engine import Engine
from PIL import Image
from stack import SECRET, USER, Stack, running, until

from tilecov.pipeline import Job, load_wiener_filter, run
from tilecov.pipeline.service.client import Client, ServiceError
from tilecov.pipeline.verify import verify
from tilecov.storage.objects import Folder
from tilecov.storage.runs import RunFolder

pytestmark = pytest.mark.slow
BUCKET = "s3://tilecov"
SCHEDULER = ("--scheduler", "tcp://scheduler:8786", "--quiet")
FORMATS = (("png", "PNG"), ("jpg", "JPEG"), ("webp", "WEBP"))


@pytest.fixture(scope="module")
def stack(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running(engine, tmp_path_factory.mktemp("stack")) as started:
        yield started


def encoded(pixels: Any, kind: str) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, kind)
    return sink.getvalue()


class Dataset:
    """Shards of all formats, on this disk and in the bucket."""

    def __init__(self, stack: Stack, folder: Path, count: int, resolution: int, shards: int = 6) -> None:
        self.stack, self.folder, self.resolution = stack, folder, resolution
        images = random_images(count, resolution)
        for number in range(shards):
            files = []
            for index in range(number, count, shards):
                extension, kind = FORMATS[index % 3]
                files.append((f"{index:06d}.{extension}", encoded(images[index], kind)))
            write_tar(folder / f"part-{number:03d}.tar", files)
        bucket = Folder(f"{BUCKET}/{folder.name}", stack.options)
        for path in sorted(folder.glob("*.tar")):
            bucket.write(path.name, path.read_bytes())

    @property
    def arguments(self) -> list[str]:
        return ["run", f"{BUCKET}/{self.folder.name}/*.tar", "--resolution", str(self.resolution), *SCHEDULER]

    @property
    def loud(self) -> list[str]:
        return [argument for argument in self.arguments if argument != "--quiet"]

    def digest(self, **options: Any) -> str:
        paths = tuple(map(str, sorted(self.folder.glob("*.tar"))))
        job = Job(shards=paths, resolution=self.resolution, out=str(self.folder / "run"), rank=0, **options)
        return str(run(job)["moments_digest"])

    def out(self, name: str) -> tuple[list[str], Folder]:
        """Return the option and the folder of a run in the bucket."""
        url = f"{BUCKET}/{self.folder.name}-{name}"
        return ["--out", url], Folder(url, self.stack.options)


@pytest.fixture(scope="module")
def small(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return Dataset(stack, tmp_path_factory.mktemp("small"), 240, 16)


@pytest.fixture(scope="module")
def large(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Return some seconds of work, made slow by small blocks, in units of a shard."""
    return Dataset(stack, tmp_path_factory.mktemp("large"), 1200, 32, shards=12)


SLOW = ["--rank", "0", "--block-rows", "8", "--workers", "12", "--memory", "700MiB"]


def manifest_of(folder: Folder) -> dict[str, Any]:
    return dict(json.loads(folder.read("run.json")))


def commits(folder: Folder) -> list[str]:
    folder.fs.invalidate_cache()
    return [name for name in folder.fs.find(folder.path("work")) if name.endswith(".json")]


def test_one_service_builds_an_image_and_none_pulls_one(stack: Stack) -> None:
    every = [word for profile in ("job", "service", "gpu") for word in ("--profile", profile)]
    services = json.loads(stack.compose(*every, "config", "--format", "json"))["services"]
    assert {service["pull_policy"] for service in services.values()} == {"never"}
    built = [service["image"] for service in services.values() if "build" in service]
    assert sorted(built) == sorted({service["image"] for service in services.values()})
    arguments = services["scheduler"]["build"]["args"]
    assert {"VERSION", "REVISION", "CREATED", "SOURCE"} < set(arguments)


def test_a_job_in_containers_has_the_digest_of_a_local_run(stack: Stack, small: Dataset, tmp_path: Path) -> None:
    option, folder = small.out("run")
    job = stack.job(*small.arguments, *option)
    stack.end_of(job)
    manifest = manifest_of(folder)
    assert manifest["state"] == "complete"
    assert manifest["moments_digest"] == small.digest()
    assert verify(RunFolder(folder))[1] == []
    for name in folder.names("artifacts"):
        (tmp_path / name).write_bytes(folder.read(f"artifacts/{name}"))
    u, values, v, mean = load_wiener_filter(str(tmp_path))
    assert u.shape == (768, 768)
    assert torch.equal(u.T, v)
    assert mean.shape == values.shape == (768,)
    assert "already complete" in stack.end_of(
        stack.job(*[name for name in small.arguments if name != "--quiet"], *option)
    )


def test_containers_have_no_rights_and_show_no_secret(stack: Stack, small: Dataset) -> None:
    everything = stack.compose("ps", "--all", "--quiet").split()
    assert len(everything) >= 4
    for container in everything:
        said = stack.inspect(container)
        assert SECRET not in json.dumps(said)
        if said["Config"]["Labels"]["com.docker.compose.service"] != "store":
            assert said["Config"]["User"] == f"{USER}:{USER}"
            assert said["HostConfig"]["ReadonlyRootfs"]
            assert said["HostConfig"]["CapDrop"] == ["ALL"]
            assert "no-new-privileges:true" in said["HostConfig"]["SecurityOpt"]
    logs = stack.try_compose("logs")
    assert SECRET not in logs.stdout + logs.stderr


def test_a_killed_worker_costs_its_unit(stack: Stack, large: Dataset) -> None:
    option, folder = large.out("worker")
    job = stack.job(*large.arguments, *SLOW, *option)
    until(lambda: commits(folder))
    victim = stack.containers("worker")[0]

    def frozen_at_work() -> bool:
        stack.engine.docker("pause", victim)
        time.sleep(1)  # what it had sent has arrived
        if stack.tasks_of(victim):
            return True
        stack.engine.docker("unpause", victim)
        return False

    until(frozen_at_work)
    stack.engine.docker("kill", victim)
    assert stack.inspect(job)["State"]["Running"]
    stack.end_of(job)
    assert manifest_of(folder)["moments_digest"] == large.digest()
    stack.compose("up", "--detach", "--wait", "--no-build", "--scale", "worker=2")
    assert len(stack.containers("worker")) == 2


def test_a_killed_job_goes_on_when_it_is_started_again(stack: Stack, large: Dataset) -> None:
    option, folder = large.out("job")
    job = stack.job(*large.loud, *SLOW, *option)
    until(lambda: commits(folder))
    stack.engine.docker("kill", job)
    assert manifest_of(folder)["state"] == "running"
    stack.engine.docker("start", job)
    assert "resuming" in stack.end_of(job)
    assert manifest_of(folder)["moments_digest"] == large.digest()


def test_a_stopped_job_frees_its_run_folder_and_goes_on(stack: Stack, large: Dataset) -> None:
    option, folder = large.out("stopped")
    job = stack.job(*large.loud, *SLOW, *option)
    until(lambda: commits(folder))
    stack.engine.docker("stop", job)
    assert stack.inspect(job)["State"]["ExitCode"] == 130
    assert "the same command goes on where it stopped" in stack.engine.try_docker("logs", job).stderr
    folder.fs.invalidate_cache()
    assert not folder.exists("lease.json")
    other = stack.job(*large.loud, *SLOW, *option)  # another host, which would have to wait for a lease
    assert "resuming" in stack.end_of(other)
    assert manifest_of(folder)["moments_digest"] == large.digest()


def killed_for_memory(stack: Stack, since: float) -> str:
    """Return the engine's events of memory that ran out, in this stack, since a time."""
    mine = ("--filter", "event=oom", "--filter", f"label=com.docker.compose.project={stack.project}")
    return stack.engine.docker("events", "--since", f"{since:.3f}", "--until", f"{time.time():.3f}", *mine)


def test_a_worker_keeps_inside_its_container_s_memory(stack: Stack, tmp_path: Path) -> None:
    """Gray images of 128 x 128: all tiles at once kill a worker, and the plan, which sees its limit, stages rows."""
    stack.set(WORKER_MEMORY="700m")
    stack.compose("up", "--detach", "--wait", "--no-build", "--scale", "worker=2")
    dataset = Dataset(stack, tmp_path / "wide", 120, 128)
    began = time.time()
    arguments = [*dataset.arguments, "--channels", "1", "--rank", "0"]
    careless = stack.job(*arguments, "--memory", "3GiB", *dataset.out("careless")[0])
    until(lambda: restarts(stack))
    assert killed_for_memory(stack, began)
    stack.engine.docker("kill", careless)
    # New ones: the engine's word of a kill stays with a container that is started again.
    stack.compose(
        "up", "--detach", "--wait", "--no-build", "--no-deps", "--force-recreate", "--scale", "worker=2", "worker"
    )
    began = time.time()

    option, folder = dataset.out("run")
    stack.end_of(stack.job(*arguments, *option))
    manifest = manifest_of(folder)
    assert restarts(stack) == 0
    assert killed_for_memory(stack, began) == ""
    assert [stack.inspect(worker)["State"]["OOMKilled"] for worker in stack.containers("worker")] == [False, False]
    assert manifest["plan"]["memory"] == int(0.8 * (700 << 20))
    assert manifest["plan"]["strategy"] == "staged"
    assert manifest["moments_digest"] == dataset.digest(channels=1)
    for name, stage in manifest["stages"].items():
        print(name, stage.get("peak_memory", 0) >> 20, "MiB, its worker has 700")  # noqa: T201


def test_the_service_does_jobs_on_the_workers(stack: Stack, small: Dataset) -> None:
    """Queue, shards and runs lie in the bucket: a service that is killed goes on when it is started again."""
    token = "hunter2hunter2hunter2"
    file = stack.env.with_name("token")
    file.write_text(token)
    prefix = f"{BUCKET}/{small.folder.name}"
    stack.set(TOKEN_FILE=str(file), ALLOW=prefix, ROOT=f"{BUCKET}/service", SERVICE_PORT="0")
    up = ("--profile", "service", "up", "--detach", "--wait", "--no-build", "--scale", "worker=2")
    stack.compose(*up)
    job = {"shards": [f"{prefix}/*.tar"], "resolution": small.resolution, "rank": 0}

    def client(token: str = token) -> Client:
        port = stack.compose("port", "service", "8750").rpartition(":")[2]
        return Client(f"http://127.0.0.1:{port}", token)

    with pytest.raises(ServiceError, match="token"):
        client("").runs()
    with pytest.raises(ServiceError, match="/etc"):
        client().submit({**job, "shards": ["/etc/*.tar"]})
    first = client().wait(client().submit(job)["id"])
    second = client().submit({**job, "channels": 1})["id"]
    stack.engine.docker("kill", stack.containers("service")[0])
    stack.compose(*up)
    last = client().wait(second)
    assert (first["state"], last["state"]) == ("complete", "complete"), (first["error"], last["error"])
    assert first["result"]["moments_digest"] == small.digest()
    shown = stack.engine.docker("inspect", stack.containers("service")[0])
    assert "hunter2" not in shown + stack.compose("logs", "service")
    stack.compose("rm", "--stop", "--force", "service")


def test_the_store_comes_back_empty_when_it_is_started_again(stack: Stack) -> None:
    """It comes last: what the store held is gone."""
    container = stack.containers("store")[0]
    Folder(f"{BUCKET}/before", stack.options).write("a", b"1")
    stack.engine.docker("restart", container)
    until(lambda: stack.inspect(container)["State"]["Health"]["Status"] == "healthy")
    folder = Folder(f"{BUCKET}/after", stack.options)  # on another port
    folder.write("a", b"1")
    assert folder.read("a") == b"1"
    assert not Folder(f"{BUCKET}/before", stack.options).exists("a")
    # The check asks the gateway itself: without one, the file alone is not enough.
    said = stack.inspect(container)["Config"]
    alone = ("run", "--rm", "--entrypoint", "sh", said["Image"], "-c")
    assert stack.engine.try_docker(*alone, f"touch /run/ready; {said['Healthcheck']['Test'][-1]}").returncode != 0


def restarts(stack: Stack) -> int:
    return sum(stack.inspect(worker)["RestartCount"] for worker in stack.compose("ps", "--all", "-q", "worker").split())
