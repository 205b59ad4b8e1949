"""The reflectors of the bulge chasing: how they are cut into groups, and their product applied to a slab.

A reflector is kept as a v of norm sqrt(2), so that it is ``H = I - v v.T`` and no second number is needed; v = 0 is the
identity. Step k of sweep s acts on the rows ``[s + 1 + k b, s + 1 + (k + 1) b)``.
"""

import math
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..blas import single_threaded
from .kernels import compiled_for

Numbers = npt.NDArray[Any]

_COUPLINGS = 10
"""Numbers that go with four reflectors in `_chase.c`."""
_LOADED = 32 << 20
"""Bytes of reflectors that are applied to a strip at a time; while they are, as many are loaded."""


@dataclass(frozen=True, slots=True)
class Sweeps:
    """How the reflectors of the bulge chasing are cut into groups of consecutive sweeps.

    All groups together hold about d^2 / 2 numbers.

    Parameters
    ----------
    size : int
        Rows of the matrix, d.
    width : int
        Half-width of the band, b: how many subdiagonals it has.
    group : int
        Sweeps a group, the last group possibly fewer. Half of ``width`` applies fastest, powers of 2 above all.

    Raises
    ------
    ValueError
        Where one of them is below 1.
    """

    size: int
    width: int
    group: int

    def __post_init__(self) -> None:
        if min(self.size, self.width, self.group) < 1:
            raise ValueError(
                f"sweeps need a size, a width and a group of at least 1, not {self.size}, {self.width}, {self.group}"
            )

    def __len__(self) -> int:
        return (self.total + self.group - 1) // self.group

    @property
    def reach(self) -> int:
        """Rows of a reflector: ``width``, or fewer where the whole matrix has fewer below its diagonal."""
        return max(1, min(self.width, self.size - 1))

    @property
    def total(self) -> int:
        """Sweeps in all; a band that is tridiagonal already needs none."""
        return max(0, self.size - 2) if self.reach > 1 else 0

    def steps(self, sweep: int) -> int:
        """Return how many reflectors ``sweep`` has."""
        return (self.size - 3 - sweep) // self.reach + 1

    def shape(self, number: int) -> tuple[int, int, int]:
        """Return the shape of group ``number``: (steps, sweeps, rows); the steps that a sweep does not have are 0."""
        if not 0 <= number < len(self):
            raise IndexError(f"group {number} of {len(self)}")
        first = number * self.group
        return self.steps(first), min(self.group, self.total - first), self.reach


def apply(sweeps: Sweeps, load: Callable[[int], Numbers], slab: torch.Tensor) -> None:
    """Replace ``slab`` by ``Q slab``, where ``B = Q T Q.T`` is what ``tridiagonalize`` did.

    The groups are loaded once each, the last one first, while what was loaded before is being applied. Each of torch's
    threads has its own columns of the slab; one slab at a time in a process. On a CPU where C was compiled, 2 d^2 w
    operations, and in memory are 64 MiB of groups or a quarter of the slab, three groups more, and d x 192 bytes a
    thread, but no more than the slab; elsewhere 3 d^2 w operations, and two groups, about 4 times each.

    Parameters
    ----------
    sweeps : Sweeps
        As the reflectors were made.
    load : callable
        Returns group ``number`` as ``keep`` was given it, in any floating dtype.
    slab : torch.Tensor
        (d, w), float32 or float64, on any device; its rows contiguous. 500 columns a thread use the machine well.

    Raises
    ------
    ValueError
        Where the slab or a group has another shape.
    """
    if slab.ndim != 2 or len(slab) != sweeps.size:
        raise ValueError(f"a slab has shape ({sweeps.size}, w), one of {tuple(slab.shape)} was given")

    dtype = str(slab.dtype).removeprefix("torch.")

    def loaded(number: int) -> Numbers:
        kept = load(number)
        if kept.shape != sweeps.shape(number):
            raise ValueError(f"group {number} has shape {sweeps.shape(number)}, one of {kept.shape} was loaded")
        return kept.astype(dtype, order="C", copy=False)

    if not len(sweeps):
        return
    with single_threaded() as threads:
        compiled = compiled_for(sweeps.size) if slab.device.type == "cpu" else None
        if compiled is not None:
            _apply_to_strips(compiled, sweeps, loaded, slab, threads, dtype)
        else:
            _apply_blocks(sweeps, loaded, slab, threads if slab.device.type == "cpu" else 1)


def _apply_to_strips(
    compiled: ModuleType, sweeps: Sweeps, load: Callable[[int], Numbers], slab: torch.Tensor, threads: int, dtype: str
) -> None:
    """Apply the reflectors, four at a time, to strips of the slab that stay in a core's caches."""
    columns = int(compiled.ROW_BYTES) // slab.itemsize
    threads = min(threads, max(1, -(-slab.shape[1] // columns)))
    strips = [torch.zeros((len(slab), columns), dtype=slab.dtype) for _ in range(threads)]

    def work(strip: torch.Tensor, starts: Iterator[int], groups: list[tuple[int, Numbers, Numbers]]) -> None:
        top = groups[-1][0]  # no reflector of these groups touches the rows above
        rows = strip[top:]
        for start in starts:
            part = slab[top:, start : start + columns]
            rows[:, : part.shape[1]] = part
            for first, group, couplings in groups:
                shape = (*group.shape[:2], sweeps.reach)
                compiled.apply(group, couplings, rows.numpy(), *shape, first - top, slab.itemsize)
            part.copy_(rows[:, : part.shape[1]])

    under_way: list[Future[None]] = []
    with ThreadPoolExecutor(threads) as pool:
        most = min(_LOADED, slab.nbytes // 8) // slab.itemsize
        for groups in _prepared(compiled, sweeps, load, dtype, most):
            for one in under_way:
                one.result()
            starts = iter(range(0, slab.shape[1], columns))  # each thread takes the next one
            under_way = [pool.submit(work, strip, starts, groups) for strip in strips]
        for one in under_way:
            one.result()


@dataclass
class _Room:
    """Memory that arrays are taken from, one after another: pages that are new each time cost more than copying."""

    memory: Numbers  # (n,)
    used: int = 0

    def take(self, *form: int) -> Numbers:
        start, self.used = self.used, self.used + math.prod(form)
        return self.memory[start : self.used].reshape(form)


def _prepared(
    compiled: ModuleType, sweeps: Sweeps, load: Callable[[int], Numbers], dtype: str, most: int
) -> Iterator[list[tuple[int, Numbers, Numbers]]]:
    """Yield lists of groups, ``most`` numbers each, the last group first: first rows, and what `_chase.c` takes."""

    def forms(number: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        steps, count, reach = sweeps.shape(number)
        fours = -(-count // 4)
        return (steps, fours, reach + 3, 4), (steps, fours, _COUPLINGS)

    largest = sum(math.prod(form) for form in forms(0))
    here, other = (_Room(np.empty(most + largest, dtype)) for _ in range(2))  # one list is used while one is made
    groups: list[tuple[int, Numbers, Numbers]] = []
    for number in reversed(range(len(sweeps))):
        group, couplings = (here.take(*form) for form in forms(number))
        compiled.prepare(load(number), group, couplings, *sweeps.shape(number), group.itemsize)
        groups.append((number * sweeps.group + 1, group, couplings))
        if number == 0 or here.used >= most:
            yield groups
            groups, here, other = [], other, here
            here.used = 0


def _apply_blocks(sweeps: Sweeps, load: Callable[[int], Numbers], slab: torch.Tensor, shares: int) -> None:
    """Apply the reflectors of a step as one block, in products of matrices.

    Of two steps in a group, reflectors share rows only where the later step belongs to the earlier sweep, which was
    made first: so ``Q`` of a group is the product of its blocks, the last step leftmost.
    """
    parts = slab.chunk(shares, dim=1)
    under_way: list[Future[None]] = []
    with ThreadPoolExecutor(shares) as pool:
        for number in reversed(range(len(sweeps))):
            kept = load(number)
            kept = kept if kept.flags.writeable else kept.copy()  # torch says that it would write to it
            transposed = _transposed(torch.from_numpy(kept).to(slab))
            factors = torch.from_numpy(left_factors(kept)).to(slab)
            for one in under_way:
                one.result()
            first = number * sweeps.group + 1
            under_way = [pool.submit(_apply_group, part[first:], sweeps.reach, transposed, factors) for part in parts]
        for one in under_way:
            one.result()


def _apply_group(slab: torch.Tensor, reach: int, transposed: torch.Tensor, left: torch.Tensor) -> None:
    rows = transposed.shape[2]
    for step in range(len(transposed)):
        part = slab[step * reach : step * reach + rows]
        product = transposed[step, :, : len(part)] @ part
        part.addmm_(left[step, : len(part)], product, alpha=-1)


def left_factors(kept: Numbers) -> Numbers:
    """Return V T (steps, rows, sweeps) of every step of a group, whose block is ``I - V T V.T``, in the group's dtype.

    T is the inverse of ``triu(V.T V, 1) + diag(V.T V) / 2``: T. Joffrain, T. M. Low, E. S. Quintana-Orti, R. van de
    Geijn, F. G. Van Zee: Accumulating Householder transformations, revisited. ACM TOMS 32(2), 2006. The block is so
    orthogonal for any V, also for one that was rounded to float32. T is made in float64: rounding it to float32 before
    the product with V lengthens all columns, by 1e-6 at d = 3,000.
    """
    with single_threaded():
        transposed = _transposed(torch.from_numpy(kept).to(torch.float64))
        steps, count, _ = transposed.shape
        side = 1 << (count - 1).bit_length()
        inverse = transposed.new_zeros((steps, side, side))
        inverse[:, :count, :count] = torch.bmm(transposed, transposed.transpose(1, 2)).triu_()
        diagonal = inverse.diagonal(dim1=1, dim2=2)
        diagonal.copy_(torch.where(diagonal == 0, 1, 2 / diagonal))
        _invert(inverse)
        left: Numbers = torch.bmm(transposed.transpose(1, 2), inverse[:, :count, :count]).numpy()
    return left.astype(kept.dtype)


def _transposed(kept: torch.Tensor) -> torch.Tensor:
    """Return V.T (steps, sweeps, rows) of every step of a group: each sweep begins one row further down."""
    steps, count, reach = kept.shape
    rows = reach + count - 1
    transposed = kept.new_zeros((steps, count, rows))
    transposed.as_strided(kept.shape, (count * rows, rows + 1, 1)).copy_(kept)
    return transposed


def _invert(triangles: torch.Tensor) -> None:
    """Invert (n, m, m) upper triangles in place, m a power of 2, their diagonals inverted already.

    By blocks that double, ``inv([[A, B], [0, C]]) = [[inv(A), -inv(A) B inv(C)], [0, inv(C)]]``: all of a level in one
    call, where ``torch.linalg.solve_triangular`` makes a threaded call for each triangle, 5 to 50 times slower here.
    """
    count, side, _ = triangles.shape
    half = 1
    while half < side:
        pair = 2 * half
        shape, strides = (count, side // pair, pair, pair), (side * side, pair * (side + 1), side, 1)
        blocks = triangles.as_strided(shape, strides)
        corner = blocks[..., :half, half:]
        corner.copy_(-(blocks[..., :half, :half] @ corner @ blocks[..., half:, half:]))
        half = pair
