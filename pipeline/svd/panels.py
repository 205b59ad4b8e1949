"""Panels of Householder reflectors: how one is made, how all are stored, and how their product is applied."""

import json
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from tilecov.storage.objects import Folder
from tilecov.storage.partials import DamagedTileError, Partial

from ..ahead import ahead
from ..blas import AddProduct, quick_products

_ROWS = 4096  # of a panel in one file
_FEW = 256  # rows of panels in float64 at a time, which take no new pages
_JOINED = 256  # columns of panels that are applied as one: products with fewer take more of their time for memory

_FORM = "panels.json"


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
    inverse = _gram(V)
    diagonal = inverse.diagonal() / 2
    inverse.triu_(1).diagonal().copy_(torch.where(diagonal == 0, 1, diagonal))
    identity = torch.eye(width, dtype=torch.float64, device=block.device)
    return V, torch.linalg.solve_triangular(inverse, identity, upper=True), R


@dataclass(frozen=True)
class Panels:
    """Q = Q_0 Q_1 ... of order d, with ``Q_k = I - V_k T_k V_k.T``, where V_k is zero in its first (k + 1) b rows.

    They are plain files, each with a checksum, since every slab of eigenvectors reads all of them.

    Parameters
    ----------
    folder : Folder
        Holds V_k in pieces of rows and T_k, and of each panel a record that is written last.
    size, width : int
        d and b.
    dtype : torch.dtype
        float32 or float64, of V_k; T_k is float64.
    """

    folder: Folder
    size: int
    width: int
    dtype: torch.dtype

    @classmethod
    def create(cls, scratch: Folder, *, size: int, width: int, dtype: torch.dtype) -> "Panels":
        """Make room for the panels of a matrix of order ``size``, or open it where it is there already."""
        panels = cls(scratch.folder("panels"), size, width, dtype)
        form = {"size": size, "width": width, "dtype": str(dtype).removeprefix("torch.")}
        panels.folder.write(_FORM, json.dumps(form).encode())
        return panels

    @classmethod
    def open(cls, scratch: Folder) -> "Panels":
        """Open the panels in ``scratch``; FileNotFoundError where there are none."""
        folder = scratch.folder("panels")
        form = json.loads(folder.read(_FORM))
        return cls(folder, form["size"], form["width"], getattr(torch, form["dtype"]))

    def __len__(self) -> int:
        return panel_count(self.size, self.width)

    def write(self, k: int, V: torch.Tensor, T: torch.Tensor) -> None:
        """Write V_k (n, b), without its zero rows, and T_k (b, b); the same panel again leaves the same files."""
        partial, values = Partial(self.folder), V.cpu().numpy()
        pieces = ((f"V-{k:05d}-{row:08d}", values[row : row + _ROWS]) for row in range(0, len(values), _ROWS))
        record = {
            "V": [partial.write(name, piece) for name, piece in pieces],
            "T": partial.write(f"T-{k:05d}", T.cpu().numpy()),
        }
        self.folder.write(_record(k), json.dumps(record).encode())

    def read(self, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return V_k (n, b), without its zero rows, and T_k (b, b); DamagedTileError where they are not as written."""
        try:
            record = json.loads(self.folder.read(_record(k)))
        except FileNotFoundError as error:
            raise DamagedTileError(f"{self.folder.path(_record(k))} is missing") from error
        partial = Partial(self.folder)
        # In torch's own memory: matrix products give the same bits only for memory aligned in the same way.
        V = torch.empty((self.size - (k + 1) * self.width, self.width), dtype=self.dtype)
        for number, piece in enumerate(record["V"]):
            V.numpy()[number * _ROWS : (number + 1) * _ROWS] = partial.read(piece)
        T = torch.empty((self.width, self.width), dtype=torch.float64)
        T.numpy()[:] = partial.read(record["T"])
        return V, T

    @property
    def _together(self) -> int:
        """Panels that are applied as one."""
        return max(1, _JOINED // self.width)

    def _joined(self, add_product: AddProduct) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield V and T of several panels as one, the last ones first; V is overwritten by the next.

        Each panel is orthogonal to float64; several as one are to the rounding of their own type, of ``V_1.T V_2``.

        ``(I - V_1 T_1 V_1.T) (I - V_2 T_2 V_2.T) = I - V T V.T`` with ``V = [V_1, V_2]`` and
        ``T = [[T_1, -T_1 V_1.T V_2 T_2], [0, T_2]]``.
        """
        panels = ahead(self.read(k) for k in range(len(self) - 1, -1, -1))
        room = torch.empty(self.size * self._together * self.width, dtype=self.dtype)
        crossed = torch.empty((self.width, self._together * self.width), dtype=self.dtype)
        for last in range(len(self), 0, -self._together):
            count = min(self._together, last)
            rows, columns = self.size - (last - count + 1) * self.width, count * self.width
            V, T = room[: rows * columns].view(rows, columns), torch.zeros((columns, columns), dtype=torch.float64)
            V[:columns].zero_()  # where the later ones do not begin yet
            for place in range(count - 1, -1, -1):
                one, triangle = next(panels)
                top, own = len(V) - len(one), slice(place * self.width, (place + 1) * self.width)
                V[top:, own] = one
                T[own, own] = triangle
                if place + 1 < count:
                    cross = crossed[:, : columns - own.stop]
                    add_product(cross, one.T, V[top:, own.stop :], keep=0)
                    T[own, own.stop :] = -triangle @ cross.double() @ T[own.stop :, own.stop :]
            yield V, T

    def apply(self, slab: torch.Tensor) -> None:
        """Replace ``slab`` by ``Q @ slab``, reading each panel once and applying some as one.

        Parameters
        ----------
        slab : torch.Tensor
            (d, w) of the panels' type, on any device. In memory are beside it 256 columns of panels, or one panel,
            their product with the slab in float64, and three panels more.
        """
        form = self._together * self.width, slab.shape[1]
        product, exact, turned = (slab.new_empty(form, dtype=kind) for kind in (slab.dtype, *2 * (torch.float64,)))
        with quick_products(slab.device) as add_product:
            for V, T in self._joined(add_product):
                on_device, count = V.to(slab.device), len(T)
                rest, small, double = slab[slab.shape[0] - len(V) :], product[:count], turned[:count]
                add_product(small, on_device.T, rest, keep=0)
                # The small product in float64 costs nothing and keeps T as it was made.
                add_product(double, T.to(slab.device), exact[:count].copy_(small), keep=0)
                add_product(rest, on_device, small.copy_(double), times=-1)


def _gram(V: torch.Tensor) -> torch.Tensor:
    """Return ``V.T @ V``, (b, b) float64, of a panel of any type."""
    total = torch.zeros((V.shape[1], V.shape[1]), dtype=torch.float64, device=V.device)
    for start in range(0, len(V), _FEW):
        rows = V[start : start + _FEW].double()
        total.addmm_(rows.T, rows)
    return total


def _record(k: int) -> str:
    return f"panel-{k:05d}.json"
