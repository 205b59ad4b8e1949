"""The proof that a device multiplies exactly: what passes it, what does not, and which device is chosen."""

import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from tilecov.pipeline import device as module
from tilecov.pipeline.device import (
    InexactDeviceError,
    Kernel,
    Product,
    choose_device,
    choose_kernel,
    int8_product,
    int8_product_on_cpu,
    is_exact,
    kernels,
    rate_of,
)
from tilecov.pipeline.moments import Moments

CPU = torch.device("cpu")
Y = torch.arange(-128, 128, dtype=torch.float64)  # every value that a centred row has

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
DEVICES = [pytest.param("cpu"), pytest.param("cuda", marks=[pytest.mark.gpu, gpu])]


def kernel(product: Product, dtype: torch.dtype = torch.float32, *, grouped: bool = True) -> Kernel:
    return Kernel("for the test", CPU, dtype, product, grouped)


def exactly(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Multiply in float64, which keeps every sum of these integers."""
    return (left.to(torch.float64).T @ right.to(torch.float64)).to(torch.int64)


def significant(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Round to ``bits`` significant bits, as a narrower float does."""
    mantissa, exponent = torch.frexp(values.to(torch.float64))
    return torch.ldexp(torch.round(mantissa * 2**bits) / 2**bits, exponent)


def but(change: Callable[[torch.Tensor], torch.Tensor]) -> Product:
    """Return the exact product, changed."""
    return lambda left, right: change(exactly(left, right)).to(torch.int32)


def off_by_one(row: int, column: int) -> Product:
    def change(product: torch.Tensor) -> torch.Tensor:
        product[row, column] += 1
        return product

    return but(change)


def in_dtype(dtype: torch.dtype) -> Product:
    return lambda left, right: (left.to(dtype).T @ right.to(dtype)).to(torch.int32)


def raising(error: Exception) -> Product:
    def product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        raise error

    return product


EXACT = {
    "float64": in_dtype(torch.float64),
    "float32": in_dtype(torch.float32),
    "int64": in_dtype(torch.int64),
    "in two halves": lambda left, right: (exactly(left[::2], right[::2]) + exactly(left[1::2], right[1::2])).int(),
    "24 bits kept": but(lambda product: significant(product, 24)),
    "saturating where int32 does": but(lambda product: product.clamp(-(2**31), 2**31 - 1)),
}

INEXACT = {
    "bfloat16": in_dtype(torch.bfloat16),
    "float16": in_dtype(torch.float16),
    "23 bits kept": but(lambda product: significant(product, 23)),
    "11 bits kept": but(lambda product: significant(product, 11)),
    "last bit dropped": but(lambda product: product & ~1),
    "saturating at int16": but(lambda product: product.clamp(-(2**15), 2**15 - 1)),
    "saturating at 2**23": but(lambda product: product.clamp(-(2**23), 2**23)),
    "saturating one too early": but(lambda product: product.clamp(max=2**24 - 1)),
    "saturating below": but(lambda product: product.clamp(min=-(2**23))),
    "small factors lost": lambda left, right: exactly(left * (left.abs() > 1), right * (right.abs() > 1)).int(),
    "negative sums rounded down": but(lambda product: product - (product < 0).to(torch.int64)),
    "always zero": but(torch.zeros_like),
    "first entry off by one": off_by_one(0, 0),
    "last entry off by one": off_by_one(-1, -1),
    "one entry off by one": off_by_one(3, 141),
    "one row forgotten": lambda left, right: exactly(left[1:], right[1:]).int(),
    "single columns with one row": lambda left, right: (
        exactly(left[:1], right) if left.shape[1] == 1 else exactly(left, right)
    ),
    "no such operation": raising(NotImplementedError("not implemented for 'Char'")),
    "no such units": raising(RuntimeError("CUDA error: not supported")),
}


@pytest.mark.parametrize("product", EXACT.values(), ids=EXACT)
def test_an_exact_product_passes(product: Product) -> None:
    assert is_exact(kernel(product))


@pytest.mark.parametrize("product", INEXACT.values(), ids=INEXACT)
def test_an_inexact_product_does_not_pass(product: Product) -> None:
    assert not is_exact(kernel(product))


@pytest.mark.parametrize("bits", range(3, 12))
def test_rounded_factors_pass_where_they_lose_nothing(bits: int) -> None:
    """TF32 has 11 significant bits, bfloat16 8: both hold every integer up to 128, as even 7 bits do; fewer do not."""
    loses = not torch.equal(significant(Y, bits), Y)
    assert loses == (bits < 7)
    assert is_exact(kernel(lambda left, right: exactly(*(significant(y, bits) for y in (left, right))).int())) != loses


@pytest.mark.parametrize("keep", [2**24, 2**30])
def test_a_kernel_that_gets_blocks_of_any_length_is_proven_on_long_ones(keep: int) -> None:
    """Kernels that are not cut at 2**24 get up to 131,071 rows: what is exact below ``keep`` only must not pass."""

    def product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return exactly(left, right).clamp(-keep, keep).to(torch.int32)

    assert not is_exact(kernel(product, torch.int8, grouped=False))


def test_int8_units_pass() -> None:
    assert is_exact(kernel(int8_product, torch.int8, grouped=False))


ON_THIS_CPU = is_exact(kernels(CPU)[0])
INT8_PRODUCTS = [int8_product, *([int8_product_on_cpu] if ON_THIS_CPU else [])]


SHAPES = [(0, 1, 1), (1, 1, 1), (1, 3, 2), (7, 8, 8), (16, 16, 16), (17, 33, 5), (33, 31, 64), (1025, 9, 40)]


@pytest.mark.parametrize("product", INT8_PRODUCTS)
@pytest.mark.parametrize(("rows", "a", "b"), SHAPES)
def test_int8_products_of_any_shape_are_exact(rows: int, a: int, b: int, product: Product) -> None:
    both = torch.tensor(np.random.default_rng(rows).integers(-128, 128, (rows, a + b), np.int8))
    left, right = both[:, :a], both[:, a:]  # views, as tile columns are
    found = product(left, right)
    assert (found.shape, found.dtype) == ((a, b), torch.int32)
    assert torch.equal(found.to(torch.int64), exactly(left, right))


# The choice


@pytest.fixture
def precision() -> Iterator[None]:
    """Put torch's global precision back as it was."""
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("wanted", ["highest", "high", "medium"])
def test_the_chosen_kernel_is_exact_whatever_precision_a_program_set(wanted: str, device: str, precision: None) -> None:
    torch.set_float32_matmul_precision(wanted)
    chosen = choose_kernel(torch.device(device))
    assert (chosen.device.type, is_exact(chosen)) == (device, True)
    assert not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize("wanted", ["highest", "high", "medium"])
def test_the_choice_leaves_torch_able_to_tell_its_precision(wanted: str, precision: None) -> None:
    torch.set_float32_matmul_precision(wanted)
    choose_kernel(CPU)
    assert torch.get_float32_matmul_precision() in {"highest", wanted}  # torch.compile asks for it too


def test_the_faster_of_a_cpu_s_exact_kernels_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those that torch has: our own in C is not timed."""
    monkeypatch.setattr(module, "exact_functions", lambda: None)
    exact = [found for found in kernels(CPU) if is_exact(found)]
    for fastest in exact:
        monkeypatch.setattr(module, "rate_of", lambda found, best=fastest.name: float(found.name == best))
        assert choose_kernel(CPU) == fastest
    for found in exact:
        assert choose_kernel(CPU, found.name) == found
    assert choose_kernel(CPU, "of another machine") == exact[-1]


def test_a_rate_counts_two_operations_for_each_product() -> None:
    def product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        time.sleep(0.01)
        return exactly(left, right)

    assert 0 < rate_of(kernel(product), rows=4, width=8) <= 2 * 4 * 8 * 8 / 0.01


def test_a_device_without_an_exact_product_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "is_exact", lambda kernel: False)
    with pytest.raises(InexactDeviceError, match=r"cpu are not exact; use --device cpu"):
        choose_kernel(CPU)


def test_auto_is_a_device_of_this_machine() -> None:
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert choose_device("cpu") == CPU


@pytest.mark.parametrize("name", ["", "gpu", "CPU", "cuda:", "cuda:x", "cuda:-1", "nvidia", "auto "])
def test_a_name_of_no_device_lists_the_names(name: str) -> None:
    with pytest.raises(ValueError, match=r"unknown; choose auto, cpu, cuda or cuda:0"):
        choose_device(name)


@pytest.mark.parametrize("extra", [0, 7])
def test_a_missing_cuda_device_names_the_number_there_are(extra: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(ValueError, match=rf"cuda:{2 + extra}.* 2 CUDA devices; try --device cpu"):
        choose_device(f"cuda:{2 + extra}")


def test_cuda_without_a_number_needs_one_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match=r"'cuda'.* 0 CUDA devices"):
        choose_device("cuda")


@pytest.mark.parametrize("name", ["meta", "mps", "xpu", "privateuseone"])
def test_devices_that_tilecov_does_not_know_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"choose auto, cpu, cuda or cuda:0"):
        choose_device(name)


@pytest.mark.gpu
@gpu
def test_a_gpu_finds_the_same_digest() -> None:
    rows = np.random.default_rng(0).integers(0, 256, (9001, 700), np.uint8)
    on_cpu, on_gpu = (
        Moments.empty(700, 256).update(rows, choose_kernel(torch.device(name))) for name in ("cpu", "cuda")
    )
    assert on_cpu.digest() == on_gpu.digest()
