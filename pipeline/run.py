"""Carries a plan out, stage by stage; the same call again goes on where the last one stopped."""

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tilecov.storage.lease import NAME as LEASE
from tilecov.storage.lease import LeaseHeldError, lease
from tilecov.storage.listing import Shard, list_shards
from tilecov.storage.objects import Folder
from tilecov.storage.redact import redact, redact_url
from tilecov.storage.runs import FORMAT, LEDGER, REPORT, WORK, RunFolder, now, versions

from .errors import BusyError, CertificateError, DoesNotFitError, OtherJobError
from .job import Job
from .observer import Observer
from .plan import Plan, plan
from .sizes import show_size

if TYPE_CHECKING:
    from .facts import DatasetFacts

Manifest = dict[str, Any]

_TIDY_TRIES, _TIDY_PAUSE = 4, 0.5
"""How often, and after how many seconds, one looks again at a complete run that somebody holds."""


def run(job: Job, observer: Observer | None = None) -> Manifest:
    """Do ``job`` and return the run's manifest (the content of run.json).

    A run that was interrupted is resumed, one that is complete is left alone.

    Raises
    ------
    ValueError
        Where ``job`` has no run folder.
    OtherJobError
        Where the run folder holds another job, or shards have changed since.
    BusyError
        Where another process works on the run folder.
    BadDataError
        Where shards or samples cannot be read; their shard and key are named.
    DoesNotFitError
        Where the work does not fit the memory allowed.
    CertificateError
        Where the spectrum falls short of its limits.
    """
    if job.out is None:
        raise ValueError("a run needs a folder: --out RUN")
    folder = RunFolder(Folder(job.out, job.storage_options))
    shards = tuple(list_shards(job.shards, job.storage_options))
    return go_on(job, shards, folder, lambda: _begin(job, shards, folder), observer or Observer())


def go_on(job: Job, shards: tuple[Shard, ...], folder: RunFolder, begin: Any, observer: Observer) -> Manifest:
    """Begin a run, or resume it, or leave it alone where it is complete; one process at a time."""
    manifest = folder.load()
    if manifest is not None:
        check_same(manifest, job, folder.url)
        if manifest["state"] == "complete":
            _check_shards(manifest, shards, folder)
            observer.note(f"already complete: {folder.url}")
            _tidy(folder, observer)
            return manifest
    try:
        with lease(folder.root):
            manifest = folder.load()
            if manifest is None:
                manifest = begin()
            else:
                check_same(manifest, job, folder.url)
                observer.note(f"resuming {folder.url}")
                folder.sweep()
            todo = remaining(job, shards, manifest)
            _check_shards(manifest, shards, folder)
            return _carry_out(job, todo, folder, manifest, observer)
    except LeaseHeldError as error:
        raise BusyError(str(error)) from error


@dataclass(frozen=True)
class Foreseen:
    """What is known of a job before its run begins.

    Parameters
    ----------
    sources : list of dict
        Finished runs whose moments are taken over.
    facts : DatasetFacts
    plan : Plan
    """

    sources: list[dict[str, Any]]
    facts: "DatasetFacts"
    plan: Plan


def foresee(job: Job, shards: tuple[Shard, ...]) -> Foreseen:
    """Look at the first samples and at the runs to extend, measure the machine, and plan; it writes no run."""
    from .executors import measure_for
    from .facts import inspect

    sources = [source_of(job.extend, job, 1)] if job.extend else []
    todo = new_to(sources, shards, job)
    facts = inspect(job, todo) if todo else nothing_to_read(sources)
    check_kinds([*sources, {"url": "the shards named", "kind": facts.kind}])
    return Foreseen(sources, facts, plan(job, facts, measure_for(job, job.out)))


def _begin(job: Job, shards: tuple[Shard, ...], folder: RunFolder) -> Manifest:
    """Plan the job, then write the manifest of a run that has just begun."""
    found = foresee(job, shards)
    facts = found.facts
    return write_manifest(folder, job, found.plan, found.sources, facts.kind, shards, facts.samples)


def nothing_to_read(sources: list[dict[str, Any]]) -> "DatasetFacts":
    """Return the facts of a run that takes everything from finished runs."""
    from .facts import DatasetFacts

    return DatasetFacts((), sources[0]["kind"], 0, 0, 0, 0.0)


def check_kinds(sources: list[dict[str, Any]]) -> None:
    """Raise OtherJobError where exact and float moments would be added."""
    first = sources[0]
    for source in sources[1:]:
        if (source["kind"] == "uint8") != (first["kind"] == "uint8"):
            raise OtherJobError(f"{first['url']} has {first['kind']} rows and {source['url']} {source['kind']} rows")


def write_manifest(
    folder: RunFolder,
    job: Job,
    planned: Plan,
    sources: list[dict[str, Any]],
    kind: str,
    shards: tuple[Shard, ...],
    samples: int,
) -> Manifest:
    """Write the manifest of a run that has just begun; OtherJobError where the folder holds other things."""
    names = [name for name in folder.root.names() if not name.lstrip(".").startswith(LEASE)]
    if not all(map(_is_unfinished, names)):
        raise OtherJobError(f"{folder.url} is not empty and holds no run; choose another --out")
    for name in names:
        folder.root.remove(name)
    size = sum(shard.size for shard in shards)
    manifest = {
        "format": FORMAT,
        "state": "running",
        "created": now(),
        "versions": versions(),
        "job": {**job.what(), "shards": [redact(pattern) for pattern in job.shards]},
        "dataset": {"kind": kind, "shards": len(shards), "bytes": size, "samples_estimated": samples},
        "sources": sources,
        "plan": json.loads(json.dumps(planned.as_dict())),  # as it will be read back
        "stages": {},
    }
    folder.save(manifest)
    return manifest


def _is_unfinished(name: str) -> bool:
    """Return whether a file is one that a killed process was still writing beside its place, or to measure the disk."""
    return name.startswith(".") and name.endswith(".tmp")


def source_of(url: str, job: Job, sign: int) -> dict[str, Any]:
    """Return what a manifest keeps of a finished run whose moments are taken over.

    Raises
    ------
    ValueError
        Where its URL holds credentials: a run keeps the URLs of those that it is made of.
    FileNotFoundError
        Where there is no finished run.
    OtherJobError
        Where its rows are not made as ``job`` makes them; the field that differs is named.
    """
    if redact_url(url) != url:
        raise ValueError(
            f"{redact_url(url)}: its URL is kept in run.json and would keep the password too; give that with "
            "--storage-options"
        )
    folder = Folder(url, job.storage_options)
    manifest = RunFolder(folder).load()
    if manifest is None or manifest["state"] != "complete":
        raise FileNotFoundError(f"no complete run at {url}; `tilecov run` makes one, the same command completes one")
    if "moments_digest" not in manifest:
        raise OtherJobError(f"{url} was made with --no-covariance: it has no gram that could be added")
    for name in ("resolution", "channels"):
        if manifest["job"][name] != job.what()[name]:
            raise OtherJobError(
                f"{url} has {name} {manifest['job'][name]} and not {job.what()[name]}; they do not add up"
            )
    kind = manifest["dataset"]["kind"]
    return {"url": folder.absolute, "sign": sign, "digest": manifest["moments_digest"], "kind": kind}


def new_to(sources: list[dict[str, Any]], shards: tuple[Shard, ...], job: Job) -> tuple[Shard, ...]:
    """Return the shards that no source has read; OtherJobError where one has changed since."""
    read: dict[str, dict[str, Any]] = {}
    for source in sources:
        read |= {line["url"]: line for line in RunFolder(Folder(source["url"], job.storage_options)).read_ledger()}
    for shard in shards:
        line = read.get(shard.url)
        if line is not None and (change := shard.change_since(line)):
            raise OtherJobError(f"{shard.url} has changed since the run to extend read it: {change}; make a new run")
    return tuple(shard for shard in shards if shard.url not in read)


def remaining(job: Job, shards: tuple[Shard, ...], manifest: Manifest) -> tuple[Shard, ...]:
    """Return the shards that this run reads itself."""
    return new_to(manifest["sources"], shards, job) if job.extend else shards


def check_same(manifest: Mapping[str, Any], job: Job, url: str) -> None:
    """Raise OtherJobError where the run at ``url`` was begun for another job; the field that differs is named."""
    for name, value in job.what().items():
        then = manifest["job"].get(name, Job.model_fields[name].default)
        if then != value:
            raise OtherJobError(f"{url} holds a run with {name} {then!r}, not {value!r}; choose another --out")


def _check_shards(manifest: Mapping[str, Any], shards: tuple[Shard, ...], folder: RunFolder) -> None:
    """Raise OtherJobError where the shards named now are not those of the run."""
    then = manifest["dataset"]["shards"]
    if shards and then != len(shards):
        raise OtherJobError(
            f"{folder.url} holds a run over {then} shards and {len(shards)} are named now; choose another --out"
        )
    read = {line["url"]: line for line in folder.read_ledger()} if folder.root.exists(LEDGER) else {}
    for shard in shards if read else ():
        line = read.get(shard.url)
        if line is None:
            raise OtherJobError(f"{folder.url} holds a run without {shard.url}; choose another --out")
        if change := shard.change_since(line):
            raise OtherJobError(f"{shard.url} has changed since {folder.url} read it: {change}; choose another --out")


def _carry_out(
    job: Job, shards: tuple[Shard, ...], folder: RunFolder, manifest: Manifest, observer: Observer
) -> Manifest:
    from tilecov.storage.partials import DamagedTileError

    from .context import Context
    from .executors import executor_of
    from .machine import old_objects_at_rest, reset_peak
    from .spectra import refine
    from .stages import repair

    planned = Plan.load(manifest["plan"])
    _check_memory(job, planned, manifest)
    observer.planned(planned)
    with old_objects_at_rest():  # torch's among them, which is there now
        with executor_of(job) as executor:
            context = Context(job, shards, folder, manifest, planned, executor, observer)
            names = [stage.name for stage in planned.stages]
            repaired = False  # by this process: one that was killed over it leaves it to the next
            with context.finishing:
                while todo := [stage for stage in planned.stages if stage.name not in manifest["stages"]]:
                    try:
                        _do_stage(context, todo[0])
                    except DamagedTileError as error:
                        if repaired or not repair(context, todo[0].name, error):
                            raise
                        repaired = True
                    except CertificateError as error:
                        if not refine(context):
                            raise
                        observer.note(f"{error}; it is decomposed again in float64")
            manifest["stages"] = {name: manifest["stages"][name] for name in names}
        # Before the run is called complete: nothing is left behind where it is killed here.
        folder.root.remove(f"{WORK}/moments" if job.keep_rows else WORK)
        manifest["state"], manifest["completed"] = "complete", now()
        folder.save(manifest)
        _report(folder, observer)
        reset_peak()  # what was kept for the next stage, and for the tiles of the report, goes back
        return manifest


def _tidy(folder: RunFolder, observer: Observer) -> None:
    """Do what is left to do where a process was killed after it had called its run complete."""
    for _ in range(_TIDY_TRIES):
        if not folder.root.exists(LEASE):
            break
        # Its owner may be at the report, or about to be gone; where it cannot be removed, it is in nobody's way.
        with suppress(LeaseHeldError, OSError), lease(folder.root):
            break
        time.sleep(_TIDY_PAUSE)
    if not folder.root.exists(REPORT):
        _report(folder, observer)


def _report(folder: RunFolder, observer: Observer) -> None:
    """Write the report into the run folder; a run is complete without it."""
    from .report import write_report

    try:
        write_report(folder)
    except Exception as error:  # noqa: BLE001  (whatever is wrong with a picture, the numbers are there)
        why = f"{type(error).__name__}: {error}"
        observer.note(f"no report was written ({why}); `tilecov report {folder.url}` makes it")


def _check_memory(job: Job, planned: Plan, manifest: Manifest) -> None:
    """Raise DoesNotFitError where a run is resumed with less memory than its remaining stages were planned for."""
    needed = max((stage.memory for stage in planned.stages if stage.name not in manifest["stages"]), default=0)
    if job.memory is not None and needed > job.memory:
        raise DoesNotFitError(
            f"the run was planned with stages that need {show_size(needed)} and {show_size(job.memory)} are allowed; "
            f"raise --memory to {show_size(needed)} or more, or begin anew with another --out"
        )


def _keeps_freed(context: Any, predicted: Any) -> bool:
    """Return whether a stage may keep what it frees: as planned, and with the memory that this process is allowed."""
    from .costs import SPARE

    left = (context.job.memory or context.plan.memory) - predicted.memory
    return bool(predicted.keeps_freed and left >= SPARE and "precision" not in context.manifest)


def _do_stage(context: Any, predicted: Any) -> None:
    from .machine import peak_bytes, reset_peak
    from .stages import STAGES

    reset_peak(keep=_keeps_freed(context, predicted))
    started = time.perf_counter()
    peak = STAGES[predicted.name](context)
    seconds = round(time.perf_counter() - started, 3)
    context.manifest["stages"][predicted.name] = {
        "finished": now(),
        "seconds": seconds,
        "peak_memory": max(peak or 0, peak_bytes()),
        "predicted": {"seconds": round(predicted.seconds, 3), "peak_memory": predicted.memory},
    }
    context.finishing.note(context.manifest)
    context.observer.finished(predicted.name, seconds)
