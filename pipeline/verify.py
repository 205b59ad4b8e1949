"""Measures a finished run again: digest, covariance, checksums, and the artifacts' certificate."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from tilecov.storage.artifacts import TensorFile
from tilecov.storage.runs import ARTIFACTS, STATISTICS, RunFolder
from tilecov.storage.tiles import TileMatrix, open_group, read_vector
from tilecov.storage.tiling import Tiling

from . import certificate
from .export import read_vector_file, transposes_differ
from .grouping import folder_name
from .job import RANGES
from .moments import moments_digest
from .momentstore import MomentsStore
from .vectors import Slabs

Array = npt.NDArray[Any]


class StoredCovariance:
    """The covariance of ``statistics.zarr``, tile by tile."""

    def __init__(self, tiles: TileMatrix) -> None:
        self._tiles = tiles

    @property
    def tiling(self) -> Tiling:
        """How rows and columns are cut."""
        return self._tiles.columns

    def read(self, i: int, j: int) -> Array:
        """Return tile (i, j)."""
        return self._tiles.read(i, j)


def covariance_of(run: RunFolder) -> StoredCovariance:
    """Return the covariance of a run."""
    return StoredCovariance(TileMatrix.open(open_group(run.folder(STATISTICS)), "covariance"))


def artifact_slabs(run: RunFolder, tile: int) -> tuple[Callable[[], Iterator[tuple[slice, Array]]], Array]:
    """Return the slabs of U.pt, anew at each call, and the values of LA.pt."""
    folder = run.folder(ARTIFACTS)
    file = TensorFile.open(folder, "U.pt")
    return lambda: file.rows(tile), read_vector_file(folder, "LA.pt")


def verify(run: RunFolder, budget: int = 1 << 28) -> tuple[dict[str, Any], list[str]]:
    """Measure everything that a run promises.

    Parameters
    ----------
    run : RunFolder
    budget : int
        Bytes that U or bands of it may take for the certificate.

    Returns
    -------
    certificate : dict
        Empty where the run stops after the covariance.
    breaches : list of str
        A line for each promise that is not kept; none for a sound run.

    Raises
    ------
    FileNotFoundError
        Where there is no run, or it is not complete.
    """
    manifest = run.load()
    if manifest is None or "merge" not in manifest["stages"]:
        raise FileNotFoundError(f"no finished run at {run.url}; `tilecov run` makes one")
    breaches = [*_check_moments(run, manifest), *_check_statistics(run, manifest)]
    if manifest["job"]["rank"] == 0:
        return {}, breaches
    breaches += _check_files(run, manifest)
    if any("missing" in breach for breach in breaches):
        return {}, breaches
    slabs, values = artifact_slabs(run, manifest["plan"]["tile"])
    if not manifest["job"].get("covariance", True):
        return _measure_alone(manifest, slabs, values, budget, breaches)
    complete = bool(manifest.get("spectrum", {}).get("complete"))
    found = certificate.certify(certificate.OverTiles(covariance_of(run)), slabs, values, budget, complete=complete)
    return found.as_dict(), breaches + found.breaches()


def _measure_alone(
    manifest: dict[str, Any], slabs: Slabs, values: Array, budget: int, breaches: list[str]
) -> tuple[dict[str, Any], list[str]]:
    """Measure a spectrum whose matrix was never written, as far as it tells by itself.

    Orthogonality is measured again, and the sums of the eigenvalues are compared with those recorded; the residual is
    the one that the run measured against its rows.
    """
    stored, size = manifest["certificate"], manifest["plan"]["size"]
    orthogonality = certificate.orthogonality_of(slabs, size, len(values), budget)
    energy = float(values.sum(dtype=np.float64)) / manifest["trace"] if manifest["trace"] > 0 else 1.0
    if not abs(energy - stored["energy"]) <= certificate.IDENTITY_LIMIT:
        breaches.append(f"energy is {energy:.6f} and was {stored['energy']:.6f} when the run was made")
    found = certificate.Certificate(**{**stored, "orthogonality": orthogonality, "energy": energy})
    return found.as_dict(), breaches + found.breaches()


def _check_moments(run: RunFolder, manifest: dict[str, Any]) -> Iterator[str]:
    for inside, name in (("", "moments_digest"), ("augmented", "augmented_digest")):
        if name in manifest:
            yield from _check_digest(MomentsStore.open(run, inside), "moments.zarr", "run.json", manifest[name])
    for group in _groups(manifest):
        store = MomentsStore.open(run, group)
        yield from _check_digest(store, f"moments.zarr/{group}", "its commit", store.digest)


def _check_digest(store: MomentsStore, name: str, source: str, wanted: str) -> Iterator[str]:
    found = moments_digest(store.tiling, store.count, store.sum, store.gram.read)
    if found != wanted:
        yield f"{name} has digest {found} and {source} says {wanted}"


def _groups(manifest: dict[str, Any]) -> list[str]:
    return [f"groups/{folder_name(label)}" for label in manifest.get("groups", {})]


def _check_statistics(run: RunFolder, manifest: dict[str, Any]) -> Iterator[str]:
    """Compare each mean and covariance with what the moments finalise to, to the last bits of the stored dtype."""
    root = open_group(run.folder(STATISTICS))
    yield from _check_group(root, MomentsStore.open(run, "augmented" if manifest["job"]["augment"] else ""), manifest)
    for name in _groups(manifest):
        store = MomentsStore.open(run, name)
        if store.count > 1:
            yield from _check_group(root[name], store, manifest)


def _check_group(group: Any, store: MomentsStore, manifest: dict[str, Any]) -> Iterator[str]:
    exact = manifest["dataset"]["kind"] == "uint8"
    scale, offset = RANGES[manifest["job"]["range"]] if exact else (1.0, 0.0)
    where = f"{STATISTICS}{group.name}".rstrip("/")
    if not np.allclose(read_vector(group, "mean"), store.mean(scale, offset), rtol=1e-15, atol=1e-15):
        yield f"the mean in {where} is not that of the moments"
    if not manifest["job"].get("covariance", True):
        return
    source, stored = store.covariance(scale), TileMatrix.open(group, "covariance")
    allowed = 4 * np.finfo(stored.dtype).eps
    for i, j in source.tiling.upper():
        tile = source.read(i, j)
        for found, wanted in ((stored.read(i, j), tile), (stored.read(j, i), tile.T)):
            worst = float(np.max(np.abs(found - wanted)))
            if not worst <= allowed * max(1e-300, float(np.max(np.abs(wanted)))):
                yield f"tile ({i}, {j}) of the covariance in {where} differs by {worst:.2e} from that of the moments"


def _check_files(run: RunFolder, manifest: dict[str, Any]) -> Iterator[str]:
    """Compare each artifact with its checksum, Vh with U and mean.pt with the mean."""
    folder = run.folder(ARTIFACTS)
    missing = [name for name in manifest["artifacts"] if not folder.exists(name)]
    yield from (f"{folder.path(name)} is missing" for name in missing)
    if missing:
        return
    files = {name: TensorFile.open(folder, name) for name in manifest["artifacts"]}
    for name, file in files.items():
        if file.checksum() != manifest["artifacts"][name]["sha256"]:
            yield f"{folder.path(name)} has another checksum than when it was written"
    difference = transposes_differ(files["U.pt"], files["Vh.pt"], manifest["plan"]["tile"])
    if not difference <= 1e-6:
        yield f"Vh.pt is not the transpose of U.pt: they differ by {difference:.2e}"
    mean = read_vector(open_group(run.folder(STATISTICS)), "mean")
    if not np.allclose(read_vector_file(folder, "mean.pt"), mean, rtol=1e-6, atol=1e-6):
        yield "mean.pt is not the mean in statistics.zarr"
    yield from _check_spectrum(run, files["U.pt"], read_vector_file(folder, "LA.pt"))


def _check_spectrum(run: RunFolder, u: TensorFile, values: Array) -> Iterator[str]:
    """Compare the eigenvalues and eigenvectors in Zarr with the files made of them, rounding included."""
    group = open_group(run.folder(STATISTICS))
    if not np.array_equal(read_vector(group, "eigenvalues").astype(np.float32), values):
        yield f"the eigenvalues in {STATISTICS} are not those of LA.pt"
    vectors = TileMatrix.open(group, "eigenvectors")
    for i, (rows, slab) in enumerate(u.rows(vectors.rows.tile)):
        if not np.array_equal(vectors.read_band(i).astype(np.float32, copy=False), slab):
            yield f"rows {rows.start} to {rows.stop} of the eigenvectors in {STATISTICS} are not those of U.pt"
