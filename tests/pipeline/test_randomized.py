"""The randomized method: the leading eigenpairs are LAPACK's, whatever the tile, the target and the memory."""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tilecov.pipeline.svd.randomized import Progress, leading
from tilecov.pipeline.svd.ranks import Record, Target, denoising_error
from tilecov.storage.tiling import Tiling

Matrix = npt.NDArray[np.float64]

CPU = torch.device("cpu")
TOLERANCES = {torch.float64: 1e-13, torch.float32: 1e-5}
LIMITS = {torch.float64: 1e-12, torch.float32: 1e-5}
"""What a spectrum may be off by, relative to the Frobenius norm."""

spectra = pytest.mark.parametrize("dtype", LIMITS, ids=str)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices as small as these wait for threads longer than they are worked on."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass
class UpperTiles:
    """A symmetric matrix of which only the upper tiles can be read; it counts how often."""

    whole: Matrix
    tile: int
    reads: int = 0

    @property
    def tiling(self) -> Tiling:
        return Tiling(len(self.whole), self.tile)

    def read(self, i: int, j: int) -> Matrix:
        assert i <= j
        self.reads += 1
        return self.whole[self.tiling.span(i), self.tiling.span(j)]


@dataclass
class Memory:
    """Keeps progress as a store would, with only the rows that changed, and is killed after some passes."""

    kill: int = -1
    kept: Progress | None = None
    changes: list[int] = field(default_factory=list)

    def load(self) -> Progress | None:
        return self.kept

    def save(self, progress: Progress, changed: int) -> None:
        old = self.kept.basis[:changed] if self.kept and changed else progress.basis[:0]
        assert len(old) == changed
        basis = torch.cat([old, progress.basis[changed:]])
        assert torch.equal(basis, progress.basis)
        self.kept = replace(progress, basis=basis, coupling=progress.coupling.clone(), values=progress.values.clone())
        self.changes.append(changed)
        if progress.passes == self.kill:
            raise KeyboardInterrupt


@functools.cache
def rotation(size: int) -> Matrix:
    vectors: Matrix = torch.linalg.qr(torch.randn((size, size), generator=torch.Generator().manual_seed(0)).double())[
        0
    ].numpy()
    return vectors


def with_spectrum(values: npt.ArrayLike) -> Matrix:
    found = np.asarray(values, np.float64)
    vectors = rotation(len(found))
    whole = (torch.from_numpy(vectors * found) @ torch.from_numpy(vectors).T).numpy()
    return (whole + whole.T) / 2


def photographs(size: int) -> Matrix:
    return with_spectrum(1 / np.arange(1, size + 1) ** 2)


def find(
    whole: Matrix, dtype: torch.dtype = torch.float64, *, tile: int = 64, budget: int = 2**30, **options: Any
) -> tuple[torch.Tensor, torch.Tensor, Record]:
    state, seed = options.pop("state", None), options.pop("seed", 0)
    return leading(
        UpperTiles(whole, tile),
        Target(**options),
        tolerance=TOLERANCES[dtype],
        dtype=dtype,
        device=CPU,
        budget=budget,
        seed=seed,
        state=state,
    )


def exact(whole: Matrix) -> torch.Tensor:
    return torch.linalg.eigvalsh(torch.from_numpy(whole)).flip(0)


def check(whole: Matrix, values: torch.Tensor, vectors: torch.Tensor, dtype: torch.dtype) -> None:
    rank = len(values)
    assert vectors.shape == (len(whole), rank)
    assert values.dtype == vectors.dtype == dtype
    s, found, u = torch.from_numpy(whole), values.double(), vectors.double()
    limit = LIMITS[dtype]
    bound = limit * float(torch.linalg.norm(s))
    assert float(torch.linalg.norm(found - exact(whole)[:rank], ord=math.inf) if rank else 0) <= bound
    assert float(torch.linalg.norm(s @ u - u * found)) <= bound
    assert float(torch.linalg.norm(u.T @ u - torch.eye(rank))) <= limit * max(1, rank) ** 0.5
    assert bool((found.diff() <= bound).all())


@spectra
@pytest.mark.parametrize("rank", [1, 2, 8, 63, 100, 299, 300, 1000])
def test_a_slowly_falling_spectrum(rank: int, dtype: torch.dtype) -> None:
    whole = photographs(300)
    values, vectors, record = find(whole, dtype, rank=rank)
    assert len(values) == min(rank, 300)
    check(whole, values, vectors, dtype)
    assert record.residual <= TOLERANCES[dtype]
    assert record.energy == pytest.approx(float(values.double().sum()) / np.trace(whole), rel=1e-5)
    relative = (values.double() / exact(whole)[: len(values)] - 1).abs()
    assert float(relative[:63].max()) < (1e-4 if dtype == torch.float32 else 1e-9)


@pytest.mark.parametrize("tile", [1, 2, 39, 40, 41, 64])
@pytest.mark.parametrize("size", [1, 2, 39, 40, 41])
def test_every_tile_and_size(size: int, tile: int) -> None:
    whole = photographs(size)
    check(whole, *find(whole, tile=tile, rank=5)[:2], torch.float64)


def repeated(copies: int, size: int = 300) -> Matrix:
    return with_spectrum([1.0] * copies + [0.5] * 5 + list(0.1 / np.arange(1, size - copies - 4)))


CASES: dict[str, tuple[Matrix, int]] = {
    "one by one": (np.array([[3.0]]), 1),
    "zero, one by one": (np.array([[0.0]]), 1),
    "zero": (np.zeros((70, 70)), 20),
    "identity": (np.eye(400), 100),
    "diagonal, not in order": (np.diag(np.random.default_rng(0).permutation(90.0 + np.arange(200) ** 2)), 30),
    "all repeated": (with_spectrum([2.0] * 150), 70),
    "one level over zero": (np.diag([1.0] * 100 + [0.0] * 200), 40),
    "two levels": (with_spectrum([5.0] * 100 + [1.0] * 200), 120),
    "copies and a fall": (repeated(130), 140),
    "pairs": (with_spectrum(np.repeat(np.arange(150.0), 2)), 50),
    "rank one": (np.outer(np.arange(1.0, 201), np.arange(1.0, 201)), 20),
    "rank below the one asked for": (np.cov(np.random.default_rng(1).standard_normal((30, 200)).T), 60),
    "rank that is asked for": (np.cov(np.random.default_rng(1).standard_normal((31, 200)).T), 30),
    "a step of 1e-12": (with_spectrum(1 / np.arange(1, 201) ** 2 * np.where(np.arange(200) < 20, 1, 1e-12)), 40),
    "tiny": (1e-30 * photographs(200), 40),
    "huge": (1e30 * photographs(200), 40),
}


@spectra
@pytest.mark.parametrize(("whole", "rank"), CASES.values(), ids=CASES)
def test_degenerate_matrices(whole: Matrix, rank: int, dtype: torch.dtype) -> None:
    values, vectors, _ = find(whole, dtype, rank=rank)
    assert len(values) == rank
    check(whole, values, vectors, dtype)


@pytest.mark.parametrize("copies", [9, 20, 40])
@pytest.mark.parametrize("rank", [9, 30, 45])
def test_copies_of_an_eigenvalue_are_found_with_narrow_blocks(
    copies: int, rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tilecov.pipeline.svd.ranks._BLOCKS", (8,))
    whole = repeated(copies)
    check(whole, *find(whole, rank=rank)[:2], torch.float64)


@spectra
def test_little_memory_means_restarts_and_the_same_spectrum(dtype: torch.dtype) -> None:
    whole = photographs(400)
    budget = (30 + 4 * 8 + 5 * 8) * 400 * dtype.itemsize + 4 * 8 * 62**2 + 1000
    state = Memory()
    values, vectors, record = find(whole, dtype, rank=30, budget=budget, state=state)
    assert 0 in state.changes[1:]
    assert record.columns <= 62
    check(whole, values, vectors, dtype)


def test_too_little_memory_is_refused_with_both_sizes() -> None:
    with pytest.raises(ValueError, match=r"30 eigenpairs of a 400 x 400 .* at least 449,408 bytes.*and 449,000 are"):
        find(photographs(400), rank=30, budget=449_000)
    with pytest.raises(ValueError, match="bytes of panels, and 10 are allowed"):
        find(photographs(400), energy=0.5, budget=10)


@pytest.mark.parametrize("options", [{"energy": 0.9999}, {"noise": 1e-3}])
def test_a_target_that_does_not_fit_is_refused(options: dict[str, float]) -> None:
    whole = with_spectrum(1 / np.arange(1, 401.0))
    with pytest.raises(ValueError, match="bytes of panels, and 500,000 are allowed"):
        find(whole, budget=500_000, **options)


def test_each_pass_reads_each_upper_tile_once() -> None:
    tiles = UpperTiles(photographs(300), 64)
    *_, record = leading(tiles, Target(rank=20), tolerance=1e-10, dtype=torch.float64, device=CPU, budget=2**30)
    assert tiles.reads == 5 + record.passes * 15


@pytest.mark.parametrize(("missing", "columns"), [(0, 64), (1, 128)])
def test_blocks_are_narrow_only_where_all_tiles_stay(missing: int, columns: int) -> None:
    """A pass that reads nothing need not be a wide one, and narrow ones multiply fewer columns."""
    tiles, state = UpperTiles(photographs(300), 64), Memory(kill=1)
    keep = 8 * sum(tiles.tiling.width(i) * tiles.tiling.width(j) for i, j in tiles.tiling.upper()) - missing
    with pytest.raises(KeyboardInterrupt):
        leading(
            tiles, Target(rank=100), tolerance=1e-10, dtype=torch.float64, device=CPU, budget=2**30, keep=keep,
            state=state,
        )  # fmt: skip
    assert state.kept is not None
    assert state.kept.coupling.shape[1] == columns


@spectra
@pytest.mark.parametrize("energy", [1e-9, 0.3, 0.9, 0.99, 0.999, 1.0])
def test_energy(energy: float, dtype: torch.dtype) -> None:
    whole = with_spectrum(0.8 ** np.arange(300))
    values, vectors, record = find(whole, dtype, energy=energy)
    check(whole, values, vectors, dtype)
    spectrum = 0.8 ** np.arange(300)
    assert record.energy >= energy - 1e-5
    if energy < 1:
        assert len(values) == int((spectrum.cumsum() < energy * spectrum.sum()).sum()) + 1


def test_all_the_energy_of_few_rows_is_their_rank() -> None:
    whole = np.cov(np.random.default_rng(1).standard_normal((31, 400)).T)
    assert len(find(whole, energy=1.0)[0]) == 30
    assert len(find(np.zeros((40, 40)), energy=1.0)[0]) == 0


@spectra
@pytest.mark.parametrize("noise", [1e-3, 0.0061, 0.021, 0.11, 0.7, 2.0])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_noise(noise: float, scale: float, dtype: torch.dtype) -> None:
    whole = scale * photographs(300)
    sigma = noise * scale**0.5
    values, vectors, record = find(whole, dtype, noise=sigma)
    spectrum = scale / np.arange(1, 301) ** 2
    assert len(values) == int((spectrum > sigma**2).sum())
    check(whole, values, vectors, dtype)
    assert record.denoising is not None
    kept, cut = spectrum[: len(values)], spectrum[len(values) :]
    assert record.denoising.kept == pytest.approx((kept * sigma**2 / (kept + sigma**2)).sum(), rel=1e-4)
    excess = (cut**2 / (cut + sigma**2)).sum()
    assert excess <= record.denoising.excess * (1 + 1e-12)
    assert record.denoising.excess <= cut.sum() / 2 + 1e-5 * spectrum.sum()


@given(cut=st.lists(st.floats(0, 1), min_size=1, max_size=30), kept=st.lists(st.floats(1.001, 1e6), max_size=5))
@settings(max_examples=100)
def test_the_excess_is_an_upper_bound(cut: list[float], kept: list[float]) -> None:
    whole = np.array(kept + cut)
    values = torch.tensor(sorted(kept, reverse=True), dtype=torch.float64)
    found = denoising_error(
        values, 1.0, trace=float(whole.sum()), squares=float((whole**2).sum()), size=len(whole), rounding=4e-15
    )
    lost = np.array(cut)
    assert found.excess >= (lost**2 / (lost + 1)).sum()


@pytest.mark.parametrize("budget", [2**30, 900_000])
@pytest.mark.parametrize("kill", [1, 2, 3, 5])
def test_a_killed_run_goes_on_and_ends_with_the_same_bits(kill: int, budget: int) -> None:
    whole = photographs(400)
    expected = find(whole, rank=60, budget=budget)
    state = Memory(kill)
    with pytest.raises(KeyboardInterrupt):
        find(whole, rank=60, budget=budget, state=state)
    state.kill = -1
    again = find(whole, rank=60, budget=budget, state=state)
    assert torch.equal(expected[0], again[0])
    assert torch.equal(expected[1], again[1])
    assert expected[2] == again[2]
    assert len(state.changes) == expected[2].passes


def test_what_was_saved_for_another_matrix_or_dtype_is_not_used() -> None:
    whole = photographs(400)
    state = Memory()
    find(photographs(300), rank=60, state=state)
    check(whole, *find(whole, rank=60, state=Memory(kept=state.kept))[:2], torch.float64)
    find(whole, torch.float32, rank=60, state=state)
    check(whole, *find(whole, rank=60, state=Memory(kept=state.kept))[:2], torch.float64)


@given(size=st.integers(1, 60), rank=st.integers(1, 60), zeros=st.integers(0, 60), seed=st.integers(0, 9))
@settings(max_examples=40)
def test_any_size_and_rank(size: int, rank: int, zeros: int, seed: int) -> None:
    spectrum = np.random.default_rng(seed).random(size) ** 4
    spectrum[: min(zeros, size)] = 0
    whole = with_spectrum(spectrum)
    values, vectors, _ = find(whole, tile=16, rank=rank, seed=seed)
    assert len(values) == min(rank, size)
    check(whole, values, vectors, torch.float64)


@pytest.mark.parametrize("place", [(0, 0), (3, 200)])
def test_a_matrix_that_is_not_finite_is_refused(place: tuple[int, int]) -> None:
    whole = photographs(300)
    whole[place] = np.nan
    with pytest.raises(ValueError, match="must be finite"):
        find(whole, rank=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "one of rank, energy and noise"),
        ({"rank": 3, "noise": 1.0}, "one of rank, energy and noise"),
        ({"rank": 0}, "at least 1"),
        ({"energy": 0.0}, "above 0 and at most 1"),
        ({"energy": 1.1}, "above 0 and at most 1"),
        ({"noise": 0.0}, "above 0 and finite"),
        ({"noise": float("nan")}, "above 0 and finite"),
    ],
)
def test_targets_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Target(**options)


def test_the_record_is_json_like() -> None:
    *_, record = find(photographs(50), noise=0.1)
    assert set(record.as_dict()["denoising"]) == {"kept", "excess"}
