"""Products of float32 matrices by a CPU's int8 matrix units, two to three times as fast as in float32.

Each number of a factor is cut into three signed bytes, ``x = 2**e (2**16 x_1 + 2**8 x_2 + x_3)``, with one exponent
``e`` for a column of a right factor (a row of a left one) over 512 numbers to sum. Products of bytes are summed
exactly in int32, those of one weight together, and the sums added up in float64: K. Ozaki, T. Ogita, S. Oishi, S. M.
Rump: Error-free transformations of matrix multiplication by using fast routines of matrix multiplication and its
applications. Numerical Algorithms 59, 2012; on integer units: H. Ootomo, K. Ozaki, R. Yokota: DGEMM on integer matrix
multiplication unit. IJHPCA 38, 2024. Of the nine products ``x_3 y_3`` is left out. What is lost lies below 2**-23 of
the largest number with the same exponent; that is less than what float32 loses while it adds up.

C (`_sliced.c`) does it, where there are such units: see `units`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import numpy.typing as npt
import torch

from .crew import Crew
from .memory import large_pages, span, stride
from .units import BLOCK, STRIP, STRIP_BYTES, blocks_of, strips_of

_ACROSS = 256
"""Columns that are worked on together."""
_SHARES = 4
"""Of each thread: on a busy machine one is later than the others."""


@dataclass(frozen=True)
class Slices:
    """A factor that was cut, or room for one: a right one (depth, count), or a left one (count, depth).

    Parameters
    ----------
    count, depth : int
        Columns (rows), and numbers to sum.
    data : (bytes,) uint8
        Tiles of 16 columns (rows) and 64 numbers, three after another for the first, the second and the third bytes.
    scales : (columns x blocks,) float64
        What the integers are multiples of.
    """

    count: int
    depth: int
    data: npt.NDArray[np.uint8]
    scales: npt.NDArray[np.float64]

    @classmethod
    def empty(cls, count: int, depth: int) -> "Slices":
        """Make room for a factor."""
        parts = strips_of(count) * blocks_of(depth)
        return cls(count, depth, large_pages(parts * STRIP_BYTES), np.empty(parts * STRIP))

    def part(self, start: int, stop: int) -> "Slices":
        """Return columns (rows) ``start``, a multiple of 16, to ``stop``, in the same memory."""
        first, last = start // STRIP * blocks_of(self.depth), strips_of(stop) * blocks_of(self.depth)
        data = self.data[first * STRIP_BYTES : last * STRIP_BYTES]
        return Slices(stop - start, self.depth, data, self.scales[first * STRIP : last * STRIP])


class Multiplier(Crew):
    """Cuts factors and multiplies them, on as many threads as torch has; a context manager that ends them.

    Parameters
    ----------
    functions : module
        What ``units`` returned.
    """

    def __init__(self, functions: ModuleType) -> None:
        self._functions = functions
        super().__init__("tilecov-slices", (large_pages(functions.ROOM) for _ in range(torch.get_num_threads())))

    def cut(self, factor: npt.NDArray[np.float32], slices: Slices, start: int = 0) -> None:
        """Cut rows of a right factor, which are rows ``start`` and so on of it all.

        Parameters
        ----------
        factor : (n, count) float32
            n ends a block of 512, or the factor.
        slices : Slices
            Room for all of the factor.
        start : int
            A multiple of 512.
        """
        rows, count = factor.shape
        end = start + rows
        if (count, start % BLOCK) != (slices.count, 0) or not (
            end == slices.depth or (rows % BLOCK == 0 and end < slices.depth)
        ):
            raise ValueError(
                f"{count} columns and rows {start} to {end} are no blocks of {slices.count} and {slices.depth}"
            )

        if min(factor.strides) <= 0:  # the same row again
            factor = np.ascontiguousarray(factor)
        memory = span(factor)

        def work(first: int, last: int) -> None:
            self._functions.cut(
                memory, stride(factor, 0), stride(factor, 1), rows, count, slices.data, slices.scales, slices.depth,
                start // BLOCK, first, last,
            )  # fmt: skip

        self._share(count, work)

    def turn(self, right: Slices, left: Slices | None = None) -> Slices:
        """Return the transpose of a right factor as a left one, in the same memory or in that of ``left``."""
        turned = Slices(right.count, right.depth, (left or right).data[: len(right.data)], right.scales)

        def work(first: int, last: int) -> None:
            self._functions.turn(right.part(first, last).data, turned.part(first, last).data)

        self._share(right.count, work)
        return turned

    def add(self, total: torch.Tensor, left: Slices, right: Slices) -> None:
        """Add ``left @ right`` to ``total`` (rows, columns), float64 on the CPU, in place."""
        if left.depth != right.depth or total.shape != (left.count, right.count):
            raise ValueError(
                f"({left.count}, {left.depth}) times ({right.depth}, {right.count}) is not {tuple(total.shape)}"
            )

        if total.dtype != torch.float64:
            raise ValueError(f"the total is {total.dtype}; products are added up in float64")
        numbers = total.numpy()
        if stride(numbers, 1) != 1 or stride(numbers, 0) < right.count:
            raise ValueError(f"the total's numbers are {numbers.strides} bytes apart; rows must lie in one piece")
        memory = span(numbers)

        def work(first: int, last: int) -> None:
            with self.room() as room:
                self._functions.multiply(
                    memory, stride(numbers, 0), left.data, left.scales, right.data, right.scales, left.count,
                    left.depth, right.count, first, last, room,
                )  # fmt: skip

        self._share(right.count, work)

    def _share(self, columns: int, work: Callable[[int, int], None]) -> None:
        """Do the work on all columns, some of them at a time on each thread."""
        step = -(-columns // (self.threads * _SHARES * _ACROSS)) * _ACROSS
        if columns < self.threads * step:
            step = -(-columns // (self.threads * STRIP)) * STRIP
        self.each(lambda first: work(first, min(first + step, columns)), range(0, columns, step))
