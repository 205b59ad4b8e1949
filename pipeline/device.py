"""Which device multiplies, and the proof that its products are exact."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch

from .bounds import INT32_ROWS, ROWS_ALWAYS_EXACT

Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


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
    """

    name: str
    device: torch.device
    dtype: torch.dtype
    product: Product
    grouped: bool


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


def choose_kernel(device: torch.device) -> Kernel:
    """Return the fastest kernel of ``device`` that passes the proof.

    Raises
    ------
    InexactDeviceError
        Where none does.
    """
    # Products in TF32 or bfloat16 may keep their sums short too, which the proof would refuse.
    torch.set_float32_matmul_precision("highest")
    kernels = [Kernel("float32", device, torch.float32, _float32_product, grouped=True)]
    if device.type == "cuda":
        kernels.insert(0, Kernel("int8", device, torch.int8, int8_product, grouped=False))
    for kernel in kernels:
        if is_exact(kernel):
            return kernel
    raise InexactDeviceError(f"matrix products on {device} are not exact; use --device cpu")


@cache
def kernel_of(device: str) -> Kernel:
    """Return the proven kernel of the device of this name; the proof runs once a process."""
    return choose_kernel(choose_device(device))


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
        tall = torch.full((INT32_ROWS, 16), -128)
        tall[-1, 1::2] = 1
        blocks.append(tall)
    for block in blocks:
        try:
            found = kernel.product(*(block.to(kernel.device, kernel.dtype) for _ in range(2))).cpu()
        except (RuntimeError, NotImplementedError):  # no int8 units on this device
            return False
        exact = block.to(torch.float64).T @ block.to(torch.float64)  # integers far below 2**53
        if not torch.equal(found.to(torch.float64), exact):
            return False
    return True


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
