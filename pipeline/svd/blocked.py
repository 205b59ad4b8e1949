"""The blocked method: every eigenpair of a matrix that does not fit the memory, in two stages to a tridiagonal.

``S = Q1 B Q1.T`` with B a band (`band`), ``B = Q2 T Q2.T`` with T tridiagonal (`chase`), and ``T = V diag(LA) V.T`` by
divide and conquer (`tridiagonal`). Q1 and Q2 are kept as reflectors, V as the data of its merges, so that no d x d
matrix is ever in memory, and eigenvectors are made a slab of columns at a time: ``U[:, slab] = Q1 (Q2 V[:, slab])``.
"""

from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tilecov.storage.objects import Folder
from tilecov.storage.partials import Array, Partial

from .band import Commit, read_band, reduce_to_band
from .chase import tridiagonalize
from .chase_reflectors import Sweeps, apply
from .direct import SymmetricTiles
from .panels import Panels
from .tridiagonal import NEGLIGIBLE, TridiagonalSpectrum, decompose_tridiagonal

Record = Mapping[str, Any]

_NEGLIGIBLE = {torch.float32: 1e-8, torch.float64: NEGLIGIBLE}
"""What couples two eigenpairs of the tridiagonal by less than this part of it is left out: far below the rounding."""

_ROWS = 32  # of a slab, worked on at a time

_WAITING = 2
"""Groups of reflectors that are in memory to be written, while the chasing goes on."""


def group_of(width: int) -> int:
    """Return the sweeps of a group of the bulge chasing: half the band's width applies fastest."""
    return max(1, width // 2)


@dataclass(frozen=True)
class Blocked:
    """The decomposition of one matrix, its parts in a folder.

    Parameters
    ----------
    scratch : Folder
        Holds about one matrix of reflectors, and up to one matrix of tiles more while the band is made.
    size, width : int
        d, and b, the half-width of the band.
    dtype : torch.dtype
        float32 or float64: of the products with tiles and of U. What is small and decides is float64.
    device : torch.device
    """

    scratch: Folder
    size: int
    width: int
    dtype: torch.dtype
    device: torch.device

    def reduce(
        self,
        matrix: SymmetricTiles,
        budget: int,
        commit: Commit,
        committed: Mapping[str, Record],
        due: Callable[[], bool],
    ) -> None:
        """Reduce the matrix to a band; see `reduce_to_band`."""
        reduce_to_band(
            matrix, self.scratch.folder("band"), width=self.width, dtype=self.dtype, device=self.device,
            budget=budget, commit=commit, committed=committed, due=due,
        )  # fmt: skip

    def tridiagonalize(self, attempt: str) -> dict[str, Any]:
        """Reduce the band to a tridiagonal and decompose that; return the record that ``values`` and ``vectors`` take.

        Parameters
        ----------
        attempt : str
            A fresh folder name: what another attempt left does not matter.
        """
        partial, sweeps = self._partial(attempt), self._sweeps
        kept: list[dict[str, Any]] = []
        kind = np.float32 if self.dtype == torch.float32 else np.float64

        waiting: deque[Future[dict[str, Any]]] = deque()

        def write(number: int, rounded: Array) -> dict[str, Any]:
            return partial.write(f"reflectors-{number:05d}", rounded)

        def keep(number: int, reflectors: Array) -> None:
            if len(waiting) == _WAITING:
                kept.append(waiting.popleft().result())
            waiting.append(pool.submit(write, number, reflectors.astype(kind, copy=False)))

        with ThreadPoolExecutor(1, "tilecov-write") as pool:
            diagonal, off = tridiagonalize(read_band(self.scratch.folder("band")), keep, group=sweeps.group)
            kept += [future.result() for future in waiting]
        spectrum = decompose_tridiagonal(diagonal, off, _NEGLIGIBLE[self.dtype])
        tree = {name: partial.write(f"tree-{name}", vector) for name, vector in spectrum.arrays().items()}
        return {"attempt": attempt, "sweeps": kept, "tree": tree}

    def values(self, record: Record) -> torch.Tensor:
        """Return LA (d,), float64, descending."""
        return torch.from_numpy(self._partial(record["attempt"]).read(record["tree"]["values"]).copy()).flip(0)

    def spectrum(self, record: Record) -> TridiagonalSpectrum:
        """Return the eigendecomposition of the tridiagonal."""
        partial = self._partial(record["attempt"])
        return TridiagonalSpectrum.from_arrays({name: partial.read(found) for name, found in record["tree"].items()})

    def vectors(self, record: Record, spectrum: TridiagonalSpectrum, columns: slice) -> torch.Tensor:
        """Return the columns of U (d, w), eigenvalues descending, on the CPU."""
        partial = self._partial(record["attempt"])

        def load(number: int) -> Array:
            found = record["sweeps"][number]
            return partial.read(found.get("reflectors", found))  # runs of earlier versions kept another array beside it

        ascending = slice(self.size - columns.stop, self.size - columns.start)
        slab = spectrum.vectors(ascending, self.dtype, self.device, descending=True)
        apply(self._sweeps, load, slab)
        least = torch.finfo(slab.dtype).tiny ** (2 / 3)
        for rows in torch.split(slab, _ROWS):  # products of what is smaller would not be normal numbers, which are slow
            rows.copy_(torch.nn.functional.hardshrink(rows, least))
        Panels.open(self.scratch.folder("band")).apply(slab)
        return slab.cpu()

    @property
    def _sweeps(self) -> Sweeps:
        return Sweeps(self.size, max(1, self.width), group_of(self.width))

    def _partial(self, attempt: str) -> Partial:
        return Partial(self.scratch.folder(attempt))
