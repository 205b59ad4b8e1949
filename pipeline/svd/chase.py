"""Band to tridiagonal by bulge chasing, in memory: by C where it was compiled, else on stacked windows of the band.

Sweep s clears column s of the band below its first subdiagonal with a reflector of b rows. Applied on both sides, it
raises a bulge b rows further down; the next reflector clears the first column of that, and so on to the last row. Sweep
s + 1 may follow two steps behind sweep s, and then no two sweeps touch the same columns: all sweeps under way move one
step at once, in a few calls.

    C. H. Bischof, B. Lang, X. Sun: A framework for symmetric band reduction. ACM TOMS 26(4), 2000.
    A. Haidar, H. Ltaief, J. Dongarra: Parallel reduction to condensed forms for symmetric eigenvalue problems using
    aggregated fine-grained and memory-aware kernels. SC 2011.
"""

import contextlib
from collections import deque
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from functools import partial
from types import ModuleType

import numpy as np
import numpy.typing as npt
import torch

from ..blas import single_threaded
from .chase_reflectors import Sweeps
from .kernels import compiled_for

Vectors = npt.NDArray[np.float64]

_UNDER_WAY = 2  # groups that are chased, so that a thread that is through with one goes on with the next

# A column whose squares add up to less is taken as cleared: the sum has lost its digits, and the largest entry is 1.
_SMALLEST = float(np.finfo(np.float64).tiny / np.finfo(np.float64).eps)


def tridiagonalize(band: Vectors, keep: Callable[[int, Vectors], None], *, group: int) -> tuple[Vectors, Vectors]:
    """Return the diagonal (d,) and the off-diagonal (d - 1,) of a tridiagonal T, ``B = Q T Q.T``.

    ``Sweeps(d, b, group)`` tells the groups of reflectors whose product is Q; ``apply`` applies it. About 7 b d^2
    floating point operations; in memory are 3 b d numbers and two groups, or, where nothing was compiled, about
    d / (2 b) + 2 ``group`` sweeps of d numbers each.

    Parameters
    ----------
    band : npt.NDArray[np.float64]
        (b + 1, d), LAPACK's lower band storage: ``band[k, j] = B[j + k, j]``. What lies outside B is not read.
    keep : Callable[[int, npt.NDArray[np.float64]], None]
        Called with each group in order, its number and its reflectors of ``Sweeps.shape(number)``. It may keep the
        array.
    group : int
        Sweeps a group.

    Raises
    ------
    ValueError
        Where the band has no two axes or is empty, or an entry of it is not finite.
    """
    if band.ndim != 2 or not band.size:
        raise ValueError(f"a band has shape (b + 1, d), one of {band.shape} was given")
    size = band.shape[1]
    sweeps = Sweeps(size, max(1, len(band) - 1), group)
    matrix = _spread(band, sweeps.reach)
    largest = max(float(matrix.max()), -float(matrix.min()))
    if not np.isfinite(largest):
        raise ValueError("the band has entries that are not finite")
    exponent = int(np.frexp(largest)[1])
    np.ldexp(matrix, -exponent, out=matrix)  # a power of 2 costs no digit, and squares stay in range
    with single_threaded() as threads:
        compiled = compiled_for(size)
        if compiled is not None:
            _chase_in_c(compiled, matrix, sweeps, keep, threads)
        else:
            _chase(matrix, sweeps, keep)
    return np.ldexp(matrix[:size, 0], exponent), np.ldexp(matrix[: size - 1, 1], exponent)


def _spread(band: Vectors, reach: int) -> Vectors:
    """Return (d + b, 3 b) with entry (p, q) of B at flat index 3 b q + p - q, in both triangles.

    Any window of B is a strided view of it, and there is room for the bulges.
    """
    size = band.shape[1]
    spread = np.zeros((size + reach, 3 * reach))
    for below in range(min(reach + 1, len(band))):
        line = band[below, : size - below]
        spread[: size - below, below] = line
        if 0 < below < reach:
            spread[below - 1 : size - 1, -below] = line
    return spread


def _chase_in_c(
    compiled: ModuleType, matrix: Vectors, sweeps: Sweeps, keep: Callable[[int, Vectors], None], threads: int
) -> None:
    """Chase all sweeps through ``matrix``, of each group some on each thread, which wait for each other's steps."""
    progress = np.zeros(sweeps.total + 1, np.int64)  # the last one: there is no need to go on
    waiting: deque[tuple[int, Vectors, list[Future[None]]]] = deque()

    def hand_out() -> None:
        number, kept, shares = waiting.popleft()
        ended, _ = wait(shares, return_when=FIRST_EXCEPTION)  # where one failed, the others wait for its steps
        for share in ended:
            share.result()
        keep(number, kept)

    with contextlib.ExitStack() as stack:
        pools = [stack.enter_context(ThreadPoolExecutor(1, "tilecov-chase")) for _ in range(threads)]
        try:
            for number in range(len(sweeps)):
                kept = np.zeros(sweeps.shape(number))
                first, count = number * sweeps.group, kept.shape[1]
                chase = partial(compiled.chase, matrix, kept, progress, sweeps.size, sweeps.reach, first, count)
                shares = [pool.submit(chase, share, threads) for share, pool in enumerate(pools)]
                waiting.append((number, kept, shares))
                if len(waiting) == _UNDER_WAY:
                    hand_out()
            while waiting:
                hand_out()
        finally:
            progress[-1] = 1  # where something failed, nobody waits for what will not come


def _chase(matrix: Vectors, sweeps: Sweeps, keep: Callable[[int, Vectors], None]) -> None:
    """Chase all sweeps through ``matrix``; at one time, sweep s is at step time - 2 s."""
    if not len(sweeps):
        return
    front, kept = _Front(matrix, sweeps), _Kept(sweeps, keep)
    front.begin(0)
    oldest = 0
    for time in range(2 * sweeps.total - 1):
        newest = time // 2
        while time - 2 * oldest >= sweeps.steps(oldest):
            kept.finish(oldest)
            oldest += 1
        count = newest - oldest + 1
        if count:
            kept.put(time, newest, front.vectors[:count])
            front.advance(newest + 1 + time % 2 * sweeps.reach, count)
        if time % 2:
            front.begin(newest + 1)
    kept.finish(oldest)


class _Front:
    """The sweeps under way, newest first: their reflectors, and the windows of the matrix in which they are."""

    def __init__(self, matrix: Vectors, sweeps: Sweeps) -> None:
        reach = sweeps.reach
        most = sweeps.size // (2 * reach - 1) + 2
        self._reach = reach
        self._matrix = matrix
        self._next = np.zeros((most, reach))  # row 0 is for the sweep that begins
        self._left = np.zeros((most, 3, reach))  # v, w, z
        self._right = np.zeros((most, 3, 2 * reach))  # (w, y), (v, 0), (0, u)
        self.vectors = self._next[1:1]

    def begin(self, sweep: int) -> None:
        """Make the first reflector of ``sweep``, which clears its column."""
        fresh = self._next[:1]
        fresh[0] = self._matrix[sweep, 1 : self._reach + 1]
        self._matrix[sweep, 1] = _reflect(fresh)[0]
        self.vectors = self._next[: len(self.vectors) + 1]

    def advance(self, start: int, count: int) -> None:
        """Apply the first ``count`` reflectors, the newest one's rows beginning at ``start``, and make the next ones.

        With v on the diagonal block D and the bulge E below it, and u the next reflector, v.T v = u.T u = 2,

            w = D v - (v.T D v / 2) v;    D - w v.T - v w.T
            y = E v;    u clears the first column of E - y v.T
            z = E.T u - (u.T y) v;    E - y v.T - u z.T
        """
        reach = self._reach
        bulge = self._windows(start, count, reach, reach)
        whole = self._windows(start, count, 0, 2 * reach)
        left, right = self._left[:count], self._right[:count]
        v, w, z = left[:, 0], left[:, 1], left[:, 2]
        v[:] = self.vectors[:count]
        right[:, 1, :reach] = v
        np.matmul(whole, v[:, :, None], out=right[:, 0, :, None])
        y = right[:, 0, reach:]
        np.subtract(right[:, 0, :reach], (0.5 * np.einsum("ij,ij->i", v, right[:, 0, :reach]))[:, None] * v, out=w)
        right[:, 0, :reach] = w
        u = self._next[1 : count + 1]
        np.subtract(bulge[:, :, 0], y * v[:, :1], out=u)
        beta = _reflect(u)
        right[:, 2, reach:] = u
        np.matmul(u[:, None, :], bulge, out=left[:, 2:3])
        z -= np.einsum("ij,ij->i", u, y)[:, None] * v
        torch.from_numpy(whole.transpose(0, 2, 1)).baddbmm_(
            torch.from_numpy(left).transpose(1, 2), torch.from_numpy(right), alpha=-1
        )
        bulge[:, :, 0] = 0
        bulge[:, 0, 0] = beta
        # The next sweep's diagonal blocks lie one column further: they hold this row of the bulge above the diagonal.
        self._entries((start, start + reach), (count, reach), (1,))[:, 1:] = bulge[:, 0, 1:]
        self.vectors = u

    def _windows(self, start: int, count: int, below: int, rows: int) -> Vectors:
        """Return the (n, rows, b) windows of the sweeps, from ``below`` the first row of their reflectors."""
        return self._entries((start + below, start), (count, rows, self._reach), (1, 3 * self._reach - 1))

    def _entries(self, corner: tuple[int, int], shape: tuple[int, ...], steps: tuple[int, ...]) -> Vectors:
        """Return a view from entry (row, column) on: an axis from each sweep to the next older one, then ``steps``."""
        row, column = corner
        item, line = self._matrix.itemsize, 3 * self._reach
        strides = ((2 * self._reach - 1) * line * item, *(step * item for step in steps))
        return np.ndarray(shape, np.float64, self._matrix, (column * line + row - column) * item, strides)


def _reflect(columns: Vectors) -> Vectors:
    """Turn each row x of (n, b) into the v of norm sqrt(2), or 0, with ``(I - v v.T) x = beta e_1``; return beta."""
    first = columns[:, 0].copy()
    tail = np.einsum("ij,ij->i", columns[:, 1:], columns[:, 1:])
    live = tail > _SMALLEST
    norm = np.sqrt(first * first + tail)
    beta = np.where(live, np.copysign(norm, -first), first)
    columns[:, 0] -= beta
    columns *= 1 / np.sqrt(np.where(live, norm * (norm + np.abs(first)), np.inf))[:, None]
    return beta


class _Kept:
    """The groups that are not complete yet."""

    def __init__(self, sweeps: Sweeps, keep: Callable[[int, Vectors], None]) -> None:
        self._sweeps = sweeps
        self._keep = keep
        self._open: dict[int, Vectors] = {}

    def put(self, time: int, newest: int, vectors: Vectors) -> None:
        """Take the reflectors of the sweeps ``newest``, ``newest`` - 1, ..., at this time."""
        sweep, end = newest, newest - len(vectors)
        while sweep > end:
            number, place = divmod(sweep, self._sweeps.group)
            if number not in self._open:
                self._open[number] = np.zeros(self._sweeps.shape(number))
            held = self._open[number]
            count = min(place + 1, sweep - end)
            far, line, item = held.strides
            where = (time - 2 * sweep) * far + place * line
            # The sweep before is one place nearer and two steps further.
            view = np.ndarray((count, held.shape[2]), np.float64, held, where, (2 * far - line, item))
            view[:] = vectors[newest - sweep : newest - sweep + count]
            sweep -= count

    def finish(self, sweep: int) -> None:
        """Hand the group of ``sweep`` out where that was its last one."""
        number, place = divmod(sweep, self._sweeps.group)
        if place + 1 == self._sweeps.shape(number)[1]:
            self._keep(number, self._open.pop(number))
