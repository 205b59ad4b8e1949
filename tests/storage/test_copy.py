"""Matrices are copied whatever their strides."""

import numpy as np
import pytest

from tilecov.storage.tiles import copy


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (128, 128), (129, 257), (300, 200)])
def test_a_copy_is_one_whatever_the_strides(shape: tuple[int, int]) -> None:
    whole = np.random.default_rng(0).random((2 * shape[1], 3 * shape[0])).astype(np.float32)
    for source in (whole[: shape[1], : shape[0]].T, whole[::2, ::3].T, whole.T[::3, ::2], np.ones(shape, np.float32)):
        target = np.zeros((shape[0], shape[1] + 3), np.float64)
        copy(target[:, 2:-1], source)
        np.testing.assert_array_equal(target[:, 2:-1], source)
        assert not target[:, [0, 1, -1]].any()
