"""The isotropic tail of a Wiener filter: what is cut from its spectrum varies alike in all directions."""

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from tilecov.pipeline import WienerFilter, save_wiener_filter

Float = npt.NDArray[np.float64]
Four = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def four(k: int = 12, d: int = 12) -> Four:
    """Return U (d, k), LA, Vh and mean of a random covariance."""
    rng = np.random.default_rng(0)
    vectors, _ = np.linalg.qr(rng.standard_normal((d, d)))
    values = 3 / np.arange(1, d + 1) ** 1.5
    arrays = vectors[:, :k], values[:k], vectors[:, :k].T, rng.uniform(-0.5, 0.5, d)
    U, LA, Vh, mean = (torch.tensor(np.ascontiguousarray(array), dtype=torch.float32) for array in arrays)
    return U, LA, Vh, mean


def in_full(parts: Four, x_t: torch.Tensor, alpha_bar: float, tail: float) -> Float:
    """Follow the formula for one row with the d x d covariance U LA U^T + tail (I - U U^T), in float64."""
    U, LA, _, mean = (part.double().numpy() for part in parts)
    S = U @ np.diag(LA - tail) @ U.T + tail * np.eye(len(mean))
    a = float(np.float32(alpha_bar))  # 1 - a near 1 is known no better than its dtype
    centred = x_t.double().numpy() / math.sqrt(a) - mean
    return np.asarray(mean + a * S @ np.linalg.pinv((1 - a) * np.eye(len(mean)) + a * S, rcond=1e-6) @ centred)


@pytest.mark.parametrize("tail", [0.0, 1e-3, 0.5, 40.0])
@pytest.mark.parametrize("alpha_bar", [1.0, 0.9999, 0.5, 0.02, 1e-4])
@pytest.mark.parametrize("k", [11, 5, 1])
@pytest.mark.parametrize("shape", [(12,), (4, 3, 2, 2)], ids=str)
def test_a_tail_is_shrunk_as_one_variance(shape: tuple[int, ...], k: int, alpha_bar: float, tail: float) -> None:
    parts, x_t = four(k=k), torch.randn(shape, generator=torch.Generator().manual_seed(1))
    found = WienerFilter(*parts, tail=tail).denoise(x_t, alpha_bar)
    assert (found.shape, found.dtype) == (x_t.shape, torch.float32)
    for estimate, row in zip(found.reshape(-1, 12), x_t.reshape(-1, 12), strict=True):
        wanted = in_full(parts, row, alpha_bar, tail)
        assert np.abs(estimate.double().numpy() - wanted).max() <= 1e-5 * max(1.0, np.abs(wanted).max())


def test_a_tail_with_a_noise_of_its_own_for_every_image() -> None:
    parts, x_t, alphas = four(k=7), torch.randn(4, 12), [0.99, 0.7, 0.1, 1e-3]
    best = WienerFilter(*parts, tail=0.1)
    found = best.denoise(x_t, torch.tensor(alphas))
    for estimate, row, a in zip(found, x_t, alphas, strict=True):
        assert torch.allclose(estimate, best.denoise(row, a), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("tail", [None, 0.0, 7.0])
def test_where_nothing_is_cut_a_tail_changes_no_bit(tail: float | None) -> None:
    parts, x_t = four(), torch.randn(5, 12)
    assert torch.equal(WienerFilter(*parts, tail=tail).denoise(x_t, 0.3), WienerFilter(*parts).denoise(x_t, 0.3))


def test_a_tail_of_nothing_is_no_tail() -> None:
    parts, x_t = four(k=5), torch.randn(5, 12)
    assert torch.allclose(WienerFilter(*parts, tail=0.0).denoise(x_t, 0.3), WienerFilter(*parts).denoise(x_t, 0.3))


def test_the_tail_makes_a_cut_filter_better() -> None:
    """On Gaussian images, between the filter of few components without one and that of all."""
    whole, cut = four(), four(k=4)
    tail = float(whole[1][4:].mean())
    generator = torch.Generator().manual_seed(0)
    x_0 = whole[3] + torch.randn((20_000, 12), generator=generator) * whole[1].sqrt() @ whole[0].T
    x_t = math.sqrt(0.9) * x_0 + math.sqrt(0.1) * torch.randn(x_0.shape, generator=generator)
    filters = [WienerFilter(*whole), WienerFilter(*cut, tail=tail), WienerFilter(*cut)]
    errors = [float((each.denoise(x_t, 0.9) - x_0).square().sum(dim=1).mean()) for each in filters]
    assert errors[0] < errors[1] < 0.8 * errors[2]


@pytest.mark.parametrize("tail", [-1e-9, math.nan, math.inf])
def test_what_is_no_variance_is_no_tail(tail: float) -> None:
    with pytest.raises(ValueError, match="tail is a variance"):
        WienerFilter(*four(k=5), tail=tail)


def test_a_bare_folder_has_a_tail_only_where_nothing_is_cut(tmp_path: Path) -> None:
    save_wiener_filter(*four(), tmp_path / "all")
    save_wiener_filter(*four(k=5), tmp_path / "cut")
    assert WienerFilter.load(tmp_path / "all", tail="isotropic").tail == 0.0
    assert WienerFilter.load(tmp_path / "cut").tail is None
    with pytest.raises(ValueError, match=r"5 of 12 components .*folder of the run.*tail=variance"):
        WienerFilter.load(tmp_path / "cut", tail="isotropic")
    with pytest.raises(ValueError, match=r"'isotropic' or None, not 0\.1"):
        WienerFilter.load(tmp_path / "cut", tail=0.1)  # type: ignore[arg-type]


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_tails_of_any_size_give_numbers(scale: float) -> None:
    U, LA, Vh, mean = four(k=5)
    for a in (1.0, 0.5, 1e-4):
        found = WienerFilter(U, LA * scale, Vh, mean, tail=0.01 * scale).denoise(torch.randn(3, 12), a)
        assert torch.isfinite(found).all()
