"""What is derived from a complete run for other programs: its filter, FID's statistics, whitening, a shrunk filter."""

import hashlib
import io
import json
import math
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt
import torch

from tilecov.storage.artifacts import write_tensor
from tilecov.storage.objects import Folder
from tilecov.storage.retries import retry
from tilecov.storage.runs import ARTIFACTS, MANIFEST, STATISTICS, RunFolder
from tilecov.storage.tiles import TileMatrix, open_group, read_vector

from .job import RANGES
from .momentstore import MomentsStore
from .shrinkage import fourth_about_mean, ledoit_wolf, oas, trace_and_squares
from .verify import covariance_of

Array = npt.NDArray[Any]
Float = npt.NDArray[np.float64]
What = Literal["wiener", "npz", "zca", "shrunk"]
Estimator = Literal["ledoit-wolf", "oas"]

SHRINKAGE = "shrinkage.json"
_BAND_BYTES = 256 << 20
"""Bytes that a band of the whitening matrix and the rows of U it is made of may take, if more than a tile row does."""


@dataclass(frozen=True, slots=True)
class Written:
    """A file that was written.

    Parameters
    ----------
    path : str
    size : int
        Bytes.
    sha256 : str
        Hex.
    """

    path: str
    size: int
    sha256: str


def derive(
    run: RunFolder,
    target: Folder,
    what: What,
    *,
    regularization: float = 0.0,
    estimator: Estimator = "oas",
    device: torch.device | str = "cpu",
) -> Iterator[Written]:
    """Write what is derived from a complete run into ``target``; yield each file when it is there.

    Parameters
    ----------
    run : RunFolder
    target : Folder
        Files of the same names in it are replaced, each all at once.
    what : str
        wiener: U.pt, LA.pt, Vh.pt and mean.pt, copied. npz: statistics.npz. zca: W_zca.pt, W_pca.pt and mean.pt.
        shrunk: the four files of the shrunk covariance, and shrinkage.json.
    regularization : float
        For zca: the fraction of the mean eigenvalue, trace / d, that is added to each eigenvalue.
    estimator : str
        For shrunk: ledoit-wolf or oas.
    device : torch.device or str
        For zca: where its products are computed.

    Raises
    ------
    FileNotFoundError
        Where there is no complete run, or a file of it is missing.
    ValueError
        Where the run has no spectrum, its files are damaged or would be overwritten, its spectrum is too poor for
        zca, or it lacks the sums that the estimator needs.
    """
    source = Source.open(run)
    root, place = (folder.absolute.rstrip("/") + "/" for folder in (run.root, target))
    if place.startswith(root) or target.exists(MANIFEST):
        raise ValueError(f"--to {target.url} lies in the folder of a run, whose files stay as they are; choose another")
    if what == "npz":
        yield _write_npz(source, target)
        return
    if "artifacts" not in source.manifest:
        raise ValueError(
            f"{run.url} was made with --rank 0 and has no spectrum; `tilecov merge {run.url} --rank full --out NEW` "
            "makes one of its moments"
        )
    if what == "zca":
        yield from _whiten(source, target, regularization, torch.device(device))
    elif what == "shrunk":
        yield from _shrink(source, target, estimator)
    else:
        target.remove(SHRINKAGE)  # of a shrunk filter that was in this folder before
        for name in source.manifest["artifacts"]:
            yield _copy(source, target, name)


def tail_of(folder: Folder, values: npt.NDArray[np.floating[Any]], size: int) -> float:
    """Return the mean of the eigenvalues that were cut, as the folder of a run or of a shrunk filter tells it.

    Parameters
    ----------
    folder : Folder
    values : array
        (k,), the eigenvalues kept.
    size : int
        d.

    Raises
    ------
    ValueError
        Where k < d and the folder is neither.
    """
    if len(values) == size:
        return 0.0
    if folder.exists(SHRINKAGE):
        return float(json.loads(folder.read(SHRINKAGE))["tail"])
    if not folder.exists(MANIFEST):
        raise ValueError(
            f"{folder.url} holds {len(values)} of {size} components and not the trace of all; load the folder of the "
            "run, or give the variance of the others: WienerFilter(*load_wiener_filter(path), tail=variance)"
        )
    return _mean_cut(trace_of(RunFolder(folder)), values, size)


def trace_of(run: RunFolder) -> float:
    """Return the trace of a run's covariance: from its manifest, or from the diagonal tiles where that has none."""
    manifest = run.load() or {}
    if "trace" in manifest:
        return float(manifest["trace"])
    matrix = covariance_of(run)
    return math.fsum(float(np.trace(matrix.read(i, i), dtype=np.float64)) for i in range(len(matrix.tiling)))


def _mean_cut(trace: float, values: npt.NDArray[np.floating[Any]], size: int) -> float:
    """Return the mean of the d - k eigenvalues that are not in ``values``; rounding may take it below 0."""
    return max(0.0, (trace - float(values.sum(dtype=np.float64))) / (size - len(values)))


@dataclass(frozen=True)
class Source:
    """A complete run.

    Parameters
    ----------
    run : RunFolder
    manifest : dict
    """

    run: RunFolder
    manifest: dict[str, Any]

    @classmethod
    def open(cls, run: RunFolder) -> "Source":
        """Open a run; FileNotFoundError where there is none, or it is not complete."""
        manifest = run.load()
        if manifest is None or manifest["state"] != "complete":
            state = "no run" if manifest is None else f"a run that is {manifest['state']}, not complete,"
            raise FileNotFoundError(
                f"{state} at {run.url}; `tilecov run` makes one, the same command again completes one"
            )
        return cls(run, manifest)

    @cached_property
    def moments(self) -> MomentsStore:
        """The moments that the statistics were made of."""
        return MomentsStore.open(self.run, "augmented" if self.manifest["job"]["augment"] else "")

    @property
    def affine(self) -> tuple[float, float]:
        """Scale and offset of the value range."""
        exact = self.manifest["dataset"]["kind"] == "uint8"
        return RANGES[self.manifest["job"]["range"]] if exact else (1.0, 0.0)

    def spectrum(self) -> tuple[Float, TileMatrix]:
        """Return LA (k,) in float64 and the tiles of U (d, k)."""
        group = open_group(self.run.folder(STATISTICS))
        return read_vector(group, "eigenvalues"), TileMatrix.open(group, "eigenvectors")


class _Hashed(io.RawIOBase):
    """Passes bytes on and keeps their SHA-256; it cannot seek, so a zip is written straight through."""

    def __init__(self, sink: BinaryIO) -> None:
        self._sink, self.digest = sink, hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.digest.update(data)
        self._sink.write(data)
        return len(memoryview(data).cast("B"))


def _written(target: Folder, name: str, sha256: str) -> Written:
    return Written(target.path(name), int(retry(lambda: target.fs.info(target.path(name)))["size"]), sha256)


def _copy(source: Source, target: Folder, name: str) -> Written:
    """Copy an artifact; ValueError, and no file, where it has another checksum than when it was written."""
    folder, wanted = source.run.folder(ARTIFACTS), source.manifest["artifacts"][name]["sha256"]
    remedy = f"`tilecov merge {source.run.url} --out NEW` makes it anew of the moments"
    if not folder.exists(name):
        raise FileNotFoundError(f"{folder.path(name)} is missing; {remedy}")
    with folder.open(name) as stream, target.writing(name) as raw:
        sink = _Hashed(raw)
        shutil.copyfileobj(stream, sink, 1 << 20)
        if (found := sink.digest.hexdigest()) != wanted:
            raise ValueError(f"{folder.path(name)} has checksum {found} and run.json says {wanted}; {remedy}")
    return _written(target, name, wanted)


def _write_npz(source: Source, target: Folder) -> Written:
    """Write mu (d,) and sigma (d, d), float64, from the exact moments: what FID tools read.

    A tile row of sigma is in memory at a time. np.savez would need the whole of it.
    """
    store, (scale, offset) = source.moments, source.affine
    tiles, tiling = store.covariance(scale), store.tiling
    name, size = "statistics.npz", tiling.size
    with target.writing(name) as raw:
        sink = _Hashed(raw)
        with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
            _write_member(archive, "mu.npy", (size,), [store.mean(scale, offset)])
            bands = (np.concatenate([tiles.read(i, j) for j in range(len(tiling))], axis=1) for i in range(len(tiling)))
            _write_member(archive, "sigma.npy", (size, size), bands)
    return _written(target, name, sink.digest.hexdigest())


def _write_member(archive: zipfile.ZipFile, name: str, shape: tuple[int, ...], slabs: Any) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": shape})
    # A fixed time, so that equal statistics make equal files.
    with archive.open(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), "w", force_zip64=True) as member:
        member.write(header.getvalue())
        for slab in slabs:
            member.write(np.ascontiguousarray(slab, "<f8").data.cast("B"))


def _whiten(source: Source, target: Folder, regularization: float, device: torch.device) -> Iterator[Written]:
    """Write ``W_zca = U diag(w) U^T`` (d, d), ``W_pca = diag(w) U^T`` (k, d), ``w = 1 / sqrt(LA + eps)``, and the mean.

    With k < d both leave out what is outside the k components. See Bell and Sejnowski, "The 'independent components' of
    natural scenes are edge filters" (1997), for zero-phase whitening.
    """
    values, vectors = source.spectrum()
    weights = 1 / np.sqrt(values + _epsilon(source, values, regularization))
    size, rank = vectors.shape
    written = write_tensor(target, "W_zca.pt", (size, size), _zca_bands(vectors, np.sqrt(weights), device))
    yield _written(target, "W_zca.pt", written)
    written = write_tensor(target, "W_pca.pt", (rank, size), _pca_bands(vectors, weights))
    yield _written(target, "W_pca.pt", written)
    yield _copy(source, target, "mean.pt")


def _epsilon(source: Source, values: Float, regularization: float) -> float:
    """Return what is added to the eigenvalues; ValueError where the least would still not be told from 0.

    The certificate's ``eigenvalue_error`` is the norm of all k residuals; no eigenvalue is known better than to the
    norm of its own, which is the ``sqrt(k)``-th part of that in the mean.
    """
    if not 0 <= regularization < math.inf:
        raise ValueError(f"--regularization is a finite fraction of at least 0, not {regularization}")
    largest, smallest, mean = float(values[0]), float(values[-1]), trace_of(source.run) / source.moments.tiling.size
    if not largest > 0:
        raise ValueError(f"the largest eigenvalue of {source.run.url} is {largest}: no value varies, none is to whiten")
    error = source.manifest["certificate"]["eigenvalue_error"] / math.sqrt(len(values))
    least = max(error, float(np.finfo(np.float64).eps)) * largest
    if smallest + regularization * mean > least:
        return regularization * mean
    enough, above = 10.0 ** (math.floor(math.log10(least / mean)) + 1), int((values > least).sum())
    raise ValueError(
        f"{len(values) - above} of {len(values)} eigenvalues of {source.run.url} cannot be told from 0: they go from "
        f"{largest:.3g} to {smallest:.3g} and are known to {least:.2g}. --regularization {enough:.0e} adds that "
        f"part of their mean, {mean:.3g}, to each; a new run with --rank {above} leaves them out"
    )


def _zca_bands(vectors: TileMatrix, halves: Float, device: torch.device) -> Iterator[npt.NDArray[np.float32]]:
    """Yield bands of rows of ``V V^T``, V = U diag(halves)."""
    tiling = vectors.rows

    def read(i: int) -> torch.Tensor:
        return torch.from_numpy((vectors.read_band(i) * halves).astype(vectors.dtype, copy=False)).to(device)

    row = vectors.dtype.itemsize * vectors.shape[1] + 4 * tiling.size
    step = max(1, _BAND_BYTES // (row * tiling.tile))
    for first in range(0, len(tiling), step):
        left = torch.cat([read(i) for i in range(first, min(first + step, len(tiling)))])
        band = np.empty((len(left), tiling.size), np.float32)
        for j, columns in enumerate(tiling.spans()):
            band[:, columns] = (left @ read(j).T).cpu().numpy()
        yield band


def _pca_bands(vectors: TileMatrix, weights: Float) -> Iterator[npt.NDArray[np.float32]]:
    """Yield bands of rows of ``diag(weights) U^T``."""
    for j, columns in enumerate(vectors.columns.spans()):
        band = np.empty((columns.stop - columns.start, vectors.shape[0]), np.float32)
        for i, rows in enumerate(vectors.rows.spans()):
            band[:, rows] = vectors.read(i, j).T * weights[columns, None]
        yield band


def _shrink(source: Source, target: Folder, estimator: Estimator) -> Iterator[Written]:
    """Write the filter of ``(1 - s) S + s mu I``, S the covariance divided by N, mu = trace(S) / d.

    U and Vh are those of the run, ``LA' = (1 - s) LA + s mu``. With k < d the other components have, in the mean, the
    variance ``tail = (1 - s) t + s mu``, t the mean of the cut eigenvalues: shrinkage.json holds it, and
    ``WienerFilter.load(DIR, tail="isotropic")`` reads it. With symmetries (``--augment``) N counts their rows too.
    """
    store, (scale, _) = source.moments, source.affine
    count, size = store.count, store.tiling.size
    trace, squares = trace_and_squares(store.covariance(scale))
    if estimator == "oas":
        coefficient = oas(count, size, trace, squares)
    else:
        coefficient = ledoit_wolf(count, size, trace, squares, _fourth(source) * scale**4)
    values, _ = source.spectrum()
    biased = (count - 1) / count
    mu = trace * biased / size
    shrunk = (1 - coefficient) * biased * values + coefficient * mu
    rest = None
    if len(values) < size:
        rest = (1 - coefficient) * biased * _mean_cut(trace, values, size) + coefficient * mu
    facts = {"estimator": estimator, "coefficient": coefficient, "mu": mu, "count": count, "tail": rest}
    target.remove(SHRINKAGE)  # it comes last, so that it never speaks of another filter
    yield _copy(source, target, "U.pt")
    yield _written(target, "LA.pt", write_tensor(target, "LA.pt", values.shape, [shrunk.astype(np.float32)]))
    yield _copy(source, target, "Vh.pt")
    yield _copy(source, target, "mean.pt")
    text = (json.dumps(facts, indent=2) + "\n").encode()
    target.write(SHRINKAGE, text)
    yield _written(target, SHRINKAGE, hashlib.sha256(text).hexdigest())


def _fourth(source: Source) -> float:
    """Return ``sum ||x - mean||^4`` of the rows before they were scaled."""
    store = source.moments
    norms = store.norms
    if norms is None:
        raise ValueError(
            f"{source.run.url} has no sums of norms (fourth, third), which ledoit-wolf needs: float rows and older "
            "runs have none; --estimator oas needs none, and a new run of the same uint8 shards has them"
        )
    return fourth_about_mean(store.tiling, store.count, store.sum, store.gram.read, norms.fourth, norms.third)
