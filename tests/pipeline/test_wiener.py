"""The Wiener filter: computed from any batches, saved, loaded, and the best linear denoiser there is."""

import math
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

from tilecov.pipeline import WienerFilter, compute_wiener_filter, load_wiener_filter, save_wiener_filter

Float = npt.NDArray[np.float64]
Four = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]

NAMES = ("U.pt", "LA.pt", "Vh.pt", "mean.pt")
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
DEVICES = [pytest.param("cpu"), pytest.param("cuda", marks=[pytest.mark.gpu, gpu])]


def images(count: int = 50, channels: int = 3, resolution: int = 4, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (count, channels, resolution, resolution)
    return 0.7 * torch.randn((count, 1, 1, 1), generator=generator) + torch.randn(shape, generator=generator)


def in_float64(rows: torch.Tensor) -> tuple[Float, Float]:
    """Return covariance and mean by NumPy, in two passes."""
    x = rows.flatten(start_dim=1).to(torch.float64).numpy()
    mean = x.mean(axis=0)
    return (x - mean).T @ (x - mean) / (len(x) - 1), mean


def assert_statistics(found: Sequence[torch.Tensor], rows: torch.Tensor, tolerance: float = 1e-6) -> None:
    S, mean = in_float64(rows)
    assert [tensor.dtype for tensor in found] == [torch.float32, torch.float32]
    assert (found[0].shape, found[1].shape) == (S.shape, mean.shape)
    assert np.abs(found[0].cpu().double().numpy() - S).max() <= tolerance * np.abs(S).max()
    assert np.abs(found[1].cpu().double().numpy() - mean).max() <= 1e-7 * max(1.0, np.abs(mean).max())
    assert torch.equal(found[0], found[0].T)


# Computed


def split(x: torch.Tensor) -> list[torch.Tensor]:
    """Cut into batches of odd and changing sizes, one of them empty."""
    return list(torch.split(x, [1, 7, 0, 3, len(x) - 11]))


def with_labels(x: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor, str]]:
    return ((batch, torch.zeros(len(batch)), "not looked at") for batch in split(x))


FORMS: dict[str, Callable[[torch.Tensor], Iterable[Any]]] = {
    "one batch": lambda x: [x],
    "batches of images": split,
    "batches of rows": lambda x: split(x.flatten(start_dim=1)),
    "tuples": lambda x: tuple(with_labels(x)),
    "lists": lambda x: [list(batch) for batch in with_labels(x)],
    "a generator": lambda x: (batch for batch in split(x)),
    "a generator of tuples": with_labels,
    "image by image": lambda x: x.split(1),
    "a data loader": lambda x: DataLoader(TensorDataset(x, torch.arange(len(x))), batch_size=9),
    "views": lambda x: x.permute(0, 3, 2, 1).contiguous().permute(0, 3, 2, 1).split(20),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_any_iterable_of_batches_will_do(form: Callable[[torch.Tensor], Iterable[Any]], device: str) -> None:
    x = images()
    found = compute_wiener_filter(form(x), device, 4, 3)
    assert {tensor.device.type for tensor in found} == {device}
    assert_statistics(found, x)


def test_a_loader_may_fill_one_buffer_again_and_again() -> None:
    x = images(60)
    buffer = torch.empty(10, 3, 4, 4)
    assert_statistics(compute_wiener_filter((buffer.copy_(part) for part in x.split(10)), "cpu", 4, 3), x)


def test_images_that_carry_gradients_are_images() -> None:
    assert_statistics(compute_wiener_filter([images().requires_grad_()], "cpu", 4, 3), images())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.uint8], ids=str)
def test_values_of_any_dtype_are_summed_in_float64(dtype: torch.dtype, channels: int) -> None:
    x = (100 + 20 * images(40, channels)).clamp(0, 255).to(dtype)
    assert_statistics(compute_wiener_filter(x.split(7), torch.device("cpu"), 4, channels), x)


def test_the_images_are_not_changed() -> None:
    x = images()
    compute_wiener_filter([x], "cpu", 4, 3)
    assert torch.equal(x, images())


@pytest.mark.parametrize("count", [2, 3, 4095, 4096, 4097, 9000])
def test_any_number_of_images_counts(count: int) -> None:
    x = images(count)
    assert_statistics(compute_wiener_filter(x.split(1000), "cpu", 4, 3), x)


def test_more_columns_than_a_tile_has() -> None:
    x = images(30, 3, 20)
    assert_statistics(compute_wiener_filter(x.split(8), "cpu", 20, 3), x)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
@pytest.mark.parametrize("offset", [0.0, 1e4, -1e6])
def test_a_large_offset_costs_no_accuracy(offset: float, precision: str, device: str) -> None:
    """A standard deviation of 1 far from zero; and whatever precision of products a program has chosen for itself."""
    x = offset + images(5000, 3, 4).to(torch.float64)
    torch.set_float32_matmul_precision(precision)
    try:
        assert_statistics(compute_wiener_filter(x.split(999), device, 4, 3), x)
    finally:
        torch.set_float32_matmul_precision("highest")


def test_a_first_block_unlike_the_others_costs_no_accuracy() -> None:
    """Sums are about the mean of the first block, which here is far from that of all."""
    x = images(20_000)
    x[:5000] += 100
    assert_statistics(compute_wiener_filter(x.split(1000), "cpu", 4, 3), x, tolerance=2e-6)


def test_a_constant_pixel_does_not_vary() -> None:
    x = images()
    x[:, 1, 2, 3] = 0.1
    S, mean = compute_wiener_filter(x.split(7), "cpu", 4, 3)
    assert S[27].abs().max() < 1e-12
    assert mean[27] == torch.tensor(0.1)


@pytest.mark.parametrize("empty", [[], (), iter([]), [torch.zeros(0, 3, 4, 4)], [(torch.zeros(0, 48), 1)]])
def test_no_data_is_an_error(empty: Iterable[Any]) -> None:
    with pytest.raises(RuntimeError, match="no image"):
        compute_wiener_filter(empty, "cpu", 4, 3)


def test_a_single_image_is_an_error() -> None:
    with pytest.raises(RuntimeError, match=r"one image.* at least two"):
        compute_wiener_filter([images(0), images(1)], "cpu", 4, 3)


@pytest.mark.parametrize(
    ("shape", "values"),
    [((5, 3, 4, 5), 60), ((5, 1, 4, 4), 16), ((5, 47), 47), ((5, 3, 8, 8), 192), ((48,), 1), ((48, 1), 1)],
)
def test_an_image_of_another_size_is_an_error_that_names_both(shape: tuple[int, ...], values: int) -> None:
    with pytest.raises(ValueError, match=rf"have {values} values.* 48"):
        compute_wiener_filter([torch.zeros(shape)], "cpu", 4, 3)


@pytest.mark.parametrize("second", [(2, 48), (2, 4, 4, 3), (2, 3, 4, 5), (2, 47)])
@pytest.mark.parametrize("between", [0, 5000])
def test_batches_that_disagree_are_an_error_that_names_both(second: tuple[int, ...], between: int) -> None:
    batches = [images(2 + between), torch.zeros(second)]
    with pytest.raises(ValueError, match=rf"disagree.*\(3, 4, 4\).*\({second[1]},.*\)"):
        compute_wiener_filter(batches, "cpu", 4, 3)


# Saved and loaded


def four(d: int = 12, k: int | None = None, seed: int = 0) -> Four:
    """Return U (d, k), LA, Vh and mean of a random covariance."""
    rng = np.random.default_rng(seed)
    vectors, _ = np.linalg.qr(rng.standard_normal((d, d)))
    values = 3 / np.arange(1, d + 1) ** 1.5
    arrays = vectors[:, :k], values[:k], vectors[:, :k].T, rng.uniform(-0.5, 0.5, d)
    U, LA, Vh, mean = (torch.tensor(np.ascontiguousarray(array), dtype=torch.float32) for array in arrays)
    return U, LA, Vh, mean


@pytest.mark.parametrize("k", [None, 5, 1])
@pytest.mark.parametrize("kind", [str, Path])
def test_what_is_saved_is_loaded_to_the_bit(tmp_path: Path, k: int | None, kind: type) -> None:
    saved, where = four(k=k), kind(tmp_path / "a" / "new folder")
    save_wiener_filter(*saved, where)
    assert {path.name for path in (tmp_path / "a" / "new folder").iterdir()} == set(NAMES)
    for device in (None, "cpu", torch.device("cpu")):
        loaded = load_wiener_filter(where, device)
        assert all(torch.equal(*pair) for pair in zip(saved, loaded, strict=True))
    assert torch.equal(torch.load(Path(where) / "U.pt", weights_only=True, mmap=True), saved[0])


def test_a_filter_saved_again_replaces_the_old_one(tmp_path: Path) -> None:
    for seed in (1, 2):
        save_wiener_filter(*four(seed=seed), tmp_path)
    assert torch.equal(load_wiener_filter(tmp_path)[0], four(seed=2)[0])
    assert len(list(tmp_path.iterdir())) == 4


def test_any_tensors_are_saved_as_float32(tmp_path: Path) -> None:
    U, LA, _, mean = four()
    save_wiener_filter(torch.nn.Parameter(U), LA.to(torch.float64), U.T, mean.to(torch.bfloat16), tmp_path)
    loaded = load_wiener_filter(tmp_path)
    assert {tensor.dtype for tensor in loaded} == {torch.float32}
    for found, wanted in zip(loaded, (U, LA, U.T, mean.to(torch.bfloat16).to(torch.float32)), strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("missing", [{"U.pt"}, {"LA.pt"}, {"Vh.pt"}, {"mean.pt"}, {"U.pt", "mean.pt"}, set(NAMES)])
def test_loading_names_what_is_missing_and_only_that(tmp_path: Path, missing: set[str]) -> None:
    save_wiener_filter(*four(), tmp_path)
    for name in missing:
        (tmp_path / name).unlink()
    for load in (load_wiener_filter, WienerFilter.load):
        with pytest.raises(FileNotFoundError) as caught:
            load(tmp_path)
        assert {name for name in NAMES if name in str(caught.value)} == missing
        assert str(tmp_path) in str(caught.value)


def test_a_folder_that_is_not_there_is_missing_all(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere.*U\.pt.*LA\.pt.*Vh\.pt.*mean\.pt"):
        load_wiener_filter(tmp_path / "nowhere")


class Bomb:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


def test_nothing_is_ever_unpickled_that_is_no_tensor(tmp_path: Path) -> None:
    save_wiener_filter(*four(), tmp_path)
    torch.save(Bomb(tmp_path / "trace"), tmp_path / "LA.pt")
    with pytest.raises(pickle.UnpicklingError):
        load_wiener_filter(tmp_path)
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("inside", ["", "artifacts"])
def test_a_filter_is_loaded_from_the_files_or_from_a_run(tmp_path: Path, inside: str) -> None:
    (tmp_path / "run.json").write_text("{}")
    save_wiener_filter(*four(), tmp_path / inside)
    for path in (tmp_path, str(tmp_path)):
        loaded = WienerFilter.load(path, "cpu")
        assert torch.equal(loaded.U, four()[0])
        assert torch.equal(loaded.mean, four()[3])


# Denoising


def consumer(parts: Four, x_t: torch.Tensor, alpha_bar: float) -> Float:
    """Follow the reference's formula for one row, with its d x d matrix, in float64."""
    U, LA, Vh, mean = (part.double().numpy() for part in parts)
    a = alpha_bar
    shrink = a * LA / (1 - a + a * LA)
    centred = x_t.double().numpy() / math.sqrt(a) - mean
    return np.asarray(mean + U @ np.diag(shrink) @ Vh @ centred)


def assert_denoised(found: torch.Tensor, parts: Four, x_t: torch.Tensor, alphas: Sequence[float]) -> None:
    assert (found.shape, found.dtype) == (x_t.shape, torch.float32)
    rows = zip(found.reshape(-1, 12), x_t.reshape(-1, 12), alphas, strict=True)
    for estimate, row, a in rows:
        wanted = consumer(parts, row, a)
        assert np.abs(estimate.double().numpy() - wanted).max() <= 1e-5 * max(1.0, np.abs(wanted).max())


SHAPES = [(12,), (1, 12), (5, 12), (3, 2, 2), (1, 3, 2, 2), (5, 3, 2, 2), (2, 4, 12)]


@pytest.mark.parametrize("alpha_bar", [1.0, 0.9999, 0.5, 0.02, 1e-4])
@pytest.mark.parametrize("k", [None, 5, 1])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_denoising_is_the_formula_of_the_reference(shape: tuple[int, ...], k: int | None, alpha_bar: float) -> None:
    parts, x_t = four(k=k), torch.randn(shape, generator=torch.Generator().manual_seed(1))
    alphas = [alpha_bar] * (x_t.numel() // 12)
    for given in (alpha_bar, torch.tensor(alpha_bar), torch.tensor(alpha_bar, dtype=torch.float64)):
        assert_denoised(WienerFilter(*parts).denoise(x_t, given), parts, x_t, alphas)


@pytest.mark.parametrize("shape", [(4, 12), (4, 3, 2, 2)], ids=str)
def test_every_image_may_have_its_own_noise(shape: tuple[int, ...]) -> None:
    parts, x_t, alphas = four(k=7), torch.randn(shape), [1.0, 0.7, 0.1, 1e-3]
    assert_denoised(WienerFilter(*parts).denoise(x_t, torch.tensor(alphas)), parts, x_t, alphas)


def test_images_of_a_single_pixel_may_have_their_own_noise_too() -> None:
    one = torch.ones(1)
    pixel = WienerFilter(one[:, None], one, one[:, None], 0 * one)
    found = pixel.denoise(torch.ones(3, 1, 1, 1), torch.full((3,), 0.25))
    assert found.flatten().tolist() == pytest.approx([0.5] * 3)


def test_what_is_saved_denoises_as_before(tmp_path: Path) -> None:
    parts, x_t = four(k=5), torch.randn(6, 3, 2, 2)
    save_wiener_filter(*parts, tmp_path)
    assert torch.equal(WienerFilter.load(tmp_path).denoise(x_t, 0.3), WienerFilter(*parts).denoise(x_t, 0.3))
    assert_denoised(WienerFilter.load(tmp_path).denoise(x_t, 0.3), parts, x_t, [0.3] * 6)


def test_without_noise_nothing_is_changed_but_what_never_varies() -> None:
    U, LA, Vh, mean = four()
    x = torch.randn(5, 12)
    assert torch.allclose(WienerFilter(U, LA, Vh, mean).denoise(x, 1.0), x, atol=1e-5)
    flat = WienerFilter(U, torch.zeros(12), Vh, mean)
    for a in (1.0, 0.5, torch.tensor([1.0] * 5)):
        assert torch.equal(flat.denoise(x, a), mean.expand(5, 12))


def test_shrink_is_between_nothing_and_all() -> None:
    U, _, Vh, mean = four(4)
    LA = torch.tensor([1e30, 1.0, 1e-30, 0.0])
    for a in (1e-6, 0.5, 1.0):
        shrink = WienerFilter(U, LA, Vh, mean).shrink(a)
        assert ((shrink >= 0) & (shrink <= 1)).all()
        assert (shrink.diff() <= 0).all()
        assert (shrink[0].item(), shrink[3].item()) == (1.0, 0.0)
    assert WienerFilter(U, LA, Vh, mean).shrink(torch.tensor([0.5, 1.0])).shape == (2, 4)


NO_LEVELS = [0.0, -0.1, 1.0001, 2, math.nan, math.inf, -math.inf, [0.5, 0.0], [0.5, math.nan]]


@pytest.mark.parametrize("alpha_bar", NO_LEVELS, ids=str)
def test_what_is_no_signal_level_is_an_error(alpha_bar: Any) -> None:
    given = torch.tensor(alpha_bar) if isinstance(alpha_bar, list) else alpha_bar
    for call in (lambda f: f.shrink(given), lambda f: f.denoise(torch.zeros(2, 12), given)):
        with pytest.raises(ValueError, match=r"alpha_bar .*\(0, 1\]"):
            call(WienerFilter(*four()))


@pytest.mark.parametrize("shape", [(), (11,), (13,), (4, 13), (1,), (2, 3, 2, 3), (12, 2), (5, 2, 2)], ids=str)
def test_images_of_another_size_than_the_filter_are_an_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"12"):
        WienerFilter(*four()).denoise(torch.zeros(shape), 0.5)


def test_the_images_to_denoise_are_not_changed() -> None:
    x = torch.randn(3, 3, 2, 2)
    kept = x.clone()
    WienerFilter(*four()).denoise(x, 0.5)
    assert torch.equal(x, kept)


class Largest(TorchDispatchMode):
    """Notes how many values the largest tensor has that any operation makes."""

    values = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.values = max([self.values, *(t.numel() for t in (out,) if isinstance(t, torch.Tensor))])
        return out


@pytest.mark.parametrize("tail", [None, 0.5])
def test_no_matrix_of_d_by_d_is_made(tail: float | None) -> None:
    d, k, batch = 1000, 3, 2
    parts = torch.zeros(d, k), torch.ones(k), torch.zeros(k, d), torch.zeros(d)
    with Largest() as seen:
        WienerFilter(*parts, tail=tail).denoise(torch.zeros(batch, d), 0.5)
    assert batch * d <= seen.values <= max(batch, k) * d


# It is the best


@pytest.mark.parametrize("alpha_bar", [0.95, 0.5, 0.1])
def test_no_other_shrinkage_does_better(alpha_bar: float) -> None:
    """On Gaussian images of this covariance the mean squared error is the least, and the one that theory says."""
    parts = four()
    U, LA, Vh, mean = parts
    generator = torch.Generator().manual_seed(0)
    x_0 = mean + torch.randn((40_000, 12), generator=generator) * LA.sqrt() @ U.T
    x_t = math.sqrt(alpha_bar) * x_0 + math.sqrt(1 - alpha_bar) * torch.randn(x_0.shape, generator=generator)
    best = WienerFilter(*parts)

    def error(estimate: torch.Tensor) -> float:
        return float((estimate - x_0).double().square().sum(dim=1).mean())

    found = error(best.denoise(x_t, alpha_bar))
    theory = float((LA * (1 - alpha_bar) / (1 - alpha_bar + alpha_bar * LA)).sum())
    assert found == pytest.approx(theory, rel=0.02)
    centred = x_t / math.sqrt(alpha_bar) - mean
    for factor in (0.9, 1.1):
        assert found < error(mean + factor * best.shrink(alpha_bar) * (centred @ Vh.T) @ U.T)
    assert found < min(error(x_t / math.sqrt(alpha_bar)), error(mean.expand_as(x_0)))
