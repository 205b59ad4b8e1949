"""Carries a plan out, stage by stage; the same call again goes on where the last one stopped."""

import json
import time
from collections.abc import Mapping
from typing import Any

from tilecov.storage.listing import Shard
from tilecov.storage.objects import Folder
from tilecov.storage.runs import FORMAT, WORK, RunFolder, now, versions

from .errors import OtherJobError
from .job import Job
from .observer import Observer
from .plan import plan


def run(job: Job, observer: Observer | None = None) -> dict[str, Any]:
    """Do ``job`` and return the run's manifest (the content of run.json).

    A run that was interrupted is resumed, one that is complete is left alone.

    Raises
    ------
    ValueError
        Where ``job`` has no run folder.
    OtherJobError
        Where the run folder holds another job, or shards have changed since.
    BadDataError
        Where shards or samples cannot be read; their shard and key are named.
    DoesNotFitError
        Where the work does not fit the memory allowed.
    CertificateError
        Where the spectrum falls short of its limits.
    """
    if job.out is None:
        raise ValueError("a run needs a folder: --out RUN")
    from .facts import find_shards

    observer = observer or Observer()
    folder = RunFolder(Folder(job.out, job.storage_options))
    shards = find_shards(job)
    manifest = folder.load()
    if manifest is None:
        manifest = _begin(job, shards, folder)
    else:
        check_same(manifest, job, shards, folder.url)
        if manifest["state"] == "complete":
            observer.note(f"already complete: {folder.url}")
            return manifest
        observer.note(f"resuming {folder.url}")
    return _carry_out(job, shards, folder, manifest, observer)


def _begin(job: Job, shards: tuple[Shard, ...], folder: RunFolder) -> dict[str, Any]:
    """Plan the job, then write the manifest of a run that has just begun."""
    from .facts import inspect
    from .machine import measure

    if folder.root.names():
        raise OtherJobError(f"{folder.url} is not empty and holds no run; choose another --out")
    facts = inspect(job, shards)
    planned = plan(job, facts, measure(job.device, job.out))
    manifest = {
        "format": FORMAT,
        "state": "running",
        "created": now(),
        "versions": versions(),
        "job": {**job.what(), "shards": list(job.shards)},
        "dataset": {
            "kind": facts.kind,
            "shards": len(shards),
            "bytes": facts.bytes,
            "samples_estimated": facts.samples,
        },
        "plan": json.loads(json.dumps(planned.as_dict())),  # as it will be read back
        "stages": {},
    }
    folder.save(manifest)
    return manifest


def check_same(manifest: Mapping[str, Any], job: Job, shards: tuple[Shard, ...], url: str) -> None:
    """Raise OtherJobError where the run at ``url`` was begun for another job; the field that differs is named."""
    recorded = {name: value for name, value in manifest["job"].items() if name != "shards"}
    for name, value in job.what().items():
        if recorded.get(name) != value:
            then = recorded.get(name)
            raise OtherJobError(f"{url} holds a run with {name} {then!r}, not {value!r}; choose another --out")
    if manifest["dataset"]["shards"] != len(shards):
        then = manifest["dataset"]["shards"]
        raise OtherJobError(
            f"{url} holds a run over {then} shards and {len(shards)} are named now; choose another --out"
        )


def _carry_out(
    job: Job, shards: tuple[Shard, ...], folder: RunFolder, manifest: dict[str, Any], observer: Observer
) -> dict[str, Any]:
    from .executors import executor_of
    from .machine import peak_bytes, reset_peak
    from .stages import STAGES, Context

    with executor_of(job) as executor:
        context = Context(job, shards, folder, manifest, executor, observer)
        for predicted in manifest["plan"]["stages"]:
            name = predicted["name"]
            if name in manifest["stages"]:
                continue
            reset_peak()
            started = time.perf_counter()
            peak = STAGES[name](context)
            seconds = round(time.perf_counter() - started, 3)
            manifest["stages"][name] = {
                "finished": now(),
                "seconds": seconds,
                "peak_memory": max(peak or 0, peak_bytes()),
                "predicted": {"seconds": round(predicted["seconds"], 3), "peak_memory": predicted["memory"]},
            }
            folder.save(manifest)
            observer.finished(name, seconds)
    manifest["state"], manifest["completed"] = "complete", now()
    folder.save(manifest)
    folder.root.remove(WORK)
    return manifest
