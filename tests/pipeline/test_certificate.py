"""The certificate: each measure is what its definition says, whatever the budget, and bad spectra do not pass."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rowsets import MemoryRows

from tilecov.pipeline.certificate import (
    IDENTITY_LIMIT,
    ORTHOGONALITY_LIMIT,
    RESIDUAL_LIMIT,
    Certificate,
    OverRows,
    OverTiles,
    measure,
)
from tilecov.pipeline.certificate import certify as certify_source
from tilecov.storage.tiling import Tiling

Array = npt.NDArray[Any]


@dataclass
class Tiles:
    """A symmetric matrix by tiles."""

    whole: Array
    tile: int

    @property
    def tiling(self) -> Tiling:
        return Tiling(len(self.whole), self.tile)

    def read(self, i: int, j: int) -> Array:
        return self.whole[self.tiling.span(i), self.tiling.span(j)]


def slabs_of(U: Array, tile: int) -> Callable[[], Iterator[tuple[slice, Array]]]:
    return lambda: ((span, U[span].copy()) for span in Tiling(len(U), tile).spans())


def certify(S: Array, U: Array, LA: Array, tile: int = 16, budget: int = 1 << 20) -> Certificate:
    return measure(Tiles(S, tile), slabs_of(U, tile), LA, budget)


def spectrum_of(S: Array, k: int | None = None) -> tuple[Array, Array]:
    values, vectors = np.linalg.eigh(S)
    return vectors[:, ::-1][:, :k].copy(), values[::-1][:k].clip(0).copy()


def covariance(size: int, rows: int = 500) -> Array:
    return np.atleast_2d(np.cov(np.random.default_rng(2).standard_normal((rows, size)).cumsum(axis=1).T))


def by_definition(S: Array, U: Array, LA: Array) -> dict[str, float | None]:
    """Compute every measure densely, in float64, as the class documents it."""
    S, U, LA = (np.asarray(array, np.float64) for array in (S, U, LA))
    residual, norm, whole = np.linalg.norm(S @ U - U * LA), np.linalg.norm(S), len(LA) == len(S)
    cut = len(S) - len(LA)
    return {
        "residual": residual / norm,
        "orthogonality": np.linalg.norm(U.T @ U - np.eye(len(LA))) / np.sqrt(len(LA)),
        "trace": abs(LA.sum() - np.trace(S)) / np.trace(S) if whole else None,
        "frobenius": abs(np.linalg.norm(LA) - norm) / norm if whole else None,
        "eigenvalue_error": residual / LA.max(),
        "energy": LA.sum() / np.trace(S),
        "condition": LA.max() / LA.min() if LA.min() > 0 else None,
        "rank": int((LA > 0).sum()),
        "tail": max(np.trace(S) - LA.sum(), 0) / cut if cut else None,
    }


def assert_measures(found: Certificate, wanted: dict[str, float | None], tolerance: float) -> None:
    assert found.as_dict() == {
        name: value if value is None else pytest.approx(value, rel=1e-9, abs=tolerance)
        for name, value in wanted.items()
    }


@pytest.mark.parametrize("budget", [0, 1, 700, 20_000, 10**9])
@pytest.mark.parametrize(("size", "tile"), [(1, 1), (40, 16), (48, 16), (23, 1), (30, 100)])
@pytest.mark.parametrize("part", [1.0, 0.4])
@pytest.mark.parametrize("strip", [64, 1 << 15])
def test_every_measure_is_its_definition_for_any_budget(
    size: int, tile: int, part: float, strip: int, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A spectrum that is wrong throughout, so that no measure is zero by luck, in one strip and in many."""
    monkeypatch.setattr("tilecov.pipeline.vectors._STRIP", strip)
    rng = np.random.default_rng(size)
    S = covariance(size)
    U, LA = spectrum_of(S, max(1, int(part * size)))
    U, LA = U + 0.1 * rng.standard_normal(U.shape), LA * rng.uniform(0.5, 1.5, LA.shape)
    assert_measures(certify(S, U, LA, tile, budget), by_definition(S, U, LA), 1e-12)


@given(st.integers(1, 24), st.integers(1, 30), st.integers(0, 5000), st.data())
@settings(max_examples=60)
def test_no_cut_changes_a_measure(size: int, tile: int, budget: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    S = covariance(size)
    k = data.draw(st.integers(1, size))
    U, LA = rng.standard_normal((size, k)), rng.uniform(0, 3, k) * rng.integers(0, 2, k)
    LA[0] = 1
    assert_measures(certify(S, U, LA, tile, budget), by_definition(S, U, LA), 1e-12)


@pytest.mark.parametrize("k", [None, 30])
def test_a_spectrum_in_float32_passes_and_is_measured_below_its_own_rounding(k: int | None) -> None:
    S = covariance(200)
    U, LA = (array.astype(np.float32) for array in spectrum_of(S, k))
    found = certify(S, U, LA, tile=64, budget=1)
    assert found.breaches() == []
    assert_measures(replace(found, condition=None), by_definition(S, U, LA) | {"condition": None}, 1e-6)
    assert found.rank == (k or 200)


def test_a_spectrum_in_float64_is_measured_in_float64() -> None:
    S = covariance(100)
    found = certify(S, *spectrum_of(S))
    worst = max(found.residual, found.orthogonality, found.trace or 0, found.frobenius or 0, found.eigenvalue_error)
    assert worst < 1e-13
    assert found.energy == pytest.approx(1)


def test_energy_is_what_the_kept_components_hold() -> None:
    S = np.diag([6.0, 3.0, 1.0])
    found = certify(S, np.eye(3)[:, :2], np.array([6.0, 3.0]), tile=2)
    assert (found.energy, found.rank, found.condition) == (0.9, 2, 2.0)
    assert (found.trace, found.frobenius) == (None, None)
    assert found.breaches() == []


def test_the_tail_is_the_mean_of_what_was_cut() -> None:
    S = np.diag([6.0, 3.0, 1.0, 0.5])
    assert certify(S, np.eye(4)[:, :2], np.array([6.0, 3.0]), tile=3).tail == pytest.approx(0.75)
    assert certify(S, np.eye(4)[:, :2], np.array([6.0, 5.0]), tile=3).tail == 0
    assert certify(S, np.eye(4), np.diag(S).copy(), tile=3).tail is None


def test_no_eigenvalue_is_further_off_than_the_bound_says() -> None:
    S, rng = covariance(40), np.random.default_rng(0)
    true = np.linalg.eigvalsh(S)
    U, LA = spectrum_of(S)
    for size in (1e-6, 1e-3, 1e-1):
        turned = np.linalg.qr(U + size * rng.standard_normal(U.shape))[0]
        values = LA * (1 + size * rng.standard_normal(LA.shape))
        bound = certify(S, turned, values).eigenvalue_error * values.max()
        assert np.abs(values[:, None] - true).min(axis=1).max() <= bound * (1 + 1e-9)


@pytest.mark.parametrize(("budget", "reads"), [(4 * 40 * 40, 1), (4 * 40 * 40 - 1, 7)])
def test_u_is_read_once_where_it_fits(budget: int, reads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else there are a first slab, which says how much it is, three passes for S U and three for U^T U."""
    monkeypatch.setattr("tilecov.pipeline.certificate.units", lambda: None)
    S = covariance(40)
    U, LA = (array.astype(np.float32) for array in spectrum_of(S))
    passes: list[int] = []

    def slabs() -> Iterator[tuple[slice, Array]]:
        passes.append(1)
        return slabs_of(U, 16)()

    found = measure(Tiles(S, 16), slabs, LA, budget)
    assert len(passes) == reads
    assert_measures(replace(found, condition=None), by_definition(S, U, LA) | {"condition": None}, 1e-6)


def test_u_is_not_held_at_the_price_of_more_passes_over_rows() -> None:
    rows = rows_of(12, 40, 16)
    U, LA = (array.astype(np.float32) for array in spectrum_of(rows.covariance, 10))
    held, passes = 4 * 40 * 10, 16 * 12 * 10
    for budget, reads in ((held + passes, 1), (held + passes - 1, 4), (passes, 4), (passes - 1, 6)):
        read: list[int] = []

        def slabs(read: list[int] = read) -> Iterator[tuple[slice, Array]]:
            read.append(1)
            return slabs_of(U, 16)()

        certify_source(rows.source, slabs, LA, budget)
        assert len(read) == reads, budget


# The zero matrix


def test_the_zero_matrix_has_a_sound_spectrum() -> None:
    for dtype in (np.float32, np.float64):
        found = certify(np.zeros((20, 20), dtype), np.eye(20, dtype=dtype), np.zeros(20, dtype))
        assert found == Certificate(0, 0, 0, 0, 0, 1.0, None, 0)
        assert found.breaches() == []


def test_a_zero_matrix_with_something_in_its_spectrum_is_a_breach() -> None:
    assert certify(np.zeros((20, 20)), np.eye(20), np.ones(20)).breaches()


def test_zero_eigenvalues_leave_no_condition() -> None:
    S = np.diag([4.0, 1.0, 0.0])
    found = certify(S, np.eye(3), np.array([4.0, 1.0, 0.0]))
    assert (found.condition, found.rank, found.breaches()) == (None, 2, [])


# Bad spectra

Change = Callable[[Array, Array, Array], None]


def _entry(S: Array, U: Array, LA: Array) -> None:
    U[17, 5] += 1e-3


def _sign(S: Array, U: Array, LA: Array) -> None:
    row = np.abs(U[:, 30]).argmax()
    U[row, 30] *= -1


def _swap(S: Array, U: Array, LA: Array) -> None:
    U[:, [0, 1]] = U[:, [1, 0]]


def _scale(S: Array, U: Array, LA: Array) -> None:
    U[:, 3] *= 1.001


def _twice(S: Array, U: Array, LA: Array) -> None:
    U[:, 1], LA[1] = U[:, 0], LA[0]


def _value(S: Array, U: Array, LA: Array) -> None:
    LA[0] *= 1.001


def _lost(S: Array, U: Array, LA: Array) -> None:
    U[16:32] = 0


def _other(S: Array, U: Array, LA: Array) -> None:
    S[2, 39] += 0.05 * LA[0]
    S[39, 2] = S[2, 39]


def _shifted(S: Array, U: Array, LA: Array) -> None:
    S += 0.01 * LA[0] * np.eye(len(S))


BREACHES: dict[str, tuple[Change, set[str]]] = {
    "one entry": (_entry, {"orthogonality"}),
    "one sign": (_sign, {"orthogonality"}),
    "two vectors swapped": (_swap, {"residual"}),
    "one vector too long": (_scale, {"orthogonality"}),
    "one vector twice": (_twice, {"orthogonality", "trace", "frobenius"}),
    "one eigenvalue": (_value, {"residual", "trace", "frobenius"}),
    "a lost slab": (_lost, {"residual", "orthogonality"}),
    "another covariance": (_other, {"residual"}),
    "another diagonal": (_shifted, {"residual", "trace"}),
}


@pytest.mark.parametrize("k", [None, 35])
@pytest.mark.parametrize(("change", "names"), BREACHES.values(), ids=BREACHES)
def test_a_bad_spectrum_is_a_breach(change: Change, names: set[str], k: int | None) -> None:
    S = covariance(40)
    U, LA = (array.astype(np.float32) for array in spectrum_of(S, k))
    assert certify(S, U, LA).breaches() == []
    change(S, U, LA)
    breached = {line.split()[0] for line in certify(S, U, LA).breaches()}
    assert names - ({"trace", "frobenius"} if k else set()) <= breached


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["S", "U", "LA"])
def test_what_is_not_finite_is_a_breach(where: str, value: float) -> None:
    S = covariance(20)
    U, LA = spectrum_of(S)
    {"S": S.reshape(-1), "U": U.reshape(-1), "LA": LA}[where][7] = value
    if where == "S":
        S[7, 0] = value
    with np.errstate(invalid="ignore"):
        assert certify(S, U, LA).breaches()


SOUND = Certificate(0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 2.0, 3)
LIMITS = {
    "residual": RESIDUAL_LIMIT,
    "orthogonality": ORTHOGONALITY_LIMIT,
    "trace": IDENTITY_LIMIT,
    "frobenius": IDENTITY_LIMIT,
}


@pytest.mark.parametrize(("name", "limit"), LIMITS.items())
def test_a_breach_names_the_measure_and_both_numbers(name: str, limit: float) -> None:
    assert replace(SOUND, **{name: limit}).breaches() == []
    (line,) = replace(SOUND, **{name: 2 * limit}).breaches()
    assert name in line
    assert f"{2 * limit:.2e}" in line
    assert f"{limit:.0e}" in line
    assert len(replace(SOUND, **{name: float("nan")}).breaches()) == 1


def test_all_breaches_are_named() -> None:
    bad = replace(SOUND, **dict.fromkeys(LIMITS, 1.0))
    assert [line.split()[0] for line in bad.breaches()] == list(LIMITS)


def test_a_certificate_goes_through_json() -> None:
    found = certify(covariance(9), *spectrum_of(covariance(9), 4))
    assert Certificate(**json.loads(json.dumps(found.as_dict()))) == found


def test_a_certificate_of_before_the_tail_is_read() -> None:
    before = {name: value for name, value in SOUND.as_dict().items() if name != "tail"}
    assert Certificate(**before) == SOUND


# Over rows, without the matrix


class KnownRows(MemoryRows):
    """Rows whose covariance NumPy gives."""

    @property
    def covariance(self) -> Array:
        return self.scale**2 * np.atleast_2d(np.cov(self.whole.T))

    @property
    def source(self) -> OverRows:
        return OverRows(self, float(np.trace(self.covariance)), float(np.linalg.norm(self.covariance)))


def rows_of(count: int, size: int, tile: int, dtype: npt.DTypeLike = np.uint8) -> KnownRows:
    walk = np.random.default_rng(size).standard_normal((count, size)).cumsum(axis=1)
    return KnownRows((255 * (walk - walk.min()) / np.ptp(walk)).astype(dtype), tile, 2 / 255)


@pytest.mark.parametrize("budget", [0, 1000, 10**9])
@pytest.mark.parametrize(("size", "tile"), [(1, 1), (15, 16), (16, 16), (17, 16), (40, 16)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_over_rows_every_measure_is_its_definition(size: int, tile: int, budget: int, dtype: npt.DTypeLike) -> None:
    rng, rows = np.random.default_rng(size), rows_of(12, size, tile, dtype)
    U, LA = spectrum_of(rows.covariance, max(1, size // 3))
    U, LA = U + 0.1 * rng.standard_normal(U.shape), LA * rng.uniform(0.5, 1.5, LA.shape)
    found = certify_source(rows.source, slabs_of(U, tile), LA, budget)
    assert_measures(found, by_definition(rows.covariance, U, LA), 1e-12)
    over_tiles = certify_source(OverTiles(Tiles(rows.covariance, tile)), slabs_of(U, tile), LA, budget)
    assert_measures(found, over_tiles.as_dict(), 1e-12)


@pytest.mark.parametrize("budget", [1, 10**9])
def test_over_rows_float32_passes_and_is_measured_below_its_own_rounding(budget: int) -> None:
    rows = rows_of(60, 300, 64)
    U, LA = (array.astype(np.float32) for array in spectrum_of(rows.covariance, 59))
    found = certify_source(rows.source, slabs_of(U, 64), LA, budget, complete=True)
    assert found.breaches() == []
    assert found.residual == pytest.approx(by_definition(rows.covariance, U, LA)["residual"], abs=3e-7)


def test_a_complete_spectrum_adds_up_to_the_trace() -> None:
    rows = rows_of(20, 50, 16)
    U, LA = spectrum_of(rows.covariance, 19)
    assert certify_source(rows.source, slabs_of(U, 16), LA, 1000).trace is None
    found = certify_source(rows.source, slabs_of(U, 16), LA, 1000, complete=True)
    assert found.trace is not None
    assert found.frobenius is not None
    assert max(found.trace, found.frobenius, found.tail or 0) < 1e-13
    assert found.breaches() == []
    short = certify_source(rows.source, slabs_of(U[:, :5], 16), LA[:5], 1000, complete=True)
    assert {line.split()[0] for line in short.breaches()} == {"trace", "frobenius"}


@pytest.mark.parametrize("name", ["one entry", "one sign", "two vectors swapped", "one eigenvalue", "a lost slab"])
def test_over_rows_a_bad_spectrum_is_a_breach(name: str) -> None:
    rows = rows_of(50, 60, 16)
    U, LA = (array.astype(np.float32) for array in spectrum_of(rows.covariance, 40))
    change, names = BREACHES[name]
    change(rows.covariance, U, LA)
    breached = {line.split()[0] for line in certify_source(rows.source, slabs_of(U, 16), LA, 1000).breaches()}
    assert names - {"trace", "frobenius"} <= breached


def test_over_rows_a_constant_set_has_a_sound_spectrum() -> None:
    rows = KnownRows(np.full((5, 20), 9, np.uint8), 16)
    found = certify_source(rows.source, slabs_of(np.eye(20)[:, :1], 16), np.zeros(1), 1000, complete=True)
    assert found == Certificate(0, 0, 0, 0, 0, 1.0, None, 0, 0)
