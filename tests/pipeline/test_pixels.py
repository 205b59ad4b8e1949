"""Pixels in C: what NumPy and Pillow find, and nothing is touched that is not a picture."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from compiled import A_COMPILER_IS_HERE, NO_COMPILER
from hypothesis import given
from hypothesis import strategies as st

from tilecov.pipeline import pixels
from tilecov.pipeline.pixels import is_compiled, jpeg_markers, planes

SHAPES = st.tuples(st.sampled_from([1, 3]), st.integers(1, 9), st.integers(1, 9))


def test_it_is_compiled_where_a_compiler_is() -> None:
    """Installing goes on without it: this is where that would be seen."""
    assert is_compiled() or not A_COMPILER_IS_HERE


needs_c = pytest.mark.skipif(not is_compiled(), reason=NO_COMPILER)


@pytest.mark.parametrize("compiled", [True, False])
@given(SHAPES, st.randoms(use_true_random=False))
def test_planes_are_a_transposition(compiled: bool, shape: tuple[int, int, int], random: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if not compiled:
            patch.setattr(pixels, "_pixels", None)
        channels, height, width = shape
        picture = np.frombuffer(random.randbytes(channels * height * width), np.uint8).reshape(height, width, channels)
        row = np.zeros(shape, np.uint8)
        planes(picture, row)
        assert np.array_equal(row, picture.transpose(2, 0, 1))
        if channels == 1:
            planes(picture[:, :, 0], row)
            assert np.array_equal(row[0], picture[:, :, 0])


def test_planes_of_views_are_copied_too() -> None:
    picture = np.arange(5 * 6 * 3, dtype=np.uint8).reshape(5, 6, 3)[:, ::2]
    row = np.zeros((3, 5, 6), np.uint8)[:, :, ::2]
    planes(picture, row)
    assert np.array_equal(row, picture.transpose(2, 0, 1))


@pytest.mark.parametrize("compiled", [True, False])
@given(st.binary(max_size=40) | st.lists(st.sampled_from([0, 1, 255]), max_size=12).map(bytes), st.integers(0, 45))
def test_markers_are_what_no_zero_follows(compiled: bool, data: bytes, start: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if not compiled:
            patch.setattr(pixels, "_pixels", None)
        found = sum(data[at] == 255 and data[at + 1 : at + 2] != b"\0" for at in range(start, len(data)))
        assert jpeg_markers(data, start) == found


@needs_c
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("planes", (b"abc", bytearray(2), 1, 3)),
        ("planes", (b"ab", bytearray(3), 1, 3)),
        ("planes", (b"", bytearray(0), 0, 3)),
        ("planes", (b"", bytearray(0), 2**62, 4)),
    ],
)
def test_c_refuses_sizes_that_do_not_fit_the_memory(name: str, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match=r"picture|bytes"):
        getattr(pixels._pixels, name)(*arguments)


@needs_c
def test_c_writes_to_nothing_that_is_read_only() -> None:
    row: npt.NDArray[np.uint8] = np.zeros(1, np.uint8)
    row.flags.writeable = False
    with pytest.raises((ValueError, BufferError, TypeError)):
        pixels._pixels.planes(b"a", row, 1, 1)
