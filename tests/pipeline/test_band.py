"""Full to band: A = Q B Q.T in float32 and float64, for awkward sizes and matrices, any budget, and after kills."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from tilecov.pipeline import blas
from tilecov.pipeline.errors import DoesNotFitError
from tilecov.pipeline.openblas import OpenBlas
from tilecov.pipeline.svd import band, tilecache
from tilecov.pipeline.svd.band import COMMIT, least_bytes, read_band, reduce_to_band, working_tiling
from tilecov.pipeline.svd.panels import Panels, factor, panel_count
from tilecov.storage.objects import Folder
from tilecov.storage.partials import DamagedTileError
from tilecov.storage.tiling import Tiling

pytestmark = pytest.mark.usefixtures("one_thread")

Matrix = npt.NDArray[np.float64]
CPU = torch.device("cpu")
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-14}
PLENTY = 1 << 30


class Counted:
    """A symmetric matrix in memory that counts how often each tile is read."""

    def __init__(self, whole: Matrix, tile: int) -> None:
        self.whole = whole
        self.tiling = Tiling(len(whole), tile)
        self.reads: dict[tuple[int, int], int] = {}

    def read(self, i: int, j: int) -> Matrix:
        self.reads[i, j] = self.reads.get((i, j), 0) + 1
        return self.whole[self.tiling.span(i), self.tiling.span(j)]


class Killed(BaseException):
    """Stands for kill -9: nothing catches it."""


def covariance(size: int, seed: int = 0) -> Matrix:
    rows = np.random.default_rng(seed).standard_normal((size + 3, size)) / np.sqrt(1 + np.arange(size))
    return np.asarray(rows.T @ rows)


def reduce(
    matrix: Counted,
    folder: Path | Folder,
    width: int,
    dtype: torch.dtype = torch.float64,
    *,
    budget: int = PLENTY,
    commit: Callable[[str, dict[str, Any]], None] = lambda name, record: None,
    committed: Mapping[str, Mapping[str, Any]] | None = None,
    due: Callable[[], bool] = lambda: False,
) -> Folder:
    scratch = folder if isinstance(folder, Folder) else Folder(str(folder))
    reduce_to_band(
        matrix,
        scratch,
        width=width,
        dtype=dtype,
        device=CPU,
        budget=budget,
        commit=commit,
        committed=committed or {},
        due=due,
    )
    return scratch


def dense(stored: Matrix) -> Matrix:
    """Return the symmetric matrix of a lower band."""
    size = stored.shape[1]
    whole = np.zeros((size, size))
    for k in range(min(len(stored), size)):
        at = np.arange(size - k)
        whole[at + k, at] = whole[at, at + k] = stored[k, : size - k]
    return whole


def orthogonal(scratch: Folder, size: int, dtype: torch.dtype) -> Matrix:
    Q = torch.eye(size, dtype=dtype)
    Panels.open(scratch).apply(Q)
    return Q.double().numpy()


def bits(scratch: Folder, size: int, dtype: torch.dtype) -> bytes:
    return read_band(scratch).tobytes() + orthogonal(scratch, size, dtype).tobytes()


def check(whole: Matrix, scratch: Folder, dtype: torch.dtype) -> None:
    size = len(whole)
    stored, Q = read_band(scratch), orthogonal(scratch, size, dtype)
    scale = np.abs(whole).max() or 1.0
    A, B = whole / scale, dense(stored) / scale
    assert np.linalg.norm(A - Q @ B @ Q.T) <= TOLERANCE[dtype] * np.linalg.norm(A)
    assert np.linalg.norm(Q.T @ Q - np.eye(size)) <= TOLERANCE[dtype] * np.sqrt(size)
    expected, found = np.linalg.eigvalsh(A), np.linalg.eigvalsh(B)
    assert np.abs(expected - found).max() <= TOLERANCE[dtype] * max(np.abs(expected).max(), 1e-300)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", [1, 4, 7])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 6, 7, 8, 9, 27, 28, 29])
def test_any_size_and_width(tmp_path: Path, size: int, width: int, dtype: torch.dtype) -> None:
    whole = covariance(size)
    check(whole, reduce(Counted(whole, max(1, size // 2)), tmp_path, width, dtype), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("size", "tile"), [(63, 63), (64, 25), (65, 32), (100, 33), (100, 1000)])
def test_several_tiles_however_the_matrix_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, tile: int, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(band, "working_tiling", lambda size, width: Tiling(size, 4 * width))
    whole = covariance(size)
    matrix = Counted(whole, tile)
    check(whole, reduce(matrix, tmp_path, 8, dtype, budget=least_bytes(size, 8, dtype)), dtype)
    assert set(matrix.reads) == set(matrix.tiling.upper())
    assert set(matrix.reads.values()) == {1}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("is_there", [True, False])
@pytest.mark.parametrize(("size", "width"), [(530, 64), (300, 7), (610, 300)])  # 8 by fours, 42 by 36, 2 one by one
def test_panels_are_applied_by_whichever_library_is_quicker(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    openblas: OpenBlas,
    size: int,
    width: int,
    is_there: bool,
    dtype: torch.dtype,
) -> None:
    monkeypatch.setattr(blas, "quicker", lambda: openblas if is_there else None)
    whole = covariance(size)
    scratch = reduce(Counted(whole, 256), tmp_path, width, dtype)
    check(whole, scratch, dtype)
    one = torch.eye(size, dtype=dtype)[:, 7:8].contiguous()
    Panels.open(scratch).apply(one)
    assert np.allclose(one.double().numpy(), orthogonal(scratch, size, dtype)[:, 7:8], atol=TOLERANCE[dtype])


def projector(size: int) -> Matrix:
    basis = np.linalg.qr(np.random.default_rng(1).standard_normal((size, size)))[0][:, : size // 2]
    return np.asarray(basis @ basis.T)


def rank(size: int, count: int) -> Matrix:
    rows = np.random.default_rng(2).standard_normal((count, size))
    return np.asarray(rows.T @ rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "whole",
    [
        np.zeros((30, 30)),
        np.eye(30),
        -np.eye(30),
        np.diag(np.arange(30.0)),
        np.diag(np.arange(29.0), 1) + np.diag(np.arange(29.0), -1),
        np.ones((30, 30)),
        projector(30),
        rank(30, 1),
        rank(30, 6),
        covariance(30) * 1e-30,
        covariance(30) * 1e30,
        np.pad(covariance(10), (20, 0)),
        np.pad(covariance(10), (0, 20)),
    ],
)
def test_degenerate_matrices(tmp_path: Path, whole: Matrix, dtype: torch.dtype) -> None:
    check(whole, reduce(Counted(whole, 30), tmp_path, 4, dtype), dtype)


def test_a_band_stays_what_it_is(tmp_path: Path) -> None:
    whole = covariance(6)
    scratch = reduce(Counted(whole, 6), tmp_path, 5)
    assert len(Panels.open(scratch)) == 0
    assert np.array_equal(dense(read_band(scratch)), whole)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_same_bits_for_any_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, threads: int
) -> None:
    torch.set_num_threads(threads)
    monkeypatch.setattr(band, "working_tiling", lambda size, width: Tiling(size, 2 * width))
    whole, found = covariance(100), set()
    least = least_bytes(100, 16, dtype)
    for more in (0, 10_000, 40_000, PLENTY):
        scratch = reduce(Counted(whole, 50), tmp_path / str(more), 16, dtype, budget=least + more)
        found.add(bits(scratch, 100, dtype))
    assert len(found) == 1


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("more", [0, 20_000, PLENTY])
def test_same_bits_after_kills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: int, threads: int) -> None:
    torch.set_num_threads(threads)
    monkeypatch.setattr(band, "working_tiling", lambda size, width: Tiling(size, 2 * width))
    size, width, dtype = 66, 8, torch.float32
    whole, budget = covariance(size), least_bytes(size, width, dtype) + more
    once = reduce(Counted(whole, 33), tmp_path / "once", width, dtype, budget=budget)
    check(whole, once, dtype)
    committed: dict[str, dict[str, Any]] = {}
    step = tilecache.TileCache.sweep
    kills, again = 0, Folder(str(tmp_path / "again"))
    for _ in range(50):
        passes = 0

        def killed(part: Any) -> Any:  # in the middle of a pass, tiles already changed
            yield next(part)
            yield next(part)
            raise Killed

        def sweep(*args: Any, **options: Any) -> Any:
            nonlocal passes
            passes += 1
            parts = step(*args, **options)
            return [killed(parts[0]), *parts[1:]] if passes == 3 else parts

        monkeypatch.setattr(tilecache.TileCache, "sweep", sweep)
        matrix = Counted(whole, 33)
        try:
            reduce(
                matrix,
                again,
                width,
                dtype,
                budget=budget,
                commit=committed.__setitem__,
                committed=dict(committed),
                due=lambda: True,
            )
            break
        except Killed:
            kills += 1
        assert committed[COMMIT]["blocks"] == 2 * kills
    assert kills >= 2
    assert not matrix.reads  # the last runs went on from a checkpoint
    assert bits(again, size, dtype) == bits(once, size, dtype)
    assert not [name for name in again.names() if name.startswith("generation")]


def test_killed_while_a_generation_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(band, "working_tiling", lambda size, width: Tiling(size, 2 * width))
    whole, committed = covariance(60), {}
    once = reduce(Counted(whole, 60), tmp_path / "once", 8)
    again = tmp_path / "again"

    def commit(name: str, record: dict[str, Any]) -> None:
        if not before:
            committed[name] = record
        raise Killed

    for times in range(4):
        before = times % 2 == 1  # else right after the record is there
        with pytest.raises(Killed):
            reduce(Counted(whole, 60), again, 8, commit=commit, committed=dict(committed), due=lambda: True)
    scratch = reduce(Counted(whole, 60), again, 8, committed=committed)
    assert bits(scratch, 60, torch.float64) == bits(once, 60, torch.float64)


def test_what_is_complete_is_not_made_again(tmp_path: Path) -> None:
    committed: dict[str, dict[str, Any]] = {}
    whole = covariance(30)
    reduce(Counted(whole, 30), tmp_path, 4, commit=committed.__setitem__)
    matrix = Counted(whole, 30)
    reduce(matrix, tmp_path, 4, committed=committed, commit=lambda name, record: pytest.fail("committed again"))
    assert not matrix.reads


@pytest.mark.parametrize("threads", [1, 2])
def test_a_thread_that_fails_is_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    torch.set_num_threads(threads)
    monkeypatch.setattr(band, "working_tiling", lambda size, width: Tiling(size, 2 * width))

    def full(*_: Any) -> None:
        raise OSError("no space left")

    fill = tilecache.TileCache.fill

    def filled(cache: tilecache.TileCache, *args: Any) -> None:
        fill(cache, *args)
        monkeypatch.setattr(tilecache.TileCache, "_write", full)

    monkeypatch.setattr(tilecache.TileCache, "fill", filled)
    monkeypatch.setattr(tilecache.TileCache, "_longest_lived", lambda *_: set())
    with pytest.raises(OSError, match="no space left"):
        reduce(Counted(covariance(60), 60), tmp_path, 4)
    assert torch.get_num_threads() == threads


def test_on_an_object_store() -> None:
    whole, scratch = covariance(40), Folder("memory://test-band")
    check(whole, reduce(Counted(whole, 20), scratch, 8, due=lambda: True), torch.float64)
    scratch.remove()


def test_refuses_a_budget_that_is_too_small(tmp_path: Path) -> None:
    least = least_bytes(40, 8, torch.float64)
    with pytest.raises(DoesNotFitError, match=r"40 columns to a band of 8 needs .* allowed"):
        reduce(Counted(covariance(40), 40), tmp_path, 8, budget=least - 1)


@pytest.mark.parametrize("name", ["V-00002-00000000", "T-00002", "panel-00002.json"])
def test_a_lost_panel_is_not_read_as_zeros(tmp_path: Path, name: str) -> None:
    scratch = reduce(Counted(covariance(40), 40), tmp_path, 8)
    (tmp_path / "panels" / name).unlink()
    with pytest.raises(DamagedTileError, match=f"{name} is missing"):
        Panels.open(scratch).apply(torch.eye(40, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(1, 1), (2, 5), (5, 5), (40, 5), (5000, 3)])
def test_a_panel_is_orthogonal_to_float64_in_float32(shape: tuple[int, int]) -> None:
    block = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    V, T, R = factor(block.clone())
    Q = torch.eye(shape[0], dtype=torch.float64)[:, : shape[1]] - V.double() @ T @ V.double()[: shape[1]].T
    assert (Q.T @ Q - torch.eye(Q.shape[1])).abs().max() < 1e-13
    assert (Q[:, : len(R)] @ R.double() - block).norm() < 1e-6 * block.norm()


@pytest.mark.parametrize(("size", "width"), [(1, 1), (6075, 128), (100, 200), (512, 512), (20_000, 300)])
def test_no_block_column_lies_in_two_tiles(size: int, width: int) -> None:
    tiling = working_tiling(size, width)
    assert tiling.tile % width == 0
    assert panel_count(size, width) <= -(-size // width)
