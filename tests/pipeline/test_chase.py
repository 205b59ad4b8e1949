"""Bulge chasing: T is similar to the band, Q is orthogonal, and applying the kept reflectors is multiplying by Q."""

from collections.abc import Callable, Iterator
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from compiled import NO_COMPILER, assert_sizes_are_checked
from hypothesis import given, settings
from hypothesis import strategies as st

from tilecov.pipeline.svd import kernels
from tilecov.pipeline.svd.chase import tridiagonalize
from tilecov.pipeline.svd.chase_reflectors import Numbers, Sweeps, apply

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(params=["avx512", "avx2", "plain", "not compiled"], autouse=True)
def every_kind_of_kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """All that this machine can run; and as where no compiler was."""
    compiled = kernels.compiled
    if request.param == "not compiled":
        monkeypatch.setattr(kernels, "compiled", None)
        yield
    elif compiled is None or not compiled.choose(request.param):
        pytest.skip(f"no such instructions here, or {NO_COMPILER}")
    else:
        yield
        any(compiled.choose(kind) for kind in ("avx512", "avx2", "plain"))


Matrix = npt.NDArray[np.float64]
Groups = dict[int, Matrix]


def random_band(width: int, size: int, seed: int = 0) -> Matrix:
    return np.random.default_rng(seed).standard_normal((width + 1, size))


def dense(band: Matrix) -> Matrix:
    size = band.shape[1]
    whole = np.zeros((size, size))
    for below in range(min(len(band), size)):
        rows = np.arange(below, size)
        whole[rows, rows - below] = whole[rows - below, rows] = band[below, : size - below]
    return whole


def eigenvalues(matrix: Matrix) -> Matrix:
    return torch.linalg.eigvalsh(torch.from_numpy(matrix)).numpy()


def chase(band: Matrix, group: int) -> tuple[Matrix, Matrix, Sweeps, Groups]:
    groups: Groups = {}
    diagonal, off = tridiagonalize(band, groups.__setitem__, group=group)
    sweeps = Sweeps(band.shape[1], max(1, len(band) - 1), group)
    assert list(groups) == list(range(len(sweeps)))
    assert [groups[number].shape for number in groups] == [sweeps.shape(number) for number in groups]
    return diagonal, off, sweeps, groups


def loading(groups: Groups, dtype: type = np.float64) -> Callable[[int], Numbers]:
    """Return how a group is loaded whose reflectors were rounded to ``dtype``."""

    def load(number: int) -> Numbers:
        kept = groups[number].astype(dtype)
        kept.flags.writeable = False  # as what is read from files
        return kept

    return load


def one_by_one(sweeps: Sweeps, groups: Groups) -> Matrix:
    """Q, made by one reflector after the other in the order in which they were made."""
    whole = np.eye(sweeps.size)
    for sweep in range(sweeps.total):
        number, place = divmod(sweep, sweeps.group)
        for step in range(sweeps.steps(sweep)):
            row = sweep + 1 + step * sweeps.reach
            part = whole[:, row : row + sweeps.reach]
            v = groups[number][step, place]
            assert not v[part.shape[1] :].any()
            v = v[: part.shape[1]]
            part -= np.outer(part @ v, v)
    return whole


def assert_decomposes(band: Matrix, group: int) -> None:
    diagonal, off, sweeps, groups = chase(band, group)
    whole, q = dense(band), one_by_one(sweeps, groups)
    t = np.diag(diagonal) + np.diag(off, 1) + np.diag(off, -1)
    scale = np.abs(whole).max() or 1.0
    assert np.linalg.norm((q @ (t / scale) @ q.T) - whole / scale) <= 1e-13 * max(1, np.linalg.norm(whole / scale))
    assert np.linalg.norm(q.T @ q - np.eye(len(q))) <= 1e-13 * len(q) ** 0.5
    slab = torch.eye(len(q), dtype=torch.float64)
    apply(sweeps, loading(groups), slab)
    assert np.linalg.norm(slab.numpy() - q) <= 1e-13 * len(q) ** 0.5


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 8, 13])
def test_every_width_of_a_small_matrix(size: int) -> None:
    for width in range(size + 2):
        for group in (1, 2, 3, size + 1):
            assert_decomposes(random_band(width, size), group)


@settings(max_examples=15)
@given(st.integers(1, 90), st.integers(0, 40), st.integers(1, 70), st.integers(0, 2**31))
def test_any_size_width_and_group(size: int, width: int, group: int, seed: int) -> None:
    assert_decomposes(random_band(width, size, seed), group)


def test_the_eigenvalues_are_lapacks() -> None:
    band = random_band(24, 333)
    diagonal, off, _, _ = chase(band, 12)
    wanted = eigenvalues(dense(band))
    found = eigenvalues(np.diag(diagonal) + np.diag(off, -1))
    assert np.abs(found - wanted).max() <= 1e-13 * np.abs(wanted).max()


@pytest.mark.parametrize("scale", [1e-300, 1e-150, 1e-30, 1e30, 1e150, 1e300])
def test_scale_does_not_matter(scale: float) -> None:
    assert_decomposes(random_band(6, 40) * scale, 4)


def _cases() -> dict[str, Matrix]:
    holes = random_band(5, 37)
    holes[:, 7:15] = 0
    holes[2:, 20] = 0
    identity, diagonal, tridiagonal = np.zeros((3, 6, 37))
    identity[0] = 1
    diagonal[0] = np.arange(37)
    tridiagonal[:2] = random_band(1, 37)
    far = np.zeros((6, 37))
    far[5] = 1
    graded = random_band(5, 37) * np.logspace(0, -200, 37)
    coupled = np.ones((6, 37))
    return {
        "zero": np.zeros((6, 37)),
        "identity": identity,
        "diagonal": diagonal,
        "tridiagonal": tridiagonal,
        "holes": holes,
        "only the last subdiagonal": far,
        "graded far below the smallest square": graded,
        "all ones": coupled,
    }


@pytest.mark.parametrize("name", _cases())
def test_degenerate_bands(name: str) -> None:
    assert_decomposes(_cases()[name], 3)


def test_what_is_tridiagonal_stays() -> None:
    band = _cases()["tridiagonal"]
    diagonal, off, _, groups = chase(band, 3)
    assert np.array_equal(diagonal, band[0])
    assert np.array_equal(off, band[1, :-1])
    assert not any(kept.any() for kept in groups.values())


def test_a_rank_of_one_remains() -> None:
    x = np.random.default_rng(1).standard_normal(9)
    band = np.stack([np.append(x[below:] * x[: 9 - below], np.zeros(below)) for below in range(9)])
    diagonal, off, _, _ = chase(band, 4)
    values = eigenvalues(np.diag(diagonal) + np.diag(off, -1))
    assert values == pytest.approx([0.0] * 8 + [x @ x], abs=1e-13 * (x @ x))


def test_what_lies_outside_the_matrix_is_not_read() -> None:
    band = random_band(4, 11)
    wanted = chase(band, 2)[:2]
    for below in range(1, 5):
        band[below, 11 - below :] = np.nan
    before = band.copy()
    found = chase(band, 2)[:2]
    assert np.array_equal(found[0], wanted[0])
    assert np.array_equal(found[1], wanted[1])
    assert np.array_equal(band, before, equal_nan=True)


def test_the_same_bits_again() -> None:
    band = random_band(16, 200)
    first, second = chase(band, 8), chase(band, 8)
    assert first[0].tobytes() + first[1].tobytes() == second[0].tobytes() + second[1].tobytes()
    assert all(np.array_equal(first[3][number], second[3][number]) for number in first[3])


@pytest.mark.parametrize(("width", "group"), [(16, 8), (16, 5), (30, 32)])
def test_a_float32_slab_is_as_good_as_its_digits(width: int, group: int) -> None:
    size = 300
    _, _, sweeps, groups = chase(random_band(width, size), group)
    exact, slab = torch.eye(size, dtype=torch.float64), torch.eye(size)
    apply(sweeps, loading(groups), exact)
    apply(sweeps, loading(groups, np.float32), slab)
    assert float((slab - exact).norm()) <= 2e-6 * size**0.5
    gram = slab.double().T @ slab.double()
    assert float((gram - torch.eye(size)).norm()) <= 1e-6 * size**0.5


def test_reflectors_rounded_to_float32_still_make_an_orthogonal_matrix() -> None:
    size = 150
    _, _, sweeps, groups = chase(random_band(12, size), 6)
    slab = torch.eye(size, dtype=torch.float64)
    apply(sweeps, loading(groups, np.float32), slab)
    assert float((slab.T @ slab - torch.eye(size)).norm()) <= 1e-12


def test_columns_of_a_slab_do_not_touch_each_other() -> None:
    _, _, sweeps, groups = chase(random_band(7, 60), 4)
    whole = torch.from_numpy(random_band(59, 60))
    halves = [whole[:, :23].clone(), whole[:, 23:].clone()]
    for slab in (whole, *halves):
        apply(sweeps, loading(groups), slab)
    assert torch.allclose(torch.cat(halves, dim=1), whole, rtol=0, atol=1e-13)


def test_the_groups_hold_half_the_matrix() -> None:
    sweeps = Sweeps(6075, 96, 48)
    total = sum(int(np.prod(sweeps.shape(number))) for number in range(len(sweeps)))
    assert 0.5 <= total / 6075**2 <= 0.52
    with pytest.raises(IndexError, match="group 127 of 127"):
        sweeps.shape(127)


@pytest.mark.parametrize("numbers", [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_sweeps_of_nothing_are_refused(numbers: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Sweeps(*numbers)


@pytest.mark.parametrize("band", [np.zeros(4), np.zeros((3, 0)), np.zeros((0, 3))])
def test_a_band_of_another_form_is_refused(band: Matrix) -> None:
    with pytest.raises(ValueError, match=r"shape \(b \+ 1, d\)"):
        tridiagonalize(band, lambda number, kept: None, group=1)


@pytest.mark.parametrize(("size", "width", "group"), [(3, 1, 1), (40, 3, 9), (131, 8, 20), (400, 16, 5), (90, 89, 64)])
def test_any_number_of_threads_gives_the_same_bits(size: int, width: int, group: int) -> None:
    band = random_band(width, size)
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            diagonal, off, sweeps, groups = chase(band, group)
            slab = torch.eye(size, dtype=torch.float64)
            apply(sweeps, loading(groups), slab)
            kept = b"".join(groups[number].tobytes() for number in groups)
            found.append(
                diagonal.tobytes() + off.tobytes() + kept + (slab.numpy().tobytes() if kernels.compiled else b"")
            )
    finally:
        torch.set_num_threads(1)
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("columns", [1, 15, 16, 17, 33, 100])
def test_a_slab_of_any_width_is_multiplied_by_the_same_matrix(columns: int, dtype: torch.dtype) -> None:
    size = 70
    _, _, sweeps, groups = chase(random_band(6, size), 5)
    given = torch.from_numpy(random_band(columns - 1, size).T).to(dtype)
    found = given.clone()
    apply(sweeps, loading(groups), found)
    wanted = torch.from_numpy(one_by_one(sweeps, groups)) @ given.double()
    assert float((found - wanted).abs().max()) <= 300 * torch.finfo(dtype).eps


def test_numbers_too_small_to_be_normal_do_no_harm() -> None:
    size = 60
    _, _, sweeps, groups = chase(random_band(6, size), 5)
    slab = torch.eye(size) * 1e-30
    slab[::2] = 0
    wanted = torch.from_numpy(one_by_one(sweeps, groups)) @ slab.double()
    apply(sweeps, loading(groups), slab)
    assert float((slab - wanted).abs().max()) <= 1e-36
    assert float(torch.tensor(1e-30) * torch.tensor(1e-12)) > 0  # which were not switched off for everybody


def _kernel_arguments() -> dict[str, list[Any]]:
    """Arguments that are sound, of each function: d = 20, b = 4, sweeps 0 to 6."""
    steps, group = 5, np.zeros((5, 2, 7, 4), np.float32)
    kept, couplings = np.zeros((steps, 6, 4), np.float32), np.zeros((steps, 2, 10), np.float32)
    return {
        "chase": [np.zeros(24 * 12), np.zeros((steps, 6, 4)), np.zeros(19, np.int64), 20, 4, 0, 6, 0, 1],
        "prepare": [kept, group, couplings, steps, 6, 4, 4],
        "apply": [group, couplings, np.zeros((20, 48), np.float32), steps, 2, 4, 1, 4],
    }


needs_c = pytest.mark.skipif(kernels.compiled is None, reason=NO_COMPILER)


@needs_c
@pytest.mark.parametrize("name", ["chase", "prepare", "apply"])
def test_c_refuses_sizes_that_are_not_those_of_its_buffers(name: str) -> None:
    call, sound = getattr(import_module("tilecov.pipeline.svd._chase"), name), _kernel_arguments()[name]
    numbers = (-1, 2**19 + 1, 2**40, 2**62)
    assert_sizes_are_checked(call, sound, numbers=numbers, says=r"must be|have 4 or 8|no rows")
    for place, argument in enumerate(sound):
        if isinstance(argument, np.ndarray) and (name, place) != ("apply", 2):  # a strip has any number of rows
            with pytest.raises(ValueError, match="bytes"):
                call(*sound[:place], np.concatenate([argument, argument]), *sound[place + 1 :])


@needs_c
def test_c_refuses_sweeps_that_a_matrix_does_not_have() -> None:
    call = import_module("tilecov.pipeline.svd._chase").chase
    matrix, kept, progress, *_ = _kernel_arguments()["chase"]
    for size, reach, first, count in ((20, 20, 0, 6), (20, 4, 13, 6), (20, 4, 18, 1)):
        with pytest.raises(ValueError, match="do not fit"):
            call(matrix, kept, progress, size, reach, first, count, 0, 1)


@needs_c
def test_a_thread_that_fails_does_not_leave_the_others_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    module = import_module("tilecov.pipeline.svd._chase")

    def failing(*arguments: Any) -> None:
        if arguments[-2] == 1:
            raise MemoryError("no room")
        module.chase(*arguments)

    monkeypatch.setattr(kernels, "compiled", SimpleNamespace(chase=failing))
    torch.set_num_threads(2)
    try:
        with pytest.raises(MemoryError, match="no room"):
            tridiagonalize(random_band(4, 300), lambda number, kept: None, group=40)
    finally:
        torch.set_num_threads(1)


def test_matrices_too_large_for_c_are_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "LARGEST", 30)
    monkeypatch.setattr(kernels, "compiled", kernels.compiled and SimpleNamespace())  # which has no functions
    assert_decomposes(random_band(4, 31), 3)


def test_torch_has_its_threads_again() -> None:
    def fail(number: int, kept: Matrix) -> None:
        raise OSError(number)

    torch.set_num_threads(2)
    try:
        with pytest.raises(OSError, match="0"):
            tridiagonalize(random_band(3, 9), fail, group=1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_entries_that_are_not_finite_are_refused(value: float) -> None:
    band = random_band(3, 9)
    band[2, 4] = value
    with pytest.raises(ValueError, match="not finite"):
        tridiagonalize(band, lambda number, kept: None, group=1)


def test_a_slab_or_a_group_of_another_shape_is_refused() -> None:
    _, _, sweeps, groups = chase(random_band(3, 9), 2)
    with pytest.raises(ValueError, match=r"shape \(9, w\)"):
        apply(sweeps, loading(groups), torch.zeros(8, 2))
    with pytest.raises(ValueError, match="was loaded"):
        apply(sweeps, lambda number: groups[number][:, :1], torch.zeros(9, 2))
