"""Panels of Householder reflectors: how one is made, how all are stored, and how their product is applied."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from tilecov.storage.objects import Folder
from tilecov.storage.tiles import TileMatrix, open_group

from ..ahead import ahead

_ROWS = 4096  # of a panel in one chunk


def panel_count(size: int, width: int) -> int:
    """Return how many panels of ``width`` columns take a matrix of order ``size`` to a band of that half-width."""
    return max(0, (size - 2) // width)  # one wherever two rows or more are left below the diagonal block


def factor(block: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return V, T and R: ``block = (I - V T V.T) @ R``, by Householder QR in the compact WY form.

    ``inv(T)`` is the upper triangle of ``V.T @ V`` with its diagonal halved (Joffrain, Low, Quintana-Orti, van de Geijn
    and Van Zee 2006), taken in float64 from V as it was rounded: so the reflectors are orthogonal to float64 whatever
    the type of V.

    Parameters
    ----------
    block : torch.Tensor
        (n, b), overwritten where its columns lie in one piece.

    Returns
    -------
    V : torch.Tensor
        (n, b) lower trapezoidal, the type of ``block``; the column of a reflector that changes nothing is zero.
    T : torch.Tensor
        (b, b) upper triangular, float64.
    R : torch.Tensor
        (min(n, b), b) upper trapezoidal.
    """
    rows, width = block.shape
    count = min(rows, width)
    packed, tau = torch.geqrf(block)
    R = packed[:count].triu()
    V = torch.zeros((rows, width), dtype=block.dtype, device=block.device)
    V[:, :count] = packed[:, :count]
    del packed
    V.tril_(-1)
    V.diagonal().copy_((tau != 0).to(V.dtype))
    V[:, :count] *= tau != 0
    inverse = torch.zeros((width, width), dtype=torch.float64, device=block.device)
    for start in range(0, rows, _ROWS):
        part = V[start : start + _ROWS].double()
        inverse.addmm_(part.T, part)
    diagonal = inverse.diagonal() / 2
    inverse.triu_(1).diagonal().copy_(torch.where(diagonal == 0, 1, diagonal))
    identity = torch.eye(width, dtype=torch.float64, device=block.device)
    return V, torch.linalg.solve_triangular(inverse, identity, upper=True), R


@dataclass(frozen=True)
class Panels:
    """Q = Q_0 Q_1 ... of order d, with ``Q_k = I - V_k T_k V_k.T``, where V_k is zero in its first (k + 1) b rows.

    Parameters
    ----------
    reflectors : TileMatrix
        (d, panels x b): V_k, without the tiles that are all zero.
    factors : TileMatrix
        (panels x b, b): T_k, float64.
    """

    reflectors: TileMatrix
    factors: TileMatrix

    @classmethod
    def create(cls, scratch: Folder, *, size: int, width: int, dtype: torch.dtype) -> "Panels":
        """Make room for the panels of a matrix of order ``size``, or open it where it is there already."""
        group = open_group(scratch, writable=True)
        count = max(1, panel_count(size, width))  # Zarr has no empty arrays
        kind = str(dtype).removeprefix("torch.")
        reflectors = TileMatrix.create(group, "reflectors", (size, count * width), (_ROWS, width), kind)
        return cls(reflectors, TileMatrix.create(group, "factors", (count * width, width), (width, width), "float64"))

    @classmethod
    def open(cls, scratch: Folder) -> "Panels":
        """Open the panels in ``scratch``; KeyError where there are none."""
        group = open_group(scratch)
        return cls(TileMatrix.open(group, "reflectors"), TileMatrix.open(group, "factors"))

    def __len__(self) -> int:
        return panel_count(self.reflectors.rows.size, self.factors.columns.size)

    def write(self, k: int, V: torch.Tensor, T: torch.Tensor) -> None:
        """Write V_k (n, b), without its zero rows, and T_k (b, b)."""
        rows = self.reflectors.rows
        first = rows.size - len(V)
        values = V.cpu().numpy()
        for i in range(first // rows.tile, len(rows)):
            span = rows.span(i)
            part = values[max(span.start - first, 0) : span.stop - first]
            if len(part) < rows.width(i):
                whole = torch.zeros((rows.width(i), V.shape[1]), dtype=V.dtype).numpy()
                whole[-len(part) :] = part
                part = whole
            self.reflectors.write(i, k, part)
        self.factors.write(k, 0, T.cpu().numpy())

    def read(self, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return V_k (n, b), without its zero rows, and T_k (b, b); MissingTileError where they were never written."""
        rows, width = self.reflectors.rows, self.factors.columns.size
        first = (k + 1) * width
        dtype = torch.float32 if self.reflectors.dtype.itemsize == 4 else torch.float64
        V = torch.empty((rows.size - first, width), dtype=dtype)
        for i in range(first // rows.tile, len(rows)):
            span = rows.span(i)
            V.numpy()[max(span.start - first, 0) : span.stop - first] = self.reflectors.read(i, k)[
                max(first - span.start, 0) :
            ]
        T = torch.empty((width, width), dtype=torch.float64)
        T.numpy()[:] = self.factors.read(k, 0)
        return V, T

    def _backwards(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return (self.read(k) for k in range(len(self) - 1, -1, -1))

    def apply(self, slab: torch.Tensor) -> None:
        """Replace ``slab`` by ``Q @ slab``, reading each panel once.

        Parameters
        ----------
        slab : torch.Tensor
            (d, w) of the panels' type, on any device; w columns beside it in memory are b x w numbers and two panels.
        """
        for V, T in ahead(self._backwards()):
            on_device = V.to(slab.device)
            rest = slab[slab.shape[0] - len(V) :]
            # The small product in float64 costs nothing and keeps T as it was made.
            rest.addmm_(on_device, (T.to(slab.device) @ (on_device.T @ rest).double()).to(slab.dtype), alpha=-1)
