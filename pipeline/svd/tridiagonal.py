"""Eigendecomposition of a symmetric tridiagonal matrix whose eigenvectors are never stored.

Divide and conquer (Cuppen, A divide and conquer method for the symmetric tridiagonal eigenproblem, 1981; Gu and
Eisenstat, A divide-and-conquer algorithm for the symmetric tridiagonal eigenproblem, 1995): the matrix is torn into two
smaller ones plus a matrix of rank one, and the two decompositions are merged by a secular equation. Of the pieces'
eigenvectors a merge needs the first and the last row only. So all that is kept of it is what generates eigenvectors,
O(d log d) numbers over all merges, and any columns are made from these when they are wanted.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from ..blas import single_threaded
from .secular import Secular, decompose_update

Array = npt.NDArray[Any]
Take = Callable[[str, int], torch.Tensor]

NEGLIGIBLE = 8 * float(np.finfo(np.float64).eps)
"""What LAPACK (dlaed2) neglects, relative to the matrix."""

_LEAF = 96  # rows: smaller pieces are decomposed by LAPACK in less time than merging them takes
_BLOCK = 1 << 20  # numbers of a merge's eigenvectors generated at a time: 8 MiB at most
_ROWS = 512  # of a product at a time, written to the same memory each time
_ROTATED = 1 << 16  # numbers of rows that are rotated at a time: so few take no new pages
_CPU = torch.device("cpu")


class _Scratch(NamedTuple):
    """Memory that all merges use, (n,) each: pages that are new each time take longer than what is done on them."""

    moved: torch.Tensor  # the rows of a piece, in another order
    product: torch.Tensor  # `_ROWS` of their new rows
    generated: torch.Tensor  # what those are made with

    @staticmethod
    def sizes(size: int, columns: int) -> tuple[int, int, int]:
        """Return what ``columns`` eigenvectors of a matrix of ``size`` rows need: half of them are moved at a time."""
        return (size + 1) // 2 * columns, min(_ROWS, size) * columns, _BLOCK


@dataclass(frozen=True, slots=True)
class _Leaf:
    """The eigenvectors (n, n) float64 of a piece that was not torn."""

    matrix: torch.Tensor

    def choose(self, block: torch.Tensor, columns: torch.Tensor, _scratch: _Scratch) -> None:
        """Write the eigenvectors ``columns`` into ``block`` (n, w)."""
        block.copy_(self.matrix[:, columns])

    def turn(self, block: torch.Tensor, _scratch: _Scratch) -> None:
        """Multiply ``block`` (n, w) by the eigenvectors, in place."""
        block.copy_(self.matrix.to(block.device, block.dtype) @ block)

    def nodes(self) -> "Iterator[_Leaf | _Merge]":
        """Yield the leaf."""
        yield self


@dataclass(frozen=True, slots=True)
class _Rotations:
    """Plane rotations of rows, in order: all of shape (r,), int64 rows and float64 cosines and sines.

    They make chains: the second row of one may be the first row of the next, and of no other.
    """

    first: torch.Tensor
    second: torch.Tensor
    cosine: torch.Tensor
    sine: torch.Tensor

    def _waves(self) -> list[torch.Tensor]:
        """Return the first rotations of all chains, the second ones, and so on: those of a wave share no row."""
        if len(self.first) == 0:
            return []
        index = torch.arange(len(self.first))
        start = torch.ones_like(index, dtype=torch.bool)
        torch.ne(self.first[1:], self.second[:-1], out=start[1:])
        depth = index - torch.where(start, index, 0).cummax(dim=0).values
        return list(torch.split(depth.argsort(stable=True), depth.bincount().tolist()))

    def apply(self, block: torch.Tensor) -> None:
        """Multiply ``block`` (n, w) by the product of the rotations, in place."""
        for wave in reversed(self._waves()):
            self._rotate(block, wave, self.sine)

    def apply_transposed(self, block: torch.Tensor) -> None:
        """Multiply ``block`` (n, w) by the transpose of what :meth:`apply` multiplies by, in place."""
        for wave in self._waves():
            self._rotate(block, wave, -self.sine)

    def _rotate(self, block: torch.Tensor, wave: torch.Tensor, sines: torch.Tensor) -> None:
        for some in torch.split(wave, max(1, _ROTATED // max(1, block.shape[1]))):
            first, second = self.first[some].to(block.device), self.second[some].to(block.device)
            cosine = self.cosine[some, None].to(block.device, block.dtype)
            sine = sines[some, None].to(block.device, block.dtype)
            one, other = block[first], block[second]
            block[first] = cosine * one - sine * other
            block[second] = sine * one + cosine * other


@dataclass(frozen=True, slots=True)
class _Merge:
    """How the eigenvectors of two neighbouring pieces combine.

    Parameters
    ----------
    left, right : _Leaf or _Merge
    cut : int
        Rows of the left piece.
    order : torch.Tensor
        (n,) int64: those eigenvectors of the pieces that take part in the secular equation, then the others.
    places : torch.Tensor
        (n,) int64: where the roots of the equation, and then the values that took no part, come in ascending order.
    rotations : _Rotations
        Of the pieces' eigenvectors, so that of two with nearly the same value only one takes part.
    secular : Secular
    """

    left: "_Leaf | _Merge"
    right: "_Leaf | _Merge"
    cut: int
    order: torch.Tensor
    places: torch.Tensor
    rotations: _Rotations
    secular: Secular

    def choose(self, block: torch.Tensor, columns: torch.Tensor, scratch: _Scratch) -> None:
        """Write the eigenvectors ``columns`` into ``block`` (n, w); ``scratch`` has room for the larger piece."""
        sources = self.places.argsort()[columns].to(block.device)
        order, secular = self.order.to(block.device), self.secular.to(block.device)
        block.zero_()
        others = (sources >= len(secular)).nonzero()[:, 0]
        block[order[sources[others]], others] = 1
        roots = (sources < len(secular)).nonzero()[:, 0]
        secular = secular.columns(sources[roots])
        scales = secular.scales.to(block.dtype)
        for rows, part in secular.unscaled(scratch.generated):
            wide = block.new_zeros((len(part), block.shape[1]))
            wide[:, roots] = part.div_(scales)
            block[order[rows]] = wide
        self._descend(block, scratch)

    def turn(self, block: torch.Tensor, scratch: _Scratch) -> None:
        """Multiply ``block`` (n, w) by the eigenvectors, in place."""
        order, secular = self.order.to(block.device), self.secular.to(block.device)
        moved = scratch.moved[: block.numel()].view(block.shape)
        torch.index_select(block, 0, self.places.to(block.device), out=moved)
        block[order[len(secular) :]] = moved[len(secular) :]
        moved = moved[: len(secular)].div_(secular.scales[:, None].to(block.dtype))
        for rows, part in secular.unscaled(scratch.generated, _ROWS):
            product = scratch.product[: len(part) * block.shape[1]].view(len(part), block.shape[1])
            block[order[rows]] = torch.mm(part, moved, out=product)
        self._descend(block, scratch)

    def _descend(self, block: torch.Tensor, scratch: _Scratch) -> None:
        self.rotations.apply(block)
        for child, part in ((self.left, block[: self.cut]), (self.right, block[self.cut :])):
            # What took no part in a merge is an eigenvector of one piece, and nothing is to be done for the other.
            live = _nonzero(part)
            if len(live) == part.shape[1]:
                child.turn(part, scratch)
            elif len(live):
                some = part[:, live]
                child.turn(some, scratch)
                part[:, live] = some

    def vectors(self) -> dict[str, torch.Tensor]:
        """Return everything but the pieces, and how many rotations and roots there are."""
        named = {
            field.name: getattr(part, field.name) for part in (self.rotations, self.secular) for field in fields(part)
        }
        counts = {"turns": torch.tensor([len(self.rotations.first)]), "roots": torch.tensor([len(self.secular)])}
        return named | counts | {"order": self.order, "places": self.places}

    def nodes(self) -> "Iterator[_Leaf | _Merge]":
        """Yield all leaves and merges below, and then this one."""
        yield from self.left.nodes()
        yield from self.right.nodes()
        yield self


def _nonzero(block: torch.Tensor) -> torch.Tensor:
    """Return which columns have a number other than 0, ascending."""
    live = block[:: max(1, len(block) // 8)].any(dim=0)  # a column that is not empty is seldom empty in all of these
    rest = live.logical_not().nonzero()[:, 0]
    live[rest] = block[:, rest].any(dim=0)
    return live.nonzero()[:, 0]


@dataclass(frozen=True, slots=True)
class TridiagonalSpectrum:
    """The eigendecomposition of a symmetric tridiagonal T (d, d), its eigenvectors made when they are wanted.

    Parameters
    ----------
    values : array
        (d,) float64, ascending.
    root : tree of merges
    """

    values: npt.NDArray[np.float64]
    root: _Leaf | _Merge

    def vectors(
        self, columns: slice, dtype: torch.dtype, device: torch.device = _CPU, *, descending: bool = False
    ) -> torch.Tensor:
        """Return the eigenvectors ``columns`` (d, w) of T.

        At most 2 d^2 w operations, nearly all in products of matrices, and fewer the more was negligible. Memory:
        about 2.5 times that of the result, and 50 MiB. Threads may call it at the same time.

        Parameters
        ----------
        columns : slice
            Without a step.
        dtype : torch.dtype
            float64 or float32, of the result and of the products; distances between eigenvalues are float64 always.
        device : torch.device
            Where the products are done and the result lies; it must have float64.
        descending : bool
            Whether the last one of them comes first.

        Raises
        ------
        ValueError
            Where ``columns`` has a step.
        """
        start, stop, step = columns.indices(len(self.values))
        if step != 1:
            raise ValueError(f"eigenvectors are made for consecutive columns, not for every {step} of them")
        stop = max(start, stop)
        block = torch.empty((len(self.values), stop - start), dtype=dtype, device=device)
        scratch = _Scratch(*(block.new_empty(size) for size in _Scratch.sizes(*block.shape)))
        chosen = torch.arange(start, stop)
        self.root.choose(block, chosen.flip(0) if descending else chosen, scratch)
        return block

    def arrays(self) -> dict[str, Array]:
        """Return all of it as vectors, O(d log d) numbers, which :meth:`from_arrays` takes."""
        merges = [node.vectors() for node in self.root.nodes() if isinstance(node, _Merge)]
        leaves = [node.matrix.flatten() for node in self.root.nodes() if isinstance(node, _Leaf)]
        joined = {name: torch.cat([merge[name] for merge in merges]) for name in (merges[0] if merges else ())}
        joined["leaves"] = torch.cat(leaves)
        joined["leaf"] = torch.tensor([_LEAF])
        return {"values": self.values} | {name: vector.numpy() for name, vector in joined.items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array]) -> "TridiagonalSpectrum":
        """Return what :meth:`arrays` was called on."""
        taken = dict.fromkeys(arrays, 0)

        def take(name: str, count: int) -> torch.Tensor:
            start = taken[name]
            taken[name] += count
            return torch.tensor(arrays[name][start : start + count])

        values = np.asarray(arrays["values"], np.float64)
        return cls(values, _read(take, len(values), int(arrays["leaf"][0])))


def _read(take: Take, size: int, leaf: int) -> _Leaf | _Merge:
    """Return the tree of ``size`` rows from vectors, of which ``take`` hands out the next numbers of a name."""
    if size <= leaf:
        return _Leaf(take("leaves", size * size).reshape(size, size))
    left, right = _read(take, size // 2, leaf), _read(take, size - size // 2, leaf)
    turns, roots = int(take("turns", 1)), int(take("roots", 1))
    rotations = _Rotations(*(take(field.name, turns) for field in fields(_Rotations)))
    secular = Secular(*(take(field.name, roots) for field in fields(Secular)))
    return _Merge(left, right, size // 2, take("order", size), take("places", size), rotations, secular)


def decompose_tridiagonal(
    diagonal: npt.NDArray[np.floating[Any]], off: npt.NDArray[np.floating[Any]], negligible: float = NEGLIGIBLE
) -> TridiagonalSpectrum:
    """Decompose the symmetric tridiagonal T (d, d), in float64, O(d^2) time and O(d log d) memory.

    Parameters
    ----------
    diagonal : array
        (d,).
    off : array
        (d - 1,), beside the diagonal.
    negligible : float
        What a merge may neglect, relative to T's largest entry. Eigenvectors stay orthogonal to rounding whatever it
        is; T's residual grows to about its multiple by sqrt(d). For float32, 1e-8 loses nothing and saves most of the
        work where many eigenvalues are small.

    Raises
    ------
    ValueError
        Where the lengths do not fit, or a number is not finite.
    """
    if len(diagonal) < 1 or len(off) != len(diagonal) - 1:
        raise ValueError(f"a tridiagonal matrix of d rows takes d and d - 1 numbers, not {len(diagonal)}, {len(off)}")
    largest = float(np.maximum(np.abs(diagonal).max(), np.abs(off).max(initial=0)))  # NaN where any number is
    if not np.isfinite(largest):
        raise ValueError("a tridiagonal matrix with numbers that are not finite has no eigenvalues")
    scale = largest or 1.0
    scaled, beside = (torch.from_numpy(np.asarray(part, np.float64) / scale) for part in (diagonal, off))
    with single_threaded():
        piece = _decompose(scaled, beside, negligible)
    return TridiagonalSpectrum(piece.values.numpy() * scale, piece.node)


@dataclass(frozen=True, slots=True)
class _Piece:
    """A decomposed piece: its values (n,), ascending, and the first and the last row (2, n) of its eigenvectors."""

    node: _Leaf | _Merge
    values: torch.Tensor
    edges: torch.Tensor


def _decompose(diagonal: torch.Tensor, off: torch.Tensor, negligible: float) -> _Piece:
    """Decompose a piece; its diagonal is overwritten."""
    if len(diagonal) <= _LEAF:
        values, vectors = torch.linalg.eigh(torch.diag(diagonal) + torch.diag(off, 1) + torch.diag(off, -1))
        return _Piece(_Leaf(vectors.contiguous()), values, vectors[[0, -1]])
    cut = len(diagonal) // 2
    torn = float(off[cut - 1])
    diagonal[cut - 1 : cut + 1] -= abs(torn)
    left = _decompose(diagonal[:cut], off[: cut - 1], negligible)
    right = _decompose(diagonal[cut:], off[cut:], negligible)
    return _merge(left, right, torn, negligible)


def _merge(left: _Piece, right: _Piece, torn: float, negligible: float) -> _Piece:
    """Merge two pieces between which ``torn`` stood beside the diagonal."""
    rho = 2 * abs(torn)
    z = torch.cat([left.edges[1], math.copysign(1, torn) * right.edges[0]]) / 2**0.5
    values, ascending = torch.cat([left.values, right.values]).sort(stable=True)
    poles, z, kept, rotations = _deflate(values, z[ascending], rho, ascending, negligible)
    edges = torch.zeros((len(values), 2), dtype=torch.float64)
    edges[: len(left.values), 0], edges[len(left.values) :, 1] = left.edges[0], right.edges[1]
    rotations.apply_transposed(edges)
    order = torch.cat([ascending[kept], ascending[~kept]])
    secular, turned = decompose_update(poles[kept], z[kept], rho, edges[ascending[kept]].T)
    values, sources = torch.cat([secular.values, poles[~kept]]).sort(stable=True)
    edges = torch.cat([turned, edges[ascending[~kept]].T], dim=1)[:, sources]
    node = _Merge(left.node, right.node, len(left.values), order, sources.argsort(), rotations, secular)
    return _Piece(node, values, edges)


def _deflate(
    poles: torch.Tensor, z: torch.Tensor, rho: float, rows: torch.Tensor, negligible: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, _Rotations]:
    """Take out what needs no secular equation (LAPACK's dlaed2).

    An entry of z that is negligible leaves its pole an eigenvalue. Of two poles that are nearly the same, a rotation
    makes one entry of z vanish, and what it puts beside the diagonal is negligible.

    Returns
    -------
    poles, z : torch.Tensor
        (n,) float64, as rotated.
    kept : torch.Tensor
        (n,) bool, what the secular equation is to be solved for.
    rotations : _Rotations
        Of ``rows`` (n,).
    """
    kept = rho * z.abs() > negligible
    heavy = kept.nonzero()[:, 0]
    one, other = z[heavy[:-1]], z[heavy[1:]]
    left_over = poles[heavy].diff() * (one * other).abs() / (one.square() + other.square())
    found = []
    if (left_over <= negligible).any():  # else there is nothing to rotate, and the loop would only find that out
        value, weight = poles.tolist(), z.tolist()
        for first, second in pairwise(heavy.tolist()):
            norm = math.hypot(weight[first], weight[second])
            cosine, sine = weight[second] / norm, -weight[first] / norm
            low, high = value[first], value[second]
            if abs((high - low) * cosine * sine) <= negligible:
                weight[first], weight[second] = 0.0, norm
                value[first] = low * cosine**2 + high * sine**2
                value[second] = low * sine**2 + high * cosine**2
                found.append((first, second, cosine, sine))
        poles, z = torch.tensor(value, dtype=torch.float64), torch.tensor(weight, dtype=torch.float64)
    firsts, seconds, cosines, sines = zip(*found, strict=True) if found else ((), (), (), ())
    first, second = torch.tensor(firsts, dtype=torch.int64), torch.tensor(seconds, dtype=torch.int64)
    kept[first] = False
    angles = (torch.tensor(numbers, dtype=torch.float64) for numbers in (cosines, sines))
    return poles, z, kept, _Rotations(rows[first], rows[second], *angles)
