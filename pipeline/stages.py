"""The stages of a run, in the order of the plan. Each is safe to repeat."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import zarr

from tilecov.storage.partials import DamagedTileError, Partial
from tilecov.storage.runs import ARTIFACTS, MOMENTS, STATISTICS, WORK
from tilecov.storage.tiles import TileMatrix, open_group, read_vector, write_vector

from . import certificate, spectra
from .ahead import side_by_side
from .context import Context, Record
from .errors import CertificateError, TooFewRowsError
from .export import write_artifacts
from .grouping import folder_name
from .momentstore import (
    CovarianceTiles,
    MomentsStore,
    Source,
    add_up,
    create_gram,
    dtype_of,
    finish,
    parts_of,
    total_norms,
)
from .norms import Norms
from .symmetry import add_symmetries
from .tasks import read_unit, stage_unit, sum_tiles, sum_unit
from .verify import artifact_slabs, covariance_of


def mean_pass(context: Context) -> int:
    """Float rows, first pass: count and sum in float64; their mean becomes the origin."""
    records = context.read_units("mean", sum_unit, with_origin=False)
    _check_rows(context, records, sum(record["count"] for record in records))
    _commit_origin(context, records)
    return _peak(records)


def moments(context: Context) -> int:
    """Resident: read every unit once and commit its partial."""
    records = context.read_units("moments", read_unit)
    _check_rows(context, records, sum(part["count"] for record in records for part in record["parts"]))
    return _peak(records)


def rows(context: Context) -> int:
    """Staged: decode every unit once into staged rows."""
    records = context.read_units("rows", stage_unit, with_origin=False)
    _check_rows(context, records, sum(record["count"] for record in records))
    if context.kind != "uint8" and not context.manifest["sources"]:
        _commit_origin(context, records)
    return _peak(records)


def tiles(context: Context) -> int:
    """Staged: sum each group of tiles over the columns that it needs."""
    group = open_group(context.run.folder(MOMENTS), writable=True)
    create_gram(group, context.tiling, context.origin)
    for source in context.sources():  # tasks read single tiles of it, so its digest is checked here, once
        for i, j in context.tiling.upper():
            source.read(i, j)
        source.check()
    records = context.sum_tile_groups(sum_tiles)
    context.run.folder(MOMENTS).sync()
    return _peak(records)


def merge(context: Context) -> None:
    """Add everything up into finished moments, and write the ledger."""
    if context.plan.strategy == "staged":
        _finish_staged(context)
    else:
        _add_parts(context)
    context.finishing.flush(MOMENTS)
    _write_ledger(context)
    if not context.job.keep_rows and context.plan.method != "dual":
        context.finishing.afterwards(partial(context.run.root.remove, f"{WORK}/rows"))
    context.finishing.afterwards(partial(context.run.root.remove, f"{WORK}/moments"))


def _finish_staged(context: Context) -> None:
    records = context.committed_units("rows")
    raw = np.sum([Partial(context.run.folder(record["prefix"])).read(record["sum"]) for record in records], axis=0)
    rows = sum(record["count"] for record in records)
    sums = [raw - rows * context.origin, *(source.sum() for source in context.sources())]
    hashes = {
        (int(a), int(b)): bytes.fromhex(found)
        for record in context.run.commits("tiles").values()
        for (a, b), found in ((name.split("-"), found) for name, found in record["hashes"].items())
    }
    lost = [pair for pair in context.tiling.upper() if pair not in hashes]
    if context.job.covariance and lost:
        raise DamagedTileError(f"the commits of {len(lost)} upper tiles are missing, first that of {lost[0]}")
    group = open_group(context.run.folder(MOMENTS), writable=True)
    total = np.sum(sums, axis=0).astype(dtype_of(context.origin))
    found = hashes if context.job.covariance else None
    finish(group, rows + context.taken_over, total, context.origin, found, _staged_norms(context, records))
    context.note_digest("")


def _staged_norms(context: Context, records: list[Record]) -> Norms | None:
    """Return the sums of norms of staged rows and of the runs taken over; None for float rows."""
    if context.kind != "uint8":
        return None
    before = total_norms(context.sources(), context.tiling.size)
    own = (Norms.read(Partial(context.run.folder(record["prefix"])), record["norms"]) for record in records)
    return None if before is None else sum(own, before)


def _add_parts(context: Context) -> None:
    parts = parts_of(context.run, context.committed_units("moments"))
    everything: list[Source] = [*context.sources(), *(part for found in parts.values() for part in found)]
    targets = {"": everything}
    if context.job.group_by:
        targets |= {f"groups/{folder_name(label)}": found for label, found in sorted(parts.items())}
    pairs = list(context.tiling.upper())
    context.observer.stage("merge", len(pairs) * len(targets), "tiles")
    root = open_group(context.run.folder(MOMENTS), writable=True)
    for name, sources in targets.items():
        group = root.require_group(name) if name else root
        for _ in add_up(group, sources, context.tiling, context.origin):
            context.observer.advance(1)
    context.manifest["groups"] = {label: sum(part.count for part in found) for label, found in sorted(parts.items())}
    if not context.job.group_by:
        del context.manifest["groups"]
    context.note_digest("")


def _write_ledger(context: Context) -> None:
    ledger = context.ledger()
    context.run.write_ledger(ledger)
    totals = {name: sum(line[name] for line in ledger) for name in ("samples", "used", "passed_over")}
    context.manifest["dataset"] |= {**totals, "skipped": sum(len(line["skipped"]) for line in ledger)}


def augment(context: Context) -> None:
    """Add the symmetries of the images to their moments, by permuting tiles."""
    root = open_group(context.run.folder(MOMENTS), writable=True)
    steps = add_symmetries(root, str(context.job.augment), context.job.shape)
    context.observer.stage("augment", len(steps), "symmetries")
    for step in steps:
        step()
        context.observer.advance(1)
    context.finishing.flush(MOMENTS)
    context.note_digest("augmented")


def statistics(context: Context) -> None:
    """Finalise mean and covariance in float64 and write both triangles, of each group too."""
    names = [f"groups/{folder_name(label)}" for label in context.manifest.get("groups", {})]
    pairs = len(list(context.tiling.upper())) if context.job.covariance else 0
    context.observer.stage("statistics", pairs * (1 + len(names)), "tiles")
    _finalise(context, context.final_moments, "")
    for name in names:
        store = MomentsStore.open(context.run, name)
        if store.count > 1:  # the covariance of a single row is undefined; its moments are there
            _finalise(context, store, name)
    context.finishing.flush(STATISTICS)


def _finalise(context: Context, store: MomentsStore, name: str) -> None:
    scale, offset = context.affine
    root = open_group(context.run.folder(STATISTICS), writable=True)
    group = root.require_group(name) if name else root
    write_vector(group, "mean", store.mean(scale, offset))
    if context.job.covariance:
        trace = _write_covariance(context, group, store.covariance(scale))
        if not name:
            context.manifest["trace"] = trace
    group.attrs.update({"format": 1, "count": store.count, "range": context.range, "shape": list(context.job.shape)})


def _write_covariance(context: Context, group: zarr.Group, source: CovarianceTiles) -> float:
    """Write both triangles; return the trace."""
    shape, tile = (context.plan.size,) * 2, (context.plan.tile,) * 2
    covariance = TileMatrix.create(group, "covariance", shape, tile, context.job.dtype)

    def write(pair: tuple[int, int]) -> float:
        (i, j), values = pair, source.read(*pair, context.job.dtype)
        covariance.write(i, j, values)
        if i != j:
            covariance.write(j, i, values.T)
        return float(np.trace(values, dtype=np.float64)) if i == j else 0.0

    trace = 0.0
    for part in side_by_side(write, context.tiling.upper()):
        trace += part
        context.observer.advance(1)
    return trace


def artifacts(context: Context) -> None:
    """Write the four documented files."""
    context.observer.stage("artifacts", 4, "files")
    group = open_group(context.run.folder(STATISTICS))
    vectors = TileMatrix.open(group, "eigenvectors")
    folder = context.run.folder(ARTIFACTS)
    mean = read_vector(group, "mean")
    sums = write_artifacts(folder, read_vector(group, "eigenvalues"), vectors, mean, flush=False)
    context.finishing.flush(ARTIFACTS)
    context.manifest["artifacts"] = {name: {"sha256": digest} for name, digest in sums.items()}
    context.observer.advance(4)


def certify(context: Context) -> None:
    """Measure the artifacts against the covariance; a breach fails the run."""
    context.observer.stage("certificate", 1, "spectrum")
    slabs, values = artifact_slabs(context.run, context.plan.tile)
    spectrum = context.manifest["spectrum"]
    source: certificate.Source = (
        certificate.OverTiles(covariance_of(context.run))
        if context.job.covariance
        else certificate.OverRows(context.staged_rows(), context.manifest["trace"], spectrum["frobenius"])
    )
    complete = bool(spectrum.get("complete"))
    found = certificate.certify(source, slabs, values, context.plan.band_bytes, complete=complete)
    context.manifest["certificate"] = found.as_dict()
    if found.breaches():
        context.manifest["state"] = "failed"
        context.finishing.wait()
        context.run.save(context.manifest)
        raise CertificateError(f"the spectrum of {context.run.url} falls short: {'; '.join(found.breaches())}")
    context.observer.advance(1)


STAGES: Mapping[str, Callable[[Context], int | None]] = {
    "mean": mean_pass,
    "moments": moments,
    "rows": rows,
    "tiles": tiles,
    "merge": merge,
    "augment": augment,
    "statistics": statistics,
    "spectrum": spectra.spectrum,
    "band": spectra.band,
    "tridiagonal": spectra.tridiagonal,
    "vectors": spectra.vectors,
    "artifacts": artifacts,
    "certificate": certify,
}


def repair(context: Context, stage: str, error: DamagedTileError) -> bool:
    """Forget what was damaged, so that the stages before ``stage`` make it anew; return whether that can help.

    Partials and staged rows that were lost, by a power cut or a hand, are read again from the shards.
    """
    without_covariance = {"spectrum", "certificate"} if not context.job.covariance else set()
    if stage not in {"merge", "tiles"} | without_covariance:
        return False
    context.observer.note(f"{error}; its unit is read again")
    again = "rows" if context.plan.strategy == "staged" else "moments", "tiles"
    names = [planned.name for planned in context.plan.stages]
    for name in names[names.index(again[0]) :]:
        context.manifest["stages"].pop(name, None)
    context.manifest["repaired"] = True
    context.finishing.wait()  # else what it still notes would replace this
    context.run.save(context.manifest)  # before anything goes that it says is there
    for name in again:
        context.run.forget(name)
    return True


def _commit_origin(context: Context, records: list[Record]) -> None:
    """Keep the mean of the first pass, about which the second sums."""
    total = np.sum([Partial(context.run.folder(record["prefix"])).read(record["sum"]) for record in records], axis=0)
    prefix = context.run.fresh("mean", "origin")
    count = sum(record["count"] for record in records)
    record = Partial(context.run.folder(prefix)).write("mean", total / count)
    context.run.commit("origin", "mean", {"prefix": prefix, "mean": record})


def _peak(records: list[Record]) -> int:
    return max((int(record["peak_memory"]) for record in records), default=0)


def _check_rows(context: Context, records: list[Record], count: int) -> None:
    """Raise where too many samples were skipped, or too few rows are left."""
    ledger = [line for record in records for line in record["ledger"]]
    skipped = sum(len(line["skipped"]) + (line["error"] is not None) for line in ledger)
    samples = sum(line["samples"] for line in ledger)
    if skipped > context.job.max_skipped * max(1, samples):
        first = next(f"{line['url']}: {why}" for line in ledger for why in _reasons(line))
        raise TooFewRowsError(
            f"{skipped} of {samples} samples were skipped, over --max-skipped {context.job.max_skipped}; first: {first}"
        )
    count += context.taken_over
    if count < 2:
        raise TooFewRowsError(f"the covariance needs at least 2 samples and the shards have {count}; add shards")


def _reasons(line: Mapping[str, Any]) -> list[str]:
    return [f"{item['key']}: {item['reason']}" for item in line["skipped"]] + ([line["error"]] if line["error"] else [])
