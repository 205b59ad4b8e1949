"""The stages of a run, in the order of the plan. Each is safe to repeat."""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future, as_completed
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch

from tilecov.storage.listing import Shard
from tilecov.storage.partials import Partial
from tilecov.storage.runs import ARTIFACTS, STATISTICS, WORK, RunFolder
from tilecov.storage.tiles import TileMatrix, open_group, read_vector, write_vector
from tilecov.storage.tiling import Tiling

from . import certificate
from .device import choose_device
from .errors import CertificateError, OtherJobError, TooFewRowsError
from .executors import SerialExecutor
from .export import write_artifacts
from .job import Job
from .momentstore import MomentsStore, add_partials, uint8_origin
from .observer import Observer
from .plan import Plan
from .rows import RowSpec
from .svd import direct
from .tasks import UnitTask, read_unit, sum_unit
from .verify import artifact_slabs, covariance_of


@dataclass(frozen=True)
class Context:
    """What a stage works with."""

    job: Job
    shards: tuple[Shard, ...]
    run: RunFolder
    manifest: dict[str, Any]
    executor: Executor
    observer: Observer

    @property
    def plan(self) -> Plan:
        """The plan that the run was begun with."""
        return Plan.load(self.manifest["plan"])

    @property
    def tiling(self) -> Tiling:
        """How the columns are cut."""
        return Tiling(self.plan.size, self.plan.tile)

    @property
    def kind(self) -> str:
        """The dtype of the rows."""
        return str(self.manifest["dataset"]["kind"])


def mean_pass(context: Context) -> int:
    """Float rows, first pass: count and sum in float64."""
    records = _read_units(context, "mean", sum_unit, None)
    count = sum(record["count"] for record in records)
    _check_rows(context, records, count)
    total = np.sum([Partial(context.run.folder(record["prefix"])).read(record["sum"]) for record in records], axis=0)
    prefix = context.run.fresh("mean", "origin")
    record = Partial(context.run.folder(prefix)).write("mean", total / count)
    context.run.commit("origin", "mean", {"prefix": prefix, "mean": record})
    return max(int(record["peak_memory"]) for record in records)


def moments(context: Context) -> int:
    """Read every unit once and commit its partial."""
    origin = None if context.kind == "uint8" else context.run.commits("origin")["mean"]
    records = _read_units(context, "moments", read_unit, origin)
    _check_rows(context, records, sum(part["count"] for record in records for part in record["parts"]))
    return max(int(record["peak_memory"]) for record in records)


def merge(context: Context) -> None:
    """Add the partials of all units up, tile by tile, and write the ledger."""
    records = context.run.commits("moments")
    origin = uint8_origin()
    if context.kind != "uint8":
        found = context.run.commits("origin")["mean"]
        origin = Partial(context.run.folder(found["prefix"])).read(found["mean"])
    pairs = list(context.tiling.upper())
    context.observer.stage("merge", len(pairs), "tiles")
    for _ in add_partials(context.run, records.values(), context.tiling, origin):
        context.observer.advance(1)
    ledger = [line for record in records.values() for line in record["ledger"]]
    context.run.write_ledger(ledger)
    totals = {name: sum(line[name] for line in ledger) for name in ("samples", "used", "passed_over")}
    context.manifest["dataset"] |= {**totals, "skipped": sum(len(line["skipped"]) for line in ledger)}
    context.manifest["moments_digest"] = str(MomentsStore.open(context.run).group.attrs["digest"])
    context.run.root.remove(f"{WORK}/moments")


def statistics(context: Context) -> None:
    """Finalise mean and covariance in float64 and write both triangles."""
    scale, offset = _affine(context)
    store = MomentsStore.open(context.run)
    group = open_group(context.run.folder(STATISTICS), writable=True)
    write_vector(group, "mean", store.mean(scale, offset))
    shape, tile = (context.plan.size,) * 2, (context.plan.tile,) * 2
    covariance = TileMatrix.create(group, "covariance", shape, tile, context.job.dtype)
    source = store.covariance(scale)
    pairs = list(context.tiling.upper())
    context.observer.stage("statistics", len(pairs), "tiles")
    for i, j in pairs:
        values = source.read(i, j).astype(context.job.dtype)
        covariance.write(i, j, values)
        if i != j:
            covariance.write(j, i, values.T)
        context.observer.advance(1)
    group.attrs.update({"format": 1, "count": store.count, "range": _range(context), "shape": list(context.job.shape)})


def spectrum(context: Context) -> None:
    """Decompose the covariance; eigenvalues in float64, eigenvectors tile by tile."""
    context.observer.stage("spectrum", 1, "matrix")
    scale, _ = _affine(context)
    store = MomentsStore.open(context.run)
    dtype = torch.float64 if context.plan.precision == "float64" else torch.float32
    values, vectors = direct.decompose(store.covariance(scale), dtype, choose_device(context.job.device))
    rank = context.plan.size if context.job.rank == "full" else context.job.rank
    values, vectors = values[:rank].to(torch.float64), vectors[:, :rank]
    direct.settle(values, vectors, store.count)
    group = open_group(context.run.folder(STATISTICS), writable=True)
    tile = context.plan.tile
    target = TileMatrix.create(group, "eigenvectors", (context.plan.size, rank), (tile, tile), context.job.dtype)
    for i, rows in enumerate(target.rows.spans()):
        for j, columns in enumerate(target.columns.spans()):
            target.write(i, j, vectors[rows, columns].numpy().astype(context.job.dtype))
    write_vector(group, "eigenvalues", values.numpy())
    context.observer.advance(1)


def artifacts(context: Context) -> None:
    """Write the four documented files."""
    context.observer.stage("artifacts", 4, "files")
    group = open_group(context.run.folder(STATISTICS))
    vectors = TileMatrix.open(group, "eigenvectors")
    folder = context.run.folder(ARTIFACTS)
    sums = write_artifacts(folder, read_vector(group, "eigenvalues"), vectors, read_vector(group, "mean"))
    context.manifest["artifacts"] = {name: {"sha256": digest} for name, digest in sums.items()}
    context.observer.advance(4)


def certify(context: Context) -> None:
    """Measure the artifacts against the covariance; a breach fails the run."""
    context.observer.stage("certificate", 1, "spectrum")
    slabs, values = artifact_slabs(context.run, context.plan.tile)
    found = certificate.measure(covariance_of(context.run), slabs, values, context.plan.band_bytes)
    context.manifest["certificate"] = found.as_dict()
    if found.breaches():
        context.manifest["state"] = "failed"
        context.run.save(context.manifest)
        raise CertificateError(f"the spectrum of {context.run.url} falls short: {'; '.join(found.breaches())}")
    context.observer.advance(1)


STAGES: Mapping[str, Callable[[Context], int | None]] = {
    "mean": mean_pass,
    "moments": moments,
    "merge": merge,
    "statistics": statistics,
    "spectrum": spectrum,
    "artifacts": artifacts,
    "certificate": certify,
}


def _affine(context: Context) -> tuple[float, float]:
    """Return scale and offset of the value range; float rows are taken as they are."""
    return context.job.affine if context.kind == "uint8" else (1.0, 0.0)


def _range(context: Context) -> str:
    return context.job.range if context.kind == "uint8" else "as stored"


def _read_units(
    context: Context, stage: str, work: Callable[..., dict[str, Any]], origin: Mapping[str, Any] | None
) -> list[dict[str, Any]]:
    """Run the tasks of all units that are not committed yet; return all commit records in order."""
    plan, done = context.plan, context.run.commits(stage)
    _check_unchanged(context, done)
    names = [f"{index:05d}" for index in range(len(plan.units))]
    tasks = [_unit_task(context, stage, name, unit, origin) for name, unit in zip(names, plan.units, strict=True)]
    total = sum(last - first for first, last in plan.units)
    context.observer.stage(stage, total, "shards")
    context.observer.advance(sum(len(record["ledger"]) for record in done.values()))
    done |= dict(_run_tasks(context, [task for task in tasks if task.name not in done], work))
    return [done[name] for name in names]


def _unit_task(
    context: Context, stage: str, name: str, unit: tuple[int, int], origin: Mapping[str, Any] | None
) -> UnitTask:
    job, plan = context.job, context.plan
    return UnitTask(
        run=context.run.root.absolute,
        stage=stage,
        name=name,
        shards=context.shards[slice(*unit)],
        spec=RowSpec.of(job, cast("Any", context.kind)),
        tile=plan.tile,
        block_rows=plan.block_rows,
        threads=plan.decode_threads,
        skip=job.on_error == "skip",
        device=job.device,
        origin=origin,
        options=job.storage_options,
    )


def _run_tasks(
    context: Context, tasks: list[UnitTask], work: Callable[..., dict[str, Any]]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (name, commit record) of each task as it ends; the first error cancels the rest."""
    if isinstance(context.executor, SerialExecutor):
        for task in tasks:  # progress within a unit can be seen from here only where it runs here
            yield task.name, work(task, context.observer.advance)
        return
    futures: dict[Future[dict[str, Any]], UnitTask] = {context.executor.submit(work, task): task for task in tasks}
    try:
        for future in as_completed(futures):
            record = future.result()
            rows = record.get("count") or sum(part["count"] for part in record.get("parts", []))
            context.observer.advance(len(record["ledger"]), rows)
            yield futures[future].name, record
    finally:
        for future in futures:
            with suppress(Exception):
                future.cancel()


def _check_unchanged(context: Context, done: Mapping[str, dict[str, Any]]) -> None:
    """Raise where a shard that has been read is not what it was."""
    now = {shard.url: shard for shard in context.shards}
    for line in (line for record in done.values() for line in record["ledger"]):
        shard = now.get(line["url"])
        if shard is None:
            raise OtherJobError(f"{context.run.url} was begun with {line['url']}, not named now; choose another --out")
        if (shard.size, shard.tag) != (line["size"], line["tag"]):
            raise OtherJobError(
                f"{line['url']} has changed since {context.run.url} read it: {line['size']} bytes, version "
                f"{line['tag']} then, {shard.size} bytes, version {shard.tag} now; choose another --out"
            )


def _check_rows(context: Context, records: list[dict[str, Any]], count: int) -> None:
    """Raise where too many samples were skipped, or too few rows are left."""
    ledger = [line for record in records for line in record["ledger"]]
    skipped = sum(len(line["skipped"]) + (line["error"] is not None) for line in ledger)
    samples = sum(line["samples"] for line in ledger)
    if skipped > context.job.max_skipped * max(1, samples):
        first = next(f"{line['url']}: {why}" for line in ledger for why in _reasons(line))
        raise TooFewRowsError(
            f"{skipped} of {samples} samples were skipped, over --max-skipped {context.job.max_skipped}; first: {first}"
        )
    if count < 2:
        raise TooFewRowsError(f"the covariance needs at least 2 samples and the shards have {count}; add shards")


def _reasons(line: Mapping[str, Any]) -> list[str]:
    return [f"{item['key']}: {item['reason']}" for item in line["skipped"]] + ([line["error"]] if line["error"] else [])
