"""The randomized method: the leading eigenpairs of a matrix in tiles, by a block Krylov method with restarts.

A random block is multiplied by S again and again, a pass over the tiles each time, and the eigenpairs of S inside the
span of all blocks (the Ritz pairs) are taken. For as many columns multiplied this comes much closer than subspace
iteration, which forgets its earlier blocks (Musco and Musco 2015, "Randomized block Krylov methods for stronger and
faster approximate singular value decomposition"; Halko, Martinsson and Tropp 2011). When the memory of the panels is
full, the leading Ritz vectors stay and the others go: the thick restart of Wu and Simon (2000), with blocks.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch

from ..blas import quick_products
from .direct import SymmetricTiles
from .lapack import eigh_in_place
from .products import Products, trace_of
from .ranks import NARROW, WIDE, Record, Target, denoising_error, moved, ratio, refused, sizes

_STRIDE = 2048  # columns rotated at a time, so that no second basis is made
_FIRST = 1.5  # times the rank: columns of the basis at the first look at its Ritz pairs
_GROWTH = 1.09  # the basis grows by this factor between two looks
_ROUNDING = 16  # of the dtype's epsilon: by how much the trace and sums of Ritz values may be wrong
_ALIKE = 0.01  # eigenvalues that differ by less, relative to the larger, may be copies of one


@dataclass
class Progress:
    """A Krylov basis between two passes; all that a resumed run needs.

    Parameters
    ----------
    basis : torch.Tensor
        (n, d), orthonormal rows, in the dtype and on the device of the decomposition.
    coupling : torch.Tensor
        (n, m), float64: ``basis S basis[:m].T``; the n - m rows beyond have not been multiplied by S yet.
    values : torch.Tensor
        Ritz values at the last look, float64, descending; S scaled so that its trace is in [1/2, 1).
    passes : int
        Passes over the tiles so far.
    drawn : int
        Random rows in the basis so far.
    due : int
        Before this many passes the rows drawn last have not been multiplied as often as those before them.
    born : int
        Passes when they were drawn.
    squares : float
        Squared Frobenius norm of the scaled S.
    residual : float
        Estimated at the last look; 0 before there was one.
    look : int
        Rows multiplied at which the next look is worth its time.
    """

    basis: torch.Tensor
    coupling: torch.Tensor
    values: torch.Tensor
    passes: int = 0
    drawn: int = 0
    due: int = 0
    born: int = 0
    squares: float = 0.0
    residual: float = 0.0
    look: int = 0


class State(Protocol):
    """Where progress is kept between passes."""

    def load(self) -> Progress | None:
        """Return what was saved last, on any device; None where nothing was."""

    def save(self, progress: Progress, changed: int) -> None:
        """Save progress; rows of the basis before ``changed`` are as they were saved the last time.

        Its tensors are overwritten by the next pass: copy what is written later.
        """


def leading(
    matrix: SymmetricTiles,
    target: Target,
    *,
    tolerance: float,
    dtype: torch.dtype,
    device: torch.device,
    budget: int,
    seed: int = 0,
    state: State | None = None,
    keep: int = 0,
) -> tuple[torch.Tensor, torch.Tensor, Record]:
    """Return LA (k,) descending, U (d, k) and how it went: the leading eigenpairs of a positive semidefinite matrix.

    Parameters
    ----------
    matrix : SymmetricTiles
        S, (d, d); each pass reads each upper tile once.
    target : Target
        Which eigenpairs.
    tolerance : float
        The estimated residual ``||S U - U diag(LA)||_F / ||S||_F`` is below it at the end, and no eigenvalue moved by
        more than ten times that, of itself, since the last look. 1e-5 suits float32, 1e-13 float64.
    dtype : torch.dtype
        Of the products and of U: float32 or float64. What is small and decides is float64.
    device : torch.device
    budget : int
        Bytes that the panels may take, U among them; beside them there are two tiles, and the one that is read.
    seed : int
        Of the random blocks. The same seed, sizes, memory, threads and device give the same result, resumed or not.
    state : State, optional
        Keeps progress after each pass.
    keep : int
        Bytes of tiles that stay in memory, or on the device, from the first pass on, so that fewer are read again.
        Where all of them stay on the CPU, blocks are narrow.

    Raises
    ------
    ValueError
        Where the panels do not fit the budget, or the matrix is not finite.

    Notes
    -----
    U is a view of the panels' memory, on ``device``; LA is on the CPU.
    """
    size = matrix.tiling.size
    total = trace_of(matrix)
    products = Products(matrix, math.ldexp(1.0, -math.frexp(total)[1]), dtype, device, keep)
    narrow = device.type == "cpu" and products.stay
    block, capacity = sizes(target, size, dtype, budget, NARROW if narrow else WIDE)
    krylov = _Krylov(size, capacity, block, dtype, device, seed)
    krylov.begin(state.load() if state else None)
    search = _Search(target, total, products.scale, tolerance, krylov, budget)
    while not search.found():
        changed = search.restart() if krylov.full else krylov.filled
        krylov.expand(products)
        if state:
            state.save(krylov.progress(), changed)
    return search.result()


class _Krylov:
    """A growing orthonormal basis, its rows in one panel whose memory is touched only as it fills."""

    def __init__(
        self, size: int, capacity: int, block: int, dtype: torch.dtype, device: torch.device, seed: int
    ) -> None:
        self.size, self.capacity, self.block, self.seed = size, capacity, block, seed
        self.rows = torch.empty((capacity, size), dtype=dtype, device=device)
        self.coupling = torch.zeros((0, 0), dtype=torch.float64)
        self.values = torch.zeros(0, dtype=torch.float64)
        self.filled = self.passes = self.drawn = self.due = self.born = self.look = 0
        self.squares = self.residual = 0.0

    def begin(self, progress: Progress | None) -> None:
        """Go on from what was saved, unless it was with another size or dtype, or with more memory."""
        if progress is None or progress.basis.dtype != self.rows.dtype:
            return
        if progress.basis.shape[1] != self.size or len(progress.basis) > self.capacity:
            return
        self.filled = len(progress.basis)
        self.rows[: self.filled] = progress.basis
        self.coupling, self.values = progress.coupling, progress.values
        self.passes, self.squares = progress.passes, progress.squares
        self.drawn, self.due, self.born = progress.drawn, progress.due, progress.born
        self.residual, self.look = progress.residual, progress.look

    def progress(self) -> Progress:
        """Return what a resumed run needs, without a copy."""
        basis = self.rows[: self.filled]
        return Progress(
            basis, self.coupling, self.values, self.passes, self.drawn, self.due, self.born, self.squares,
            self.residual, self.look,
        )  # fmt: skip

    @property
    def multiplied(self) -> int:
        """How many rows have been multiplied by S."""
        return self.coupling.shape[1]

    @property
    def full(self) -> bool:
        """Whether the rows that the next pass adds may not fit."""
        return self.filled + min(self.block, self.size - self.filled) > self.capacity

    def draw(self) -> None:
        """Add a random block; the rows so far and S do not couple with it."""
        count, waiting = min(self.block, self.size - self.filled), self.filled > self.multiplied
        # A seed a block, so that a resumed run draws what an uninterrupted one does; on the CPU, for all devices alike.
        source = torch.Generator().manual_seed(self.seed + self.drawn)
        fresh = torch.randn((count, self.size), generator=source, dtype=torch.float64).to(self.rows)
        fresh /= torch.linalg.vector_norm(fresh, dim=1, keepdim=True)
        self._append(fresh, torch.zeros((count, self.multiplied), dtype=torch.float64))
        self.drawn += count
        # Rows that wait already share the passes with the new ones.
        self.due = self.passes + (self.passes - self.born) * (2 if waiting else 1)
        self.born = self.passes

    def expand(self, products: Products) -> None:
        """Multiply the next rows by S, and add the part of the product that is new as rows."""
        if self.multiplied == self.filled:
            self.draw()
        done, filled = self.multiplied, self.filled
        head = slice(done, min(done + self.block, filled))
        product = products.multiply(self.rows[head])
        self.squares = products.squares
        inside = self._project(product) + self._project(product)
        self.coupling = torch.cat([self.coupling, inside.T], dim=1)
        directions, triangle = torch.linalg.qr(product.T)
        left, strength, right = torch.linalg.svd(triangle.cpu().double())
        # Directions that S couples to by no more than rounding are noise.
        least = torch.finfo(product.dtype).eps * math.sqrt(self.squares)
        count = min(int((strength > least).sum()), self.size - filled)
        outside = torch.zeros((count, head.stop), dtype=torch.float64)
        outside[:, done:] = strength[:count, None] * right[:count]
        self._append(left[:, :count].T.to(directions) @ directions.T, outside)
        self.passes += 1

    def rotate(self, vectors: torch.Tensor, keep: int) -> None:
        """Replace the multiplied rows by ``keep`` Ritz vectors, in place; ``vectors`` (m, >= keep), float64."""
        done, chosen = self.multiplied, vectors[:, :keep]
        turn = chosen.T.to(self.rows)
        with quick_products(self.rows.device) as add_product:
            for start in range(0, self.size, _STRIDE):
                part = self.rows[:, start : start + _STRIDE]
                turned = torch.empty_like(part[:keep])
                add_product(turned, turn, part[:done], keep=0)
                part[:keep] = turned
        waiting = self.filled - done
        if keep < done:
            self.rows[keep : keep + waiting] = self.rows[done : self.filled].clone()
        inner = chosen.T @ _symmetric(self.coupling[:done]) @ chosen
        self.coupling = torch.cat([inner, self.coupling[done:] @ chosen])
        self.filled = keep + waiting

    def ritz(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return Ritz values (m,) descending, their coordinates (m, m) and the norms of their residuals (m,)."""
        done = self.multiplied
        vectors = _symmetric(self.coupling[:done]).T  # column after column
        values = eigh_in_place(vectors)
        values, vectors = values.flip(0), vectors.flip(1)
        return values, vectors, torch.linalg.vector_norm(self.coupling[done:] @ vectors, dim=0)

    def _append(self, fresh: torch.Tensor, coupling: torch.Tensor) -> None:
        """Add rows that S couples to by ``coupling``, made orthonormal."""
        lengths = torch.zeros(min(1, len(fresh)))
        # What rounding left of the basis in a row counts where little else is in it: then it has to go again.
        while bool((lengths < 0.5).any()):
            self._project(fresh)
            directions, triangle = torch.linalg.qr(fresh.T)
            fresh, lengths = directions.T, triangle.diagonal().abs().cpu()
            coupling = triangle.cpu().double() @ coupling
        self.rows[self.filled : self.filled + len(fresh)] = fresh
        self.filled += len(fresh)
        self.coupling = torch.cat([self.coupling, coupling])

    def _project(self, block: torch.Tensor) -> torch.Tensor:
        """Take the basis out of ``block``, in place; return what was taken, (b, n) in float64."""
        basis, inside = self.rows[: self.filled], block.new_empty((len(block), self.filled))
        with quick_products(block.device) as add_product:
            add_product(inside, block, basis.T, keep=0)
            add_product(block, inside, basis, times=-1)
        return inside.cpu().double()


def _symmetric(matrix: torch.Tensor) -> torch.Tensor:
    return (matrix + matrix.T) / 2


class _Search:
    """Looks at the Ritz pairs between passes until those that are wanted have settled."""

    def __init__(
        self, target: Target, trace: float, scale: float, tolerance: float, krylov: _Krylov, budget: int
    ) -> None:
        self.target, self.trace, self.scale, self.tolerance = target, trace * scale, scale, tolerance
        self.krylov, self.budget = krylov, budget
        self.rounding = _ROUNDING * torch.finfo(krylov.rows.dtype).eps
        self.vectors = torch.zeros((0, 0), dtype=torch.float64)
        self.wanted: int | None = None
        self.residual = self.moved = math.inf
        self.captured = -math.inf

    def found(self) -> bool:
        """Return whether the wanted pairs are certain; looks at the Ritz pairs where the basis has grown enough."""
        krylov, done = self.krylov, self.krylov.multiplied
        rank, all_done = min(self.target.rank or 1, krylov.size), done == krylov.size
        due = max(_FIRST * rank, _GROWTH * len(krylov.values), krylov.look)
        grown = done >= due or done == krylov.filled or krylov.full
        if done < rank or not grown:
            return False
        before = krylov.values
        krylov.values, self.vectors, residuals = krylov.ritz()
        found = krylov.values / self.scale
        self.wanted = self.target.wanted(found, self.trace / self.scale, krylov.size, self.rounding)
        if self.wanted is None:
            return False
        watched = self.target.watched(self.wanted, krylov.size)
        self.residual = ratio(float(torch.linalg.vector_norm(residuals[:watched])), math.sqrt(krylov.squares))
        krylov.look = done + self._skipped(done - len(before))
        krylov.residual = self.residual
        self.moved = moved(before, krylov.values[:watched], residuals[:watched], krylov.rows.dtype)
        # An eigenvalue's error falls with the square of the residual: what is left is far below the last movement.
        settled = self.residual <= self.tolerance and self.moved <= 10 * self.tolerance
        return all_done or (settled and self._complete(watched))

    def _skipped(self, rows: int) -> int:
        """Return how many rows more are multiplied before the next look, ``rows`` after the last one.

        A look takes as long as several passes. The residual falls faster and faster, so about half of the way on which
        it would reach the tolerance, as fast as it fell since the last look, is sure to be too short; and a look one
        pass too early costs less than one too late, since the last two looks are compared.
        """
        before, residual = self.krylov.residual, self.residual
        if not self.tolerance < residual < before:
            return 0
        wanted = rows * math.log(residual / self.tolerance) / math.log(before / residual)
        return max(0, min(self.krylov.size, int(wanted / 2) - self.krylov.block))

    def _complete(self, watched: int) -> bool:
        """Return whether copies of a repeated eigenvalue can not be missing; where they can, a random block is added.

        A Krylov space has of each eigenvalue at most as many copies as random rows were drawn. So where that many equal
        ones were found there may be more, unless the trace or the Frobenius norm leaves no room for them.
        """
        krylov, values = self.krylov, self.krylov.values
        smallest = float(values[:watched].min()) if watched else 0.0
        left = min(self.trace - float(values.sum()), math.sqrt(max(0.0, krylov.squares - float(values.square().sum()))))
        if left <= max(smallest, self.rounding * self.trace):
            return True
        if krylov.passes < krylov.due or watched <= krylov.drawn:
            return krylov.passes >= krylov.due
        apart = values[: watched - krylov.drawn + 1] - values[krylov.drawn - 1 : watched]
        if not bool((apart <= _ALIKE * values[: len(apart)]).any()):
            return True
        if not krylov.full:
            krylov.draw()
        return False

    def restart(self) -> int:
        """Keep the leading Ritz vectors only, and return the first row that changed; ValueError where none may go."""
        krylov = self.krylov
        waiting = krylov.filled - krylov.multiplied
        most = min(krylov.multiplied, krylov.capacity - krylov.block - waiting)
        captured = float(krylov.values.sum())
        if self.wanted is None:
            need = most if captured - self.captured > 0.1 * (self.trace - captured) else krylov.multiplied + 1
            if self.target.noise is not None:
                need = krylov.multiplied + 1
        else:
            need = self.target.watched(self.wanted, krylov.size)
        if need > most:
            raise refused(need, krylov.size, krylov.rows.dtype, self.budget)
        self.captured, krylov.look = captured, 0
        keep = min(most, need + (krylov.capacity - need) // 2)
        krylov.rotate(self.vectors, keep)
        krylov.values = krylov.values[:keep]
        return 0

    def result(self) -> tuple[torch.Tensor, torch.Tensor, Record]:
        """Return LA, U and the record, in the matrix's own scale."""
        krylov, wanted, scale = self.krylov, self.wanted or 0, self.scale
        values, columns = krylov.values[:wanted], krylov.filled
        krylov.rotate(self.vectors, wanted)
        denoising = None
        if self.target.noise is not None:
            denoising = denoising_error(
                values / scale,
                self.target.noise,
                trace=self.trace / scale,
                squares=krylov.squares / scale**2,
                size=krylov.size,
                rounding=self.rounding,
            )
        record = Record(
            passes=krylov.passes,
            columns=columns,
            residual=self.residual,
            moved=self.moved,
            energy=ratio(float(values.sum()), self.trace) if self.trace > 0 else 1.0,
            denoising=denoising,
        )
        return (values / scale).to(krylov.rows.dtype), krylov.rows[:wanted].T, record
