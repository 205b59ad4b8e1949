"""The certificate on int8 matrix units: the same measures, in the memory that is planned, and nothing bad passes."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from compiled import NO_COMPILER
from test_certificate import Array, Tiles, assert_measures, by_definition, covariance, slabs_of, spectrum_of

from tilecov.pipeline import units
from tilecov.pipeline.certificate import measure
from tilecov.pipeline.machine import peak_bytes, reset_peak


def budget_for(rank: int, size: int, tile: int) -> int:
    """Return the bytes for U and for columns of S."""
    return units.bytes_of(rank, size) + units.bytes_of(max(tile, min(512, rank)), size)


@pytest.fixture(params=["amx", "plain"], autouse=True)
def on_units(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a machine with int8 matrix units, and on them where they are."""
    if units.compiled is None or not units.compiled.choose(request.param):
        pytest.skip(f"no such units here, or {NO_COMPILER}")
    monkeypatch.setattr("tilecov.pipeline.certificate.units", lambda: units.compiled)
    yield
    assert units.compiled.choose("amx") or units.compiled.choose("plain")


@pytest.mark.parametrize(("size", "tile", "k"), [(40, 40, 40), (700, 512, 700), (1100, 512, 30), (600, 600, 599)])
def test_int8_matrix_units_measure_the_same(size: int, tile: int, k: int) -> None:
    """A good spectrum and one that is wrong throughout, U read twice, in three quarters of its bytes."""
    S = covariance(size)
    U, LA = (array.astype(np.float32) for array in spectrum_of(S, k))
    passes: list[int] = []

    def slabs() -> Iterator[tuple[slice, Array]]:
        passes.append(1)
        return slabs_of(U, tile)()

    found = measure(Tiles(S, tile), slabs, LA, budget_for(k, size, tile))
    assert len(passes) == 2
    assert_measures(replace(found, condition=None), by_definition(S, U, LA) | {"condition": None}, 3e-7)
    wrong = (U + 0.1 * np.random.default_rng(1).standard_normal(U.shape)).astype(np.float32)
    measured = measure(Tiles(S, tile), slabs_of(wrong, tile), LA, budget_for(k, size, tile)).as_dict()
    for name, value in by_definition(S, wrong, LA).items():
        assert measured[name] == (value if value is None else pytest.approx(value, rel=1e-5))


def test_what_units_do_not_take_is_measured_without_them() -> None:
    """U in float64, in slabs of odd heights, or larger than the budget."""
    S = covariance(600)
    U, LA = spectrum_of(S)
    small = U.astype(np.float32), LA.astype(np.float32)
    for vectors, values, tile, budget in (
        (U, LA, 600, 1 << 24),
        (*small, 100, 1 << 24),
        (*small, 600, budget_for(600, 600, 600) - 1),
    ):
        found = measure(Tiles(S, tile), slabs_of(vectors, tile), values, budget)
        assert found.breaches() == []
        assert_measures(replace(found, condition=None), by_definition(S, vectors, values) | {"condition": None}, 1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_units_see_what_is_not_finite(bad: float) -> None:
    S = covariance(600)
    U, LA = (array.astype(np.float32) for array in spectrum_of(S, 40))
    U[577, 3] = bad
    lines = measure(Tiles(S, 600), slabs_of(U, 600), LA, 1 << 24).breaches()
    assert {line.split()[0] for line in lines} == {"residual", "orthogonality"}


@pytest.mark.parametrize("scale", [1e-38, 1e-32, 1e-20, 1e30])
def test_a_matrix_of_any_size_is_measured_the_same(scale: float) -> None:
    """What hardly is there is not taken for nothing, nor for wrong."""
    S = covariance(600)
    U, LA = spectrum_of(S, 100)
    S, LA = S * (scale / LA[0]), (LA * (scale / LA[0])).astype(np.float32)
    U = U.astype(np.float32)
    found = measure(Tiles(S, 600), slabs_of(U, 600), LA, 1 << 24)
    assert found.residual == pytest.approx(by_definition(S, U, LA)["residual"], abs=3e-7 if scale > 1e-37 else 1e-5)
    nothing = measure(Tiles(S, 600), slabs_of(U, 600), np.zeros_like(LA), 1 << 24)
    assert nothing.residual == pytest.approx(np.linalg.norm(S @ U) / np.linalg.norm(S), rel=1e-4)
    assert nothing.breaches()


@pytest.mark.parametrize(("size", "rank"), [(6144, 16), (3072, 600)])
def test_memory_is_what_the_budget_says_and_what_a_slab_takes(size: int, rank: int) -> None:
    """Beside the budget as planned: a slab of U, its product with S in float64, tiles, and what threads take."""
    if units.compiled is not None and units.compiled.chosen() == "plain":
        pytest.skip("the same memory, in a hundred times the time")
    tile = 1024
    U = np.linalg.qr(np.random.default_rng(0).standard_normal((size, rank)))[0].astype(np.float32)
    LA = np.ones(rank, np.float32)

    class Identity(Tiles):
        def read(self, i: int, j: int) -> Array:
            return np.eye(tile) if i == j else np.zeros((tile, tile))

    matrix = Identity(np.empty((size, 0)), tile)
    budget = budget_for(rank, size, tile)
    measure(matrix, slabs_of(U, tile), LA, budget)  # all that is made once
    reset_peak()
    before = peak_bytes()
    found = measure(matrix, slabs_of(U, tile), LA, budget)
    assert peak_bytes() - before <= budget + 24 * tile * rank + 8 * tile * tile * 8 + (8 << 20)
    assert (found.residual, found.orthogonality) == pytest.approx((0, 0), abs=1e-6)
