"""Which device multiplies, and the proof that its products are exact."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from types import ModuleType

import numpy as np
import torch

from .bounds import INT32_ROWS, ORIGIN, ROWS_ALWAYS_EXACT
from .exact import ExactAdder
from .machine import best_of
from .units import exact_functions

Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

WHOLE_TILE = 1024
"""Columns of a tile that all threads have parts of."""
_NARROW = 8
"""Rows and columns below which a CPU's int8 products are padded: of a single one torch tells oneDNN wrong strides."""


@dataclass(frozen=True)
class Kernel:
    """A proven way to multiply blocks of centred uint8 rows.

    Parameters
    ----------
    name : str
    device : torch.device
    dtype : torch.dtype
        What the centred rows y = x - 128 are held as.
    product : callable
        (n, a), (n, b) of ``dtype`` -> (a, b) int32, the exact Y_a.T @ Y_b; valid until this thread's next product.
    grouped : bool
        Whether a block must be cut where a column's sum of squares would pass 2**24 (float32), or not (int8).
    functions : module, optional
        What makes rows ready once and adds their products to tiles where they lie; without it ``product`` is all.
    """

    name: str
    device: torch.device
    dtype: torch.dtype
    product: Product
    grouped: bool
    functions: ModuleType | None = None


class InexactDeviceError(RuntimeError):
    """The device's matrix product gave other integers than int64 arithmetic."""


def choose_device(wanted: str) -> torch.device:
    """Return the device that ``auto``, ``cpu``, ``cuda`` or ``cuda:N`` names.

    Raises
    ------
    ValueError
        Where the device does not exist on this machine.
    """
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise ValueError(f"device {wanted!r} is unknown; choose auto, cpu, cuda or cuda:0") from error
    found = torch.cuda.device_count()
    if device.type not in {"cpu", "cuda"}:
        raise ValueError(f"device {wanted!r} is not supported; choose auto, cpu, cuda or cuda:0")
    if device.type == "cuda" and (device.index or 0) >= found:
        raise ValueError(f"device {wanted!r} was asked for and this machine has {found} CUDA devices; try --device cpu")
    return device


def kernels(device: torch.device) -> list[Kernel]:
    """Return the ways to multiply on ``device``, proven or not, the one that is usually faster first."""
    functions = exact_functions() if device.type == "cpu" else None
    first = [] if functions is None else [kernel_in_c(functions)]
    on_matrix_units = int8_product if device.type == "cuda" else int8_product_on_cpu
    return [
        *first,
        Kernel("int8", device, torch.int8, on_matrix_units, grouped=False),
        Kernel("float32", device, torch.float32, _float32_product, grouped=True),
    ]


def kernel_in_c(functions: ModuleType) -> Kernel:
    """Return the way to multiply by the C functions of `_exact`."""

    def product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        with ExactAdder(functions, {}) as adder:
            return _product_by(adder, left, right)

    return Kernel("int8", torch.device("cpu"), torch.int8, product, grouped=False, functions=functions)


def _product_by(adder: ExactAdder, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    total = torch.zeros((left.shape[1], right.shape[1]), dtype=torch.int32)
    ready = {
        key: adder.pack(key, np.ascontiguousarray(factor.numpy()).view(np.uint8) ^ np.uint8(ORIGIN))
        for key, factor in enumerate((left, right))
    }
    adder.add([((0, 1), total)], ready)
    return total


def choose_kernel(device: torch.device, name: str = "", *, whole: bool = False) -> Kernel:
    """Return the fastest kernel of ``device`` that passes the proof, or the one of this name where it does.

    For whole products those that add to tiles where they lie, and make rows ready for many tiles, are left out.

    Processors without int8 instructions multiply int8 more slowly than float32, or not exactly, so on a CPU without
    matrix units two kernels are timed, for some milliseconds. The integers are the same whichever is chosen.

    Raises
    ------
    InexactDeviceError
        Where none does.
    """
    # Products in TF32 or bfloat16 may keep their sums short too, which the proof would refuse.
    torch.set_float32_matmul_precision("highest")
    among = [kernel for kernel in kernels(device) if not (whole and kernel.functions)]
    first = among[0]
    if first.functions is not None and name in {"", first.name} and is_exact(first):
        # Nothing else comes near matrix units, but float32 may to AVX2.
        alone = name or first.functions.chosen() == "amx"
        float32 = among[-1]
        if alone or rate_of(first, width=WHOLE_TILE) >= rate_of(float32) or not is_exact(float32):
            return first
        return float32
    exact = [kernel for kernel in among if is_exact(kernel)]
    if not exact:
        raise InexactDeviceError(f"matrix products on {device} are not exact; use --device cpu")
    named = [kernel for kernel in exact if kernel.name == name]
    if named or len(exact) == 1 or device.type == "cuda":
        return (named or exact)[0]
    return max(exact, key=rate_of)


def kernel_of(device: str, name: str = "") -> Kernel:
    """Return the proven kernel of the device of this name; proof and choice run once a process."""
    chosen = str(choose_device(device))
    usual = _kernel_of(chosen, "")
    return usual if name in {"", usual.name} else _kernel_of(chosen, name)


@cache
def product_kernel_of(device: str) -> Kernel:
    """Return the proven kernel of whole products; proof and choice run once a process."""
    return choose_kernel(choose_device(device), whole=True)


@cache
def _kernel_of(device: str, name: str) -> Kernel:
    return choose_kernel(torch.device(device), name)


@cache
def rate_of(kernel: Kernel, rows: int = ROWS_ALWAYS_EXACT, width: int = 512) -> float:
    """Measure how many operations a second ``kernel`` does, two for each product of values, once a process."""
    block = torch.ones((rows, width), dtype=kernel.dtype, device=kernel.device)
    if kernel.functions is None:
        seconds = best_of(2, lambda: float(kernel.product(block, block)[0, 0]))
    else:
        total = torch.zeros((width, width), dtype=torch.int32)
        with ExactAdder(kernel.functions, {}) as adder:
            ready = dict.fromkeys((0, 1), adder.pack(0, block.numpy().view(np.uint8)))  # once for a row of tiles
            seconds = best_of(2, lambda: adder.add([((0, 1), total)], ready))
    return 2.0 * rows * width**2 / seconds


def is_exact(kernel: Kernel, width: int = 256) -> bool:
    """Multiply worst-case blocks on the device and compare every entry with int64 arithmetic on the CPU.

    The blocks reach both ends of the range of sums (all -128: 2**24 exactly) and odd sums just below it, which any
    kernel with fewer than 24 bits of significand, or one that rounds its factors, gets wrong.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (ROWS_ALWAYS_EXACT, width)
    extremes = torch.full(shape, -128, dtype=torch.int64)
    odd = torch.randint(-128, 128, shape, generator=generator)
    large = torch.randint(120, 128, shape, generator=generator)
    large[:, ::2] *= -1
    blocks = [extremes, odd, large]
    if not kernel.grouped:  # its blocks may be as tall as an int32 tile holds
        tall = torch.full((INT32_ROWS, _NARROW), -128)
        tall[-1, 1::2] = 1
        blocks.append(tall)
    pairs = [(block, block) for block in blocks]
    # The last tile of a row may be a single column, and the gram of the rows is made of columns that lie one after
    # another: oneDNN's int8 product of a single column with others was seen to forget all rows but the first.
    pairs += [(odd[:, :some], odd[:, :others]) for some, others in ((1, width), (width, 1), (1, 1), (3, 5))]
    pairs += [(odd[:width, :rows].T, odd[:width, :rows].T[:, :7]) for rows in (width, 1)]
    if kernel.functions is None:
        return all(_is_product_exact(kernel, kernel.product, *pair) for pair in pairs)
    with ExactAdder(kernel.functions, {}) as adder:  # once: threads and memory take longer than the products
        return all(_is_product_exact(kernel, partial(_product_by, adder), *pair) for pair in pairs)


def _is_product_exact(kernel: Kernel, product: Product, left: torch.Tensor, right: torch.Tensor) -> bool:
    try:
        found = product(*_as(kernel.dtype, kernel.device, left, right)).cpu()
    except (RuntimeError, NotImplementedError):  # no int8 units on this device
        return False
    one, other = _as(torch.float64, torch.device("cpu"), left, right)
    return torch.equal(found.to(torch.float64), one.T @ other)  # integers far below 2**53


def _as(
    dtype: torch.dtype, device: torch.device, left: torch.Tensor, right: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    one = left.to(device, dtype)
    return one, one if right is left else right.to(device, dtype)


class _Scratch(threading.local):
    """Where a thread's products lie until the next one: fresh memory for each would cost page faults."""

    def __init__(self) -> None:
        self._kept = torch.empty(0)

    def of(self, device: torch.device, a: int, b: int) -> torch.Tensor:
        if self._kept.device != device or len(self._kept) < a * b:
            self._kept = torch.empty(a * b, device=device)
        return self._kept[: a * b].view(a, b)


_scratch = _Scratch()


def _float32_product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    product = torch.mm(left.T, right, out=_scratch.of(left.device, left.shape[1], right.shape[1]))
    return product.view(torch.int32).copy_(product)  # in place, value by value, while the cache still has them


def int8_product_on_cpu(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return (n, a) int8, (n, b) int8 -> (a, b) int32 by the CPU's int8 instructions (VNNI, AMX), through oneDNN."""
    if min(*left.shape, right.shape[1]) < _NARROW:
        return int8_product(left, right)
    out = _scratch.of(left.device, left.shape[1], right.shape[1]).view(torch.int32)
    return torch._int_mm(left.T, right, out=out)  # noqa: SLF001  (torch has no public name for it)


def int8_product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return (n, a) int8, (n, b) int8 -> (a, b) int32 by the device's int8 matrix units.

    They want rows and columns in multiples of 8 and more than 16 rows, so the factors are padded with zeros.
    """
    rows, (a, b) = len(left), (left.shape[1], right.shape[1])
    depth, width = max(32, -(-rows // 8) * 8), -(-b // 8) * 8
    height = max(32, -(-a // 8) * 8)
    padded_left = torch.nn.functional.pad(left, (0, height - a, 0, depth - rows))
    padded_right = torch.nn.functional.pad(right, (0, width - b, 0, depth - rows))
    return torch._int_mm(padded_left.T.contiguous(), padded_right)[:a, :b]  # noqa: SLF001  (torch has no public name for it)
