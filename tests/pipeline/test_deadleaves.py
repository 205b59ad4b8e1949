import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilecov.pipeline import deadleaves
from tilecov.pipeline.deadleaves import dead_leaves


def _images(count: int, resolution: int, channels: int = 3) -> npt.NDArray[np.uint8]:
    return np.stack([dead_leaves(np.random.default_rng([7, i]), resolution, channels) for i in range(count)])


def _slope(gray: npt.NDArray[np.float64], lowest: int, highest: int) -> float:
    """Slope of log power against log frequency (cycles per image), averaged over rings and images (n, R, R)."""
    side = gray.shape[1]
    window = np.outer(np.hanning(side), np.hanning(side))  # an image's borders are edges that are not in it
    power = (abs(np.fft.fft2((gray - gray.mean()) * window)) ** 2).mean(0)
    cycles = np.fft.fftfreq(side) * side
    ring = np.rint(np.hypot(*np.meshgrid(cycles, cycles))).astype(int).ravel()
    radial = np.bincount(ring, power.ravel()) / np.bincount(ring)
    middle = np.arange(lowest, highest + 1)
    return float(np.polyfit(np.log(middle), np.log(radial[middle]), 1)[0])


@pytest.mark.parametrize(("resolution", "count"), [(48, 200), (64, 200), (128, 60)])
def test_power_falls_as_the_square_of_the_frequency(resolution: int, count: int) -> None:
    gray = _images(count, resolution, 1)[..., 0].astype(float)
    assert _slope(gray, 2, resolution // 4) == pytest.approx(-2, abs=0.25)


def test_the_measure_of_the_slope_tells_other_spectra_apart() -> None:
    noise = np.random.default_rng(0).random((100, 64, 64))
    steep = np.cumsum(np.cumsum(noise - 0.5, axis=1), axis=2)
    assert _slope(noise, 2, 16) == pytest.approx(0, abs=0.25)
    assert _slope(steep, 2, 16) < -2.5


@settings(max_examples=30)
@given(resolution=st.integers(1, 40), channels=st.sampled_from([1, 3]), seed=st.integers(0, 2**32))
def test_shape_dtype_and_repeatability_at_any_size(resolution: int, channels: int, seed: int) -> None:
    image, again = (dead_leaves(np.random.default_rng(seed), resolution, channels) for _ in range(2))
    assert image.shape == (resolution, resolution, channels)
    assert image.dtype == np.uint8
    assert image.flags.writeable
    assert np.array_equal(image, again)


@pytest.mark.parametrize("resolution", [1, 2, 13, 64])
def test_leaves_cover_every_pixel(resolution: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadleaves, "_colours", lambda uniform, channels: np.full((len(uniform), channels), 201, "u1"))
    assert np.all(dead_leaves(np.random.default_rng(1), resolution) == 201)


def test_the_ground_shows_through_at_the_rate_that_the_depth_promises(monkeypatch: pytest.MonkeyPatch) -> None:
    def ground_alone_is_white(uniform: npt.NDArray[np.float64], channels: int) -> npt.NDArray[np.uint8]:
        return np.where(np.arange(len(uniform))[:, None] == 0, 255, 0).repeat(channels, 1).astype(np.uint8)

    # The first leaf is drawn in the ground's colour and hides under the others like it: a little more than exp(-depth).
    monkeypatch.setattr(deadleaves, "_colours", ground_alone_is_white)
    assert _images(300, 32, 1).mean() / 255 == pytest.approx(np.exp(-deadleaves._DEPTH), rel=0.5)


def test_images_are_varied_and_coloured_as_photographs_are() -> None:
    images = _images(200, 32).astype(float)
    assert images.mean() == pytest.approx(127.5, abs=5)
    assert images.mean(axis=(1, 2, 3)).std() > 15
    assert np.median(images.std(axis=(1, 2)).mean(axis=-1)) > 30
    shares = np.linalg.eigvalsh(np.cov(images.reshape(-1, 3).T))[::-1]
    assert shares / shares.sum() == pytest.approx([0.92, 0.07, 0.01], abs=0.02)


def test_gray_images_use_the_whole_range() -> None:
    assert np.unique(_images(50, 32, 1)).size == 256


def test_large_images() -> None:
    image = dead_leaves(np.random.default_rng(0), 1024)
    assert image.shape == (1024, 1024, 3)
    assert np.unique(image[..., 0]).size == 256


@pytest.mark.parametrize(("resolution", "channels"), [(0, 3), (-4, 3), (8, 2), (8, 0), (8, 4)])
def test_what_is_no_image_is_refused(resolution: int, channels: int) -> None:
    with pytest.raises(ValueError, match=f"{resolution} and {channels} channels"):
        dead_leaves(np.random.default_rng(0), resolution, channels)
