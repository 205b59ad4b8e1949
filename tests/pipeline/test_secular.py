"""The secular equation: its roots lie where they should to all digits, and its eigenvectors are orthogonal."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tilecov.pipeline.svd import secular
from tilecov.pipeline.svd.secular import Secular, decompose_update

CPU = torch.device("cpu")


def system(size: int, seed: int = 0, decades: float = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return poles and z, the latter over as many decades."""
    rng = np.random.default_rng(seed)
    poles = np.sort(rng.standard_normal(size)) + 1e-6 * np.arange(size)
    z = rng.standard_normal(size) * 10 ** (-decades * rng.random(size))
    return torch.from_numpy(poles), torch.from_numpy(z / np.linalg.norm(z))


def matrix(found: Secular, dtype: torch.dtype = torch.float64, most: int = 1 << 20) -> torch.Tensor:
    blocks = [(rows, block.clone()) for rows, block in found.unscaled(torch.empty(most, dtype=dtype))]
    assert [rows.start for rows, _ in blocks[1:]] == [rows.stop for rows, _ in blocks[:-1]]
    return torch.cat([block for _, block in blocks]) / found.scales.to(dtype)


def check(poles: torch.Tensor, z: torch.Tensor, rho: float) -> None:
    size = len(poles)
    rows = torch.from_numpy(np.random.default_rng(1).standard_normal((2, size)))
    found, turned = decompose_update(poles, z, rho, rows)
    whole = torch.diag(poles) + rho * torch.outer(z, z)
    # What rounding is relative to: the two terms may cancel, as a pole of -0.497 and 0.5 do.
    norm, vectors = poles.abs().max() + rho * (z @ z), matrix(found)
    assert torch.allclose(found.values, torch.linalg.eigvalsh(whole), rtol=0, atol=1e-14 * size**0.5 * float(norm))
    assert (whole @ vectors - vectors * found.values).norm() <= 1e-14 * size**0.5 * norm
    assert (vectors.T @ vectors - torch.eye(size)).norm() <= 1e-14 * size**0.5
    assert torch.allclose(turned, rows @ vectors, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rho", [1e-9, 0.7, 1e6])
@pytest.mark.parametrize("size", [1, 2, 3, 64, 255, 400])
def test_decomposes(size: int, rho: float) -> None:
    check(*system(size), rho)


@settings(max_examples=60)
@given(st.integers(1, 40), st.integers(0, 999), st.floats(0, 7), st.floats(1e-3, 1e3))
def test_decomposes_whatever_the_weights(size: int, seed: int, decades: float, rho: float) -> None:
    check(*system(size, seed, decades), rho)


def test_decomposes_terms_that_cancel() -> None:
    one = torch.ones(1, dtype=torch.float64)
    check(-0.4972857373020958 * one, -one, 0.5)


def test_decomposes_clusters_of_poles() -> None:
    poles = (torch.arange(8.0, dtype=torch.float64)[:, None] + 1e-9 * torch.arange(16)).flatten()
    check(poles, torch.full((128,), 128**-0.5, dtype=torch.float64), 1.0)


def test_decomposes_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secular, "_CHUNK", 100)
    check(*system(37), 0.3)
    check(*system(150), 0.3)


def test_nothing_is_decomposed() -> None:
    nothing = torch.empty(0, dtype=torch.float64)
    found, turned = decompose_update(nothing, nothing, 1.0, torch.empty((2, 0), dtype=torch.float64))
    assert len(found) == 0
    assert turned.shape == (2, 0)
    assert found.values.shape == (0,)
    assert list(found.unscaled(torch.empty(8, dtype=torch.float64))) == []


@settings(max_examples=30)
@given(st.integers(1, 12), st.integers(0, 999), st.floats(0, 6))
def test_offsets_are_accurate_to_nearly_all_digits(size: int, seed: int, decades: float) -> None:
    poles, z = system(size, seed, decades)
    found, _ = decompose_update(poles, z, 0.5, torch.empty((0, size), dtype=torch.float64))
    exact, weights = [Fraction(pole) for pole in poles.tolist()], [Fraction(x) ** 2 for x in z.tolist()]

    def value(anchor: int, offset: Fraction) -> Fraction:
        return 2 + sum(w / (pole - exact[anchor] - offset) for pole, w in zip(exact, weights, strict=True))

    for anchor, offset in zip(found.anchors.tolist(), found.offsets.tolist(), strict=True):
        slack = abs(Fraction(offset)) / 10**10
        assert value(anchor, Fraction(offset) - slack) < 0 < value(anchor, Fraction(offset) + slack)


def test_roots_lie_between_the_poles() -> None:
    poles, z = system(300, decades=6)
    found, _ = decompose_update(poles, z, 2.0, torch.empty((0, 300), dtype=torch.float64))
    gaps = torch.cat([poles.diff(), torch.tensor([2.0001], dtype=torch.float64)])
    from_left = (poles[found.anchors] - poles) + found.offsets
    assert (from_left > 0).all()
    assert (from_left < gaps).all()


@pytest.mark.parametrize("most", [1, 50, 1000, 1 << 20])
def test_blocks_are_the_same_however_many_rows_they_have(most: int) -> None:
    found, _ = decompose_update(*system(50), 1.0, torch.empty((0, 50), dtype=torch.float64))
    assert torch.equal(matrix(found, most=most), matrix(found))
    assert max(block.numel() for _, block in found.unscaled(torch.empty(most, dtype=torch.float64))) <= max(most, 50)


def test_blocks_in_float32_and_of_some_columns() -> None:
    found, _ = decompose_update(*system(200, decades=5), 1.0, torch.empty((0, 200), dtype=torch.float64))
    whole, chosen = matrix(found), torch.tensor([3, 199, 20])
    single = matrix(found, torch.float32)
    assert single.dtype == torch.float32
    assert torch.allclose(single.double(), whole, rtol=5e-7, atol=0)
    assert torch.equal(matrix(found.columns(chosen)), whole[:, chosen])
    assert torch.equal(matrix(found.to(CPU)), whole)


def test_numbers_that_are_none_have_no_roots() -> None:
    poles, z = system(5)
    z[2] = torch.nan
    with pytest.raises(RuntimeError, match="of 5 roots"):
        decompose_update(poles, z, 1.0, torch.empty((0, 5), dtype=torch.float64))
