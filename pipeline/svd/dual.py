"""The dual method: with fewer rows than columns, the covariance's spectrum from the N x N gram of the rows.

S = Yc^T Yc / (N - 1), with Yc the (N, d) centred rows, has the nonzero eigenvalues of K / (N - 1), K = Yc Yc^T, and
where K = V diag(L) V^T its eigenvectors are U = Yc^T V diag(L)^(-1/2): the method of snapshots (Sirovich 1987,
"Turbulence and the dynamics of coherent structures"). Nothing here is d x d or d x N; columns come a panel at a time.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from tilecov.storage.tiling import Tiling

from ..ahead import ahead
from ..bounds import ORIGIN, ROWS_ALWAYS_EXACT
from ..device import product_kernel_of

_BAND = 512  # of a symmetric product: narrower saves more of its lower half and multiplies more slowly
_DEVIATION = 1e-14
"""Columns of U further than this from orthonormal are corrected; float64 products themselves come to 1e-15."""


class Rows(Protocol):
    """Rows x (N, d) that are read a tile of columns at a time; the data are ``scale * x + offset``."""

    @property
    def tiling(self) -> Tiling:
        """How the d columns are cut."""

    @property
    def count(self) -> int:
        """Rows, N."""

    @property
    def exact(self) -> bool:
        """Whether x is uint8."""

    @property
    def origin(self) -> npt.NDArray[np.float64] | int:
        """What ``sums`` are about: 128 for uint8 rows; (d,), the mean to within rounding, for float rows."""

    @property
    def sums(self) -> npt.NDArray[Any]:
        """The sum of x - origin, (d,): int64 for uint8 rows, float64 for float rows."""

    @property
    def scale(self) -> float:
        """The value range's factor."""

    def column(self, j: int) -> npt.NDArray[Any]:
        """Return tile column ``j`` of x, (N, width): uint8, float32 or float64."""


@dataclass(frozen=True)
class Spectrum:
    """What the gram of the rows tells of the covariance's spectrum.

    Parameters
    ----------
    values : torch.Tensor
        LA (k,), float64, descending, on the CPU; all above 0, but for a zero matrix, which keeps one 0.
    coefficients : torch.Tensor
        (N, k), float64: U is ``Yc.T @ coefficients`` up to rounding.
    trace, frobenius : float
        Of the covariance.
    complete : bool
        Whether no eigenvalue was left out but those that are numerically zero.
    """

    values: torch.Tensor
    coefficients: torch.Tensor
    trace: float
    frobenius: float
    complete: bool


def centred(rows: Rows, device: torch.device) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield (columns, (N, width) centred x in float64) for every tile column, read while the last one is used.

    A uint8 value loses the rounded mean in exact integers first, so that what is rounded is at most 1/2.
    """
    for span, panel in zip(rows.tiling.spans(), _panels(rows), strict=True):
        sums = rows.sums[span]
        if rows.exact:
            nearest = (2 * sums + rows.count) // (2 * rows.count)
            first, rest = nearest + ORIGIN, (sums - rows.count * nearest) / rows.count
        else:
            first, rest = np.asarray(rows.origin)[span], sums / rows.count
        values = torch.tensor(panel).to(device).double()
        for part in (first, rest):
            values -= torch.tensor(part, dtype=torch.float64, device=device)
        yield span, values


def _panels(rows: Rows) -> Iterator[npt.NDArray[Any]]:
    return ahead(rows.column(j) for j in range(len(rows.tiling)))


def gram(rows: Rows, device: torch.device) -> torch.Tensor:
    """Return K = Yc Yc^T, (N, N) float64 on ``device``, before the scale.

    Sums for uint8 rows are exact integers about 128, the same for any tile and device (below 2^53 while N d < 2^39),
    and so are the integer parts of the means that centre them: the only roundings are of their fractions, below 2, and
    of K itself when they are taken off. Equal rows have equal entries and a constant set has exact zeros.

    Raises
    ------
    ValueError
        With fewer than two rows.
    """
    if rows.count < 2:
        raise ValueError(f"the covariance needs at least 2 rows and there are {rows.count}; add shards")
    found = torch.zeros((rows.count, rows.count), dtype=torch.float64, device=device)
    bands = list(Tiling(rows.count, _BAND).spans())
    if rows.exact:
        _add_integers(found, rows, bands)
    else:
        for _, z in centred(rows, device):
            for band in bands:
                found[band, band.start :].addmm_(z[band], z[band.start :].T)
    for band in bands:
        found[band.stop :, band] = found[band, band.stop :].T
    _centre(found, bands, exact=rows.exact)
    return found


def _add_integers(found: torch.Tensor, rows: Rows, bands: list[slice]) -> None:
    """Add Y Y^T, y = x - 128, to the upper bands of ``found``."""
    kernel = product_kernel_of(str(found.device))
    for panel in _panels(rows):
        y = (torch.tensor(panel).to(found.device) ^ ORIGIN).view(torch.int8).to(kernel.dtype)
        for span in Tiling(y.shape[1], ROWS_ALWAYS_EXACT).spans():
            part = y[:, span]
            for band in bands:
                # Adding int32 to float64 directly takes torch longer than the product.
                found[band, band.start :] += kernel.product(part[band].T, part[band.start :].T).double()


def _centre(found: torch.Tensor, bands: list[slice], *, exact: bool) -> None:
    """Take the means of rows and columns off: ``K_ij = G_ij - g_i - g_j + g``, in place."""
    count, sums = len(found), found.sum(dim=1)
    if exact:
        total = sum(int(value) for value in sums.tolist())  # may pass 2^53
        nearest, middle = (sums / count).round(), round(total / count**2)
        rest = (sums - count * nearest) / count - (total - middle * count**2) / count**2 / 2
    else:
        nearest, middle = torch.zeros_like(sums), 0
        rest = sums / count - sums.sum() / count**2 / 2
    for band in bands:
        found[band] -= nearest[band, None] + (nearest - middle)
        found[band] -= rest[band, None] + rest


def decompose(gram: torch.Tensor, scale: float = 1.0, rank: int | None = None) -> Spectrum:
    """Return the spectrum of the covariance whose rows have this gram.

    Parameters
    ----------
    gram : torch.Tensor
        K = Yc Yc^T, (N, N) float64, on any device. LAPACK takes three more of them beside it for a while; on the CPU
        torch's cannot do N >= 32,767.
    scale : float
        The value range's factor.
    rank : int, optional
        Eigenvalues wanted at the most; all where it is not given.

    Returns
    -------
    Spectrum
        Without what is numerically zero: at most ``N eps LA[0]``, the bound on LAPACK's own error, and in any case all
        past N - 1. A zero matrix keeps one eigenvalue, 0.

    Raises
    ------
    ValueError
        Where less than one eigenvalue is wanted.
    RuntimeError
        Where LAPACK does not converge, which happens to non-finite matrices only.
    """
    if rank is not None and rank < 1:
        raise ValueError(f"the rank is {rank}; it is at least 1")
    count = len(gram)
    factor = scale * scale / (count - 1)
    trace, frobenius = factor * float(gram.trace()), factor * float(torch.linalg.matrix_norm(gram))
    values, vectors = torch.linalg.eigh(gram)
    values = values.flip(0)[: count - 1]
    found = int((values > max(0.0, count * torch.finfo(torch.float64).eps * float(values[0]))).sum())
    if not found:
        zero = torch.zeros(1, dtype=torch.float64)
        return Spectrum(zero, torch.zeros_like(gram[:, :1]), trace, frobenius, complete=True)
    kept = found if rank is None else min(rank, found)
    values = values[:kept]
    # LAPACK's order of memory, columns, would multiply a third slower.
    coefficients = vectors[:, count - kept :].flip(1).contiguous().div_(values.sqrt())
    return Spectrum((factor * values).cpu(), coefficients, trace, frobenius, complete=kept == found)


def columns(rows: Rows, spectrum: Spectrum, device: torch.device) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield (columns of the data, (width, k) float64 on ``device``) of U as ``coefficients`` give it, in one pass.

    Eigenvalues have an error of eps LA[0], so columns i and j are orthogonal to ``eps LA[0] / sqrt(LA[i] LA[j])`` only:
    see ``Check``. The zero matrix has the first unit vector.
    """
    coefficients = spectrum.coefficients.to(device)
    for span, values in centred(rows, device):
        block = values.T @ coefficients
        if spectrum.values[0] == 0 and span.start == 0:
            block[0, 0] = 1
        yield span, block


class Check:
    """What a pass over the columns of U shows: U^T U and the largest component of each.

    Parameters
    ----------
    rank : int
        Columns, k.
    device : torch.device
    """

    def __init__(self, rank: int, device: torch.device) -> None:
        self._gram = torch.zeros((rank, rank), dtype=torch.float64, device=device)
        self._largest = torch.zeros((1, rank), dtype=torch.float64, device=device)
        self._bands = list(Tiling(rank, _BAND).spans())

    def add(self, block: torch.Tensor) -> None:
        """Take the next (width, k) of U into account."""
        for band in self._bands:
            self._gram[band, band.start :].addmm_(block[:, band].T, block[:, band.start :])
        largest = block.gather(0, block.abs().argmax(dim=0, keepdim=True))
        self._largest = torch.where(largest.abs() > self._largest.abs(), largest, self._largest)

    def remedy(self) -> "Remedy":
        """Return what makes the columns orthonormal and their largest components positive.

        Raises
        ------
        RuntimeError
            Where the columns are not independent: they are not those of one ``Spectrum``.
        """
        rank = len(self._gram)
        deviates = (torch.cat([self._deviation(band) for band in self._bands]) > _DEVIATION).nonzero()
        first = int(deviates[0]) if len(deviates) else rank
        factor = torch.eye(rank, dtype=torch.float64, device=self._gram.device)
        if first < rank:
            # inv(R) = inv(lower).T, taken in place: these matrices may be as large as the gram of the rows.
            lower = torch.linalg.cholesky(self._gram.triu_().T)
            torch.linalg.solve_triangular(lower, factor.T, upper=False, out=factor.T)
        return Remedy(factor.mul_(torch.where(self._largest < 0, -1, 1)), first)

    def _deviation(self, band: slice) -> torch.Tensor:
        """Return how far each column of a band of U^T U is from the identity, on and above the diagonal."""
        part = self._gram[: band.stop, band].triu(-band.start)
        part.diagonal(offset=-band.start).sub_(1)
        return part.abs_().amax(dim=0)


@dataclass(frozen=True)
class Remedy:
    """Corrects columns of U by Cholesky QR: ``U <- U inv(R)`` with ``R^T R = U^T U``.

    R is triangular, so a column is corrected by those of larger eigenvalues only, as they are the more accurate. It is
    applied to the columns, not to their coefficients: another product with large coefficients would round as before.

    Parameters
    ----------
    factor : torch.Tensor
        (k, k) upper triangular: inv(R), each column with its sign.
    first : int
        Columns before this one only take their sign.
    """

    factor: torch.Tensor
    first: int

    def apply(self, block: torch.Tensor) -> torch.Tensor:
        """Return (width, k) of U, corrected in place."""
        rank = len(self.factor)
        # From the last band to the first: each needs what is before it as it was.
        for start in range(self.first + (rank - self.first - 1) // _BAND * _BAND, self.first - 1, -_BAND):
            stop = min(start + _BAND, rank)
            block[:, start:stop] = block[:, :stop] @ self.factor[:stop, start:stop]
        block[:, : self.first] *= self.factor.diagonal()[: self.first].sign()
        return block


def vectors(rows: Rows, spectrum: Spectrum, device: torch.device) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield (columns of the data, (width, k) float64 on the CPU) of U, orthonormal, in two passes over the rows.

    The largest component of each eigenvector is positive, the first one where several are largest. Who has room for U
    can store ``columns`` while a ``Check`` looks on, and apply its remedy to what was stored: one pass less.
    """
    check = Check(len(spectrum.values), device)
    for _, block in columns(rows, spectrum, device):
        check.add(block)
    remedy = check.remedy()
    del check
    for span, block in columns(rows, spectrum, device):
        yield span, remedy.apply(block).cpu()
