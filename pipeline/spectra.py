"""The stages that decompose the covariance, one set a method; all of them write eigenvalues and eigenvectors."""

import time
from dataclasses import replace
from typing import Any

import torch

from tilecov.storage.runs import STATISTICS
from tilecov.storage.tiles import TileMatrix, open_group, write_vector

from .ahead import side_by_side
from .checkpoints import KrylovState
from .context import Context
from .costs import lapack_bytes
from .covariance import Array
from .device import choose_device
from .errors import DoesNotFitError
from .methods import dual_bytes
from .momentstore import CovarianceTiles
from .sizes import show_size
from .slabs import SPECTRUM, make_slab
from .svd import direct, dual
from .svd.blocked import Blocked
from .svd.direct import SymmetricTiles
from .svd.randomized import leading
from .svd.ranks import Target
from .verify import covariance_of

CHECKPOINT_SECONDS = 60.0
"""Work that a crash may cost in a decomposition, or one step of it where that is longer: checkpoints are large."""


def spectrum(context: Context) -> None:
    """Decompose by a method that needs a single stage."""
    context.observer.stage("spectrum", 1, "matrix")
    {"direct": _direct, "randomized": _randomized, "dual": _dual}[context.plan.method](context)
    context.observer.advance(1)


def _direct(context: Context) -> None:
    matrix = covariance_to_decompose(context)
    values, vectors = direct.decompose(matrix, dtype_in(context), choose_device(context.job.device))
    rank = rank_in(context)
    _keep(context, values[:rank], vectors[:, :rank], {})


def _randomized(context: Context) -> None:
    dtype = dtype_in(context)
    matrix = covariance_to_decompose(context)
    tolerance = context.job.tolerance or (1e-5 if dtype == torch.float32 else 1e-13)
    state = KrylovState(context.run, CHECKPOINT_SECONDS)
    values, vectors, record = leading(
        matrix, target_of(context.job.rank, context.plan.size), tolerance=tolerance, dtype=dtype,
        device=choose_device(context.job.device), budget=context.plan.spectrum_bytes, state=state,
        keep=context.plan.kept_bytes,
    )  # fmt: skip
    _some(context, len(values))
    _keep(context, values.cpu(), vectors.cpu(), record.as_dict())
    context.finishing.afterwards(state.forget)


def _dual(context: Context) -> None:
    rows, device = context.staged_rows(), choose_device(context.job.device)
    _check_rows_fit(context, rows.count)
    found = dual.decompose(dual.gram(rows, device), rows.scale, None if context.job.is_adaptive else rank_in(context))
    if context.job.is_adaptive:
        found = _cut(context, found)
    target = _create(context, len(found.values))
    for i, (_, block) in enumerate(dual.vectors(rows, found, device)):
        for j, columns in enumerate(target.columns.spans()):
            target.write(i, j, block[:, columns].numpy().astype(context.job.dtype))
    context.manifest["trace"] = found.trace
    _finish(context, found.values.numpy(), {"complete": found.complete, "frobenius": found.frobenius})


def _check_rows_fit(context: Context, rows: int) -> None:
    """Raise DoesNotFitError where there turned out to be more rows than memory was kept for."""
    rank = rank_in(context)
    planned = next(stage.memory for stage in context.plan.stages if stage.name == "spectrum")
    estimate = context.manifest["dataset"]["samples_estimated"]
    needed = planned + dual_bytes(rows, context.plan.size, rank) - dual_bytes(estimate, context.plan.size, rank)
    if needed > context.plan.memory:
        raise DoesNotFitError(
            f"there are {rows:,} samples, {estimate:,} were estimated: their gram needs {show_size(needed)} and "
            f"{show_size(context.plan.memory)} are allowed; begin anew with --samples {rows} and more --memory"
        )


def _cut(context: Context, found: dual.Spectrum) -> dual.Spectrum:
    """Return the leading part of a whole spectrum that the job asks for."""
    target = target_of(context.job.rank, context.plan.size)
    wanted = target.wanted(found.values, found.trace, len(found.values), 1e-12)
    rank = _some(context, len(found.values) if wanted is None else wanted)
    return replace(
        found, values=found.values[:rank], coefficients=found.coefficients[:, :rank],
        complete=found.complete and rank == len(found.values),
    )  # fmt: skip


def _some(context: Context, rank: int) -> int:
    """Return the rank; ValueError where nothing is left."""
    if not rank:
        raise ValueError(
            f"no eigenvalue is kept by --rank {context.job.rank}: the mean is the best estimate at that noise; "
            "ask for less noise, or for --rank 1"
        )
    return rank


def target_of(rank: int | str, size: int) -> Target:
    """Return what ``--rank`` asks for of a matrix of ``size`` columns."""
    if isinstance(rank, int) or rank == "full":
        return Target(rank=size if rank == "full" else int(rank))
    kind, _, number = rank.partition("=")
    return Target(energy=float(number)) if kind == "energy" else Target(noise=float(number))


def band(context: Context) -> None:
    """Blocked, first: the covariance to a band."""
    context.observer.stage("band", 1, "matrix")
    last = time.monotonic()

    def due() -> bool:
        return time.monotonic() - last > CHECKPOINT_SECONDS

    def commit(name: str, record: dict[str, Any]) -> None:
        nonlocal last
        context.run.renew("band", name, record)
        last = time.monotonic()

    committed = context.run.commits("band")
    blocked_of(context).reduce(covariance_to_decompose(context), context.plan.spectrum_bytes, commit, committed, due)
    context.observer.advance(1)


def tridiagonal(context: Context) -> None:
    """Blocked, second: the band to a tridiagonal, and that one's decomposition."""
    context.observer.stage("tridiagonal", 1, "matrix")
    if not context.run.commits("tridiagonal"):
        attempt = context.run.fresh("spectrum", "tridiagonal").rpartition("/")[2]
        context.run.commit("tridiagonal", "tree", blocked_of(context).tridiagonalize(attempt))
    context.observer.advance(1)


def vectors(context: Context) -> int:
    """Blocked, last: the eigenvectors, a slab of tile columns a task."""
    record = context.run.commits("tridiagonal")["tree"]
    rank = rank_in(context)
    values = blocked_of(context).values(record)[:rank]
    direct.clear(values, context.final_moments.count)
    _create(context, rank)
    done = context.make_slabs(make_slab, rank)
    _finish(context, values.numpy(), {})
    return max((int(record["peak_memory"]) for record in done), default=0)


def covariance_in(context: Context) -> CovarianceTiles:
    """Return the covariance, finalised from the moments tile by tile."""
    scale, _ = context.affine
    return context.final_moments.covariance(scale)


def covariance_to_decompose(context: Context) -> SymmetricTiles:
    """Return the covariance as the method reads it: in float32 the stored tiles, which are it in float32 already."""
    return covariance_of(context.run) if dtype_in(context) == torch.float32 else covariance_in(context)


def dtype_in(context: Context) -> torch.dtype:
    """Return the precision that the plan chose, or a better one where that fell short."""
    return torch.float64 if context.manifest.get("precision", context.plan.precision) == "float64" else torch.float32


def refine(context: Context) -> bool:
    """Have LAPACK decompose again in float64 what fell short in float32; return whether there is memory to try."""
    if context.plan.method != "direct" or dtype_in(context) == torch.float64:
        return False
    planned = next(stage.memory for stage in context.plan.stages if stage.name == "spectrum")
    if planned + lapack_bytes(context.plan.size, 4) > context.plan.memory:  # a float64 has 4 bytes more
        return False
    context.manifest["precision"] = "float64"
    for name in ("spectrum", "artifacts", "certificate"):
        context.manifest["stages"].pop(name, None)
    context.manifest["state"] = "running"
    context.run.save(context.manifest)  # before anything replaces what was noted as finished
    return True


def rank_in(context: Context) -> int:
    """Return the eigenvectors to keep where the job names them."""
    return context.job.rank if isinstance(context.job.rank, int) else context.plan.size


def blocked_of(context: Context) -> Blocked:
    """Return the blocked decomposition of this run."""
    folder = context.run.folder(SPECTRUM)
    device = choose_device(context.job.device)
    return Blocked(folder, context.plan.size, context.plan.band_width, dtype_in(context), device)


def _keep(context: Context, values: torch.Tensor, vectors: torch.Tensor, record: dict[str, Any]) -> None:
    """Make a spectrum canonical and write it."""
    values = values.to(torch.float64)
    direct.settle(values, vectors, context.final_moments.count)
    target = _create(context, len(values))

    def write(pair: tuple[int, int]) -> None:
        i, j = pair
        target.write(i, j, vectors[target.rows.span(i), target.columns.span(j)].numpy())

    for _ in side_by_side(write, target.pairs()):
        pass
    _finish(context, values.numpy(), record)


def _create(context: Context, rank: int) -> TileMatrix:
    group = open_group(context.run.folder(STATISTICS), writable=True)
    tile = context.plan.tile
    return TileMatrix.create(group, "eigenvectors", (context.plan.size, rank), (tile, tile), context.job.dtype)


def _finish(context: Context, values: Array, record: dict[str, Any]) -> None:
    write_vector(open_group(context.run.folder(STATISTICS), writable=True), "eigenvalues", values)
    context.finishing.flush(STATISTICS)
    precision = str(dtype_in(context)).removeprefix("torch.") if context.plan.method != "dual" else "float64"
    found = {"method": context.plan.method, "precision": precision, "rank": len(values)}
    context.manifest["spectrum"] = {**found, **record}
