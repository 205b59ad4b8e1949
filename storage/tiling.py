"""The arithmetic of cutting d columns into tiles; no arrays, no I/O."""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tiling:
    """Cut ``size`` columns into tiles of ``tile`` columns, the last one possibly narrower.

    Parameters
    ----------
    size : int
        Columns in all, d.
    tile : int
        Columns a tile, t.
    """

    size: int
    tile: int

    def __post_init__(self) -> None:
        if self.size < 1 or self.tile < 1:
            raise ValueError(f"a tiling needs at least one column and one column a tile, not {self.size}, {self.tile}")

    def __len__(self) -> int:
        return (self.size + self.tile - 1) // self.tile

    def span(self, index: int) -> slice:
        """Return the columns of tile ``index``."""
        if not 0 <= index < len(self):
            raise IndexError(f"tile {index} of {len(self)}")
        return slice(index * self.tile, min((index + 1) * self.tile, self.size))

    def width(self, index: int) -> int:
        """Return how many columns tile ``index`` has."""
        span = self.span(index)
        return int(span.stop - span.start)

    def spans(self) -> Iterator[slice]:
        """Yield the columns of every tile in order."""
        return (self.span(index) for index in range(len(self)))

    def upper(self) -> Iterator[tuple[int, int]]:
        """Yield the pairs (i, j), i <= j, row by row: the upper tiles of a symmetric matrix."""
        return ((i, j) for i in range(len(self)) for j in range(i, len(self)))
