"""Products of matrices by the library that is quickest on this processor, and torch's number of threads."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch

from .openblas import quicker


class AddProduct(Protocol):
    """Sets ``total = keep * total + times * left @ right``, in place."""

    def __call__(
        self, total: torch.Tensor, left: torch.Tensor, right: torch.Tensor, *, times: int = 1, keep: int = 1
    ) -> None:
        """``total`` (n, m), ``left`` (n, k), ``right`` (k, m): one dtype, and where nothing is kept any numbers."""


@contextmanager
def quick_products(device: torch.device) -> Iterator[AddProduct]:
    """Give what adds products on ``device``, with as many threads as torch has.

    Where that is another library than torch's, torch has one thread meanwhile: threads of two libraries wait on the
    same cores for more to do (docs/decisions.md).
    """
    library = quicker() if device.type == "cpu" else None
    if library is None:
        yield _add_by_torch
        return
    with library.threads(), single_threaded():
        yield library.add_product


@contextmanager
def single_threaded() -> Iterator[int]:
    """Let torch use one thread in the whole process, and yield how many it used.

    Products of a few hundred rows take microseconds. Torch's threads wait for each other after each of them, which on a
    busy machine takes longer than the products, 10 times and more.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


def _add_by_torch(
    total: torch.Tensor, left: torch.Tensor, right: torch.Tensor, *, times: int = 1, keep: int = 1
) -> None:
    total.addmm_(left, right, alpha=times, beta=keep)
