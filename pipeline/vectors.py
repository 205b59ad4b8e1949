"""Eigenvectors as the certificate takes them: a few slabs at a time, their products added up in float64."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy.typing as npt
import torch

from tilecov.storage.tiling import Tiling

from .blas import quick_products

Array = npt.NDArray[Any]
Slabs = Callable[[], Iterator[tuple[slice, Array]]]
"""Yields (rows, (n, k) values) of U from the first row to the last, anew at each call, in steps of the tile."""

_STRIP = 1 << 15
"""Float64 numbers that are worked on at a time: they stay in a core's second cache, and torch takes one thread for
them, while those of another library may still be waiting for more."""


class Vectors:
    """U (d, k): held in memory where there is room for it, and read anew each time where there is not.

    Parameters
    ----------
    slabs : callable
        What reads U.
    size, rank : int
        d and k.
    budget : int
        Bytes for U, or else for bands of what is made of it.
    beside : int
        Bytes of the budget that must be left where U is held.
    """

    def __init__(self, slabs: Slabs, size: int, rank: int, budget: int, beside: int = 0) -> None:
        self._slabs, self._rank = slabs, rank
        self.size = size
        """Rows of U, d."""
        self._held = self._hold(budget - beside)
        self.left = budget - (self._held.nbytes if self._held is not None else 0)
        """Bytes of the budget that U does not take."""

    @property
    def is_held(self) -> bool:
        """Whether U is in memory, so that going over it again costs nothing."""
        return self._held is not None

    def groups(self, count: int) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield ``count`` slabs at a time as (rows, values), each valid until the next."""
        if self._held is not None:
            yield from ((rows, self._held[rows]) for rows in Tiling(self.size, self._step * count).spans())
            return
        first, buffer = 0, torch.empty(0)
        for rows, values in self._slabs():
            if not len(buffer):
                buffer = _like(values, min(count * len(values), self.size), self._rank)
            filled = buffer[: rows.stop - first]
            filled[rows.start - first :].numpy()[:] = values
            if len(filled) == len(buffer) or rows.stop == self.size:
                yield slice(first, rows.stop), filled
                first = rows.stop

    def _hold(self, budget: int) -> torch.Tensor | None:
        held = torch.empty(0)
        for rows, values in self._slabs():
            if not rows.start:
                if self.size * self._rank * values.itemsize > budget:
                    return None
                held, self._step = _like(values, self.size, self._rank), len(values)
            held[rows].numpy()[:] = values
        return held


def _like(values: Array, rows: int, columns: int) -> torch.Tensor:
    """Return room for (rows, columns) numbers of the dtype of ``values``."""
    return torch.empty((rows, columns), dtype=torch.from_numpy(values[:0].copy()).dtype)


class Room:
    """Memory for one array after another: what is taken anew each time has to be cleared each time."""

    def __init__(self) -> None:
        self._buffer = torch.empty(0)

    def take(self, rows: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
        """Return (rows, columns) numbers, whatever they are, which end the array that was taken before."""
        if self._buffer.dtype != dtype or self._buffer.numel() < rows * columns:
            self._buffer = torch.empty(0)  # frees the smaller one before there is another
            self._buffer = torch.empty(rows * columns, dtype=dtype)
        return self._buffer[: rows * columns].view(rows, columns)


def multiply(left: torch.Tensor, right: torch.Tensor, room: Room) -> torch.Tensor:
    """Return ``left @ right`` in their own precision, by the library that is quickest; ``room`` is used for it."""
    product = room.take(len(left), right.shape[1], right.dtype)
    with quick_products(product.device) as add_product:
        add_product(product, left, right, keep=0)
    return product


def add(total: torch.Tensor, product: torch.Tensor) -> None:
    """Add ``product`` to ``total``, float64, in place."""
    for rows in strips(total):
        total[rows].add_(product[rows])


def sum_over(
    product: torch.Tensor, total: torch.Tensor | None, measure: Callable[[torch.Tensor, slice], float]
) -> float:
    """Return the sum of ``measure(values, rows)`` over a few rows at a time of ``total + product``, in float64.

    No more of the sum is ever made, and it is worked on while a core's cache holds it. ``measure`` may overwrite its
    values, and ``product`` may be overwritten too.
    """
    found = 0.0
    for rows in strips(product):
        values = product[rows].double()
        found += measure(values if total is None else values.add_(total[rows]), rows)
    return found


def strips(matrix: torch.Tensor) -> Iterator[slice]:
    """Yield the rows of ``matrix`` a few at a time: torch makes a whole copy of what it changes the precision of."""
    return Tiling(len(matrix), max(1, _STRIP // max(1, matrix.shape[1]))).spans()
