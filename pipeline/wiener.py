"""The Wiener filter of a dataset: computed, saved, loaded, and used to denoise.

Names, arguments, file names and shapes are those of the reference implementation of analytic diffusion models; see
Wiener, "Extrapolation, Interpolation, and Smoothing of Stationary Time Series" (1949), for the estimator.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from tilecov.storage.artifacts import write_tensor
from tilecov.storage.objects import Folder
from tilecov.storage.tiling import Tiling

from .accumulate import panels_of
from .covariance import covariance_tile, mean_vector
from .floatsums import FloatAccumulator

FILES = ("U.pt", "LA.pt", "Vh.pt", "mean.pt")
_BLOCK = 4096  # rows multiplied at a time

Batch = torch.Tensor | tuple[Any, ...] | list[Any]


def compute_wiener_filter(
    dataloader: Iterable[Batch], device: torch.device | str, resolution: int, n_channels: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the covariance and the mean of the images that ``dataloader`` gives.

    Parameters
    ----------
    dataloader : iterable
        Of float tensors (B, C, H, W) or (B, d), or of tuples that begin with one. It is read once: a generator will do.
    device : torch.device or str
    resolution, n_channels : int
        Images have d = n_channels * resolution**2 values.

    Returns
    -------
    S : torch.Tensor
        (d, d) float32 on ``device``, divided by N - 1.
    mean : torch.Tensor
        (d,) float32 on ``device``.

    Raises
    ------
    RuntimeError
        Where there is no image, or only one, whose covariance is undefined.
    ValueError
        Where an image has another size, or batches disagree in theirs.

    Notes
    -----
    Sums are taken about the mean of the first block, in float64, and corrected at the end: as accurate as two passes
    (Chan, Golub and LeVeque, 1983) at the price of one.
    """
    size = n_channels * resolution**2
    where, tiling = torch.device(device), Tiling(size, min(size, 1024))
    torch.set_float32_matmul_precision("highest")  # TF32 would keep three digits
    accumulator: FloatAccumulator | None = None
    origin = torch.zeros(size, dtype=torch.float64)
    for block in _blocks(dataloader, size):
        if accumulator is None:
            origin = block.to(torch.float64).mean(dim=0).cpu()
            accumulator = FloatAccumulator(tiling, tiling.upper(), origin, where)
        accumulator.add(panels_of(block, tiling))
    if accumulator is None:
        raise RuntimeError("the dataloader gave no image; the mean and the covariance of nothing are undefined")
    if accumulator.count < 2:
        raise RuntimeError("the dataloader gave one image; the covariance needs at least two")
    count, sums, tiles = accumulator.take()
    covariance = torch.empty((size, size), dtype=torch.float32, device=where)
    for (i, j), gram in tiles:
        rows, columns = tiling.span(i), tiling.span(j)
        tile = torch.from_numpy(covariance_tile(count, sums[rows], sums[columns], gram)).to(where, torch.float32)
        covariance[rows, columns], covariance[columns, rows] = tile, tile.T
    mean = torch.from_numpy(mean_vector(count, sums, origin.numpy()))
    return covariance, mean.to(where, torch.float32)


def _blocks(dataloader: Iterable[Batch], size: int) -> Iterator[torch.Tensor]:
    """Yield (n, size) blocks of about _BLOCK rows, so that a tile is added to once a block and not once a batch."""
    waiting: list[torch.Tensor] = []
    shape: torch.Size | None = None
    for batch in dataloader:
        images = torch.as_tensor(batch[0] if isinstance(batch, tuple | list) else batch)
        if shape is not None and images.shape[1:] != shape:
            raise ValueError(f"batches disagree: images of {tuple(shape)} before, of {tuple(images.shape[1:])} now")
        shape = images.shape[1:]
        if shape.numel() != size:
            raise ValueError(
                f"images of {tuple(shape)} have {shape.numel()} values; resolution and n_channels say {size}"
            )
        waiting.append(images.detach().flatten(start_dim=1).clone())  # a loader may fill one buffer again and again
        if sum(map(len, waiting)) >= _BLOCK:
            yield torch.cat(waiting)
            waiting = []
    if sum(map(len, waiting)):
        yield torch.cat(waiting)


def save_wiener_filter(
    U: torch.Tensor, LA: torch.Tensor, Vh: torch.Tensor, mean: torch.Tensor, save_path: str | Path
) -> None:
    """Write ``U.pt``, ``LA.pt``, ``Vh.pt`` and ``mean.pt`` as float32 into the folder ``save_path``, which is made."""
    folder = Folder(str(save_path))
    for name, tensor in zip(FILES, (U, LA, Vh, mean), strict=True):
        values = tensor.detach().to("cpu", torch.float32).numpy()
        write_tensor(folder, name, tuple(values.shape), [values])


def load_wiener_filter(
    load_path: str | Path, device: torch.device | str | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Load U (d, k), LA (k,), Vh (k, d) and mean (d,) from the folder ``load_path``.

    Raises
    ------
    FileNotFoundError
        Naming the files that are missing.
    """
    folder = Path(load_path)
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{folder} has no {', '.join(missing)}; `tilecov run` writes all four to RUN/artifacts")
    U, LA, Vh, mean = (torch.load(folder / name, map_location=device, weights_only=True) for name in FILES)
    return U, LA, Vh, mean


@dataclass(frozen=True)
class WienerFilter:
    """The optimal linear denoiser of a dataset with this mean and covariance.

    Parameters
    ----------
    U : torch.Tensor
        (d, k) eigenvectors of the covariance.
    LA : torch.Tensor
        (k,) its eigenvalues.
    Vh : torch.Tensor
        (k, d).
    mean : torch.Tensor
        (d,).
    tail : float, optional
        Variance of each of the d - k components outside the k kept, taken to be equal in all directions as in
        probabilistic PCA (Tipping and Bishop, 1999). None: they do not vary, and are set to the mean.

    Raises
    ------
    ValueError
        Where ``tail`` is no variance.
    """

    U: torch.Tensor
    LA: torch.Tensor
    Vh: torch.Tensor
    mean: torch.Tensor
    tail: float | None = None

    def __post_init__(self) -> None:
        if self.tail is not None and not 0 <= self.tail < math.inf:
            raise ValueError(f"tail is a variance, a finite number of at least 0, not {self.tail}")

    @classmethod
    def load(
        cls, path: str | Path, device: torch.device | str | None = None, tail: Literal["isotropic"] | None = None
    ) -> "WienerFilter":
        """Load the filter from a folder with the four files, or from a run folder.

        Parameters
        ----------
        path : str or Path
        device : torch.device or str, optional
        tail : "isotropic", optional
            Take the components outside the k kept to have the mean of the cut eigenvalues,
            ``(trace - sum(LA)) / (d - k)``, as their variance. The trace is known to a run's folder, the mean itself
            to one that ``tilecov export --what shrunk`` wrote.

        Raises
        ------
        FileNotFoundError
            Naming the files that are missing.
        ValueError
            Where the folder has fewer components than values and says nothing of the rest.
        """
        folder = Path(path)
        inside = folder / "artifacts"
        four = load_wiener_filter(inside if inside.is_dir() else folder, device)
        if tail is None:
            return cls(*four)
        if tail != "isotropic":
            raise ValueError(f"tail is 'isotropic' or None, not {tail!r}; WienerFilter(*four, tail=variance) sets one")
        from .derived import tail_of

        _, LA, _, mean = four
        return cls(*four, tail=tail_of(Folder(str(folder)), LA.double().cpu().numpy(), len(mean)))

    def shrink(self, alpha_bar: float | torch.Tensor) -> torch.Tensor:
        """Return a LA / (1 - a + a LA), (k,) or (B, k): what is kept of each component at noise level ``alpha_bar``."""
        return self._shrink(alpha_bar, self.LA)

    def _shrink(self, alpha_bar: float | torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
        a = torch.as_tensor(alpha_bar, dtype=self.LA.dtype, device=self.LA.device)
        if not bool(((a > 0) & (a <= 1)).all()):
            raise ValueError(f"alpha_bar is a signal level in (0, 1], not {alpha_bar}")
        signal = a[..., None] * variance
        # Without noise (a = 1) a component of no variance is 0 / 0; it holds nothing, so nothing is kept.
        return torch.nan_to_num(signal / ((1 - a)[..., None] + signal), nan=0.0)

    def denoise(self, x_t: torch.Tensor, alpha_bar: float | torch.Tensor) -> torch.Tensor:
        """Return the estimate of x_0 from ``x_t = sqrt(a) x_0 + sqrt(1 - a) noise``.

        ``mean + U (shrink * (Vh r))``, r = x_t / sqrt(a) - mean: O(d k) an image, no d x d matrix. With a tail t, which
        is shrunk by s = a t / (1 - a + a t), ``mean + s r + U ((shrink - s) * (Vh r))``.

        Parameters
        ----------
        x_t : torch.Tensor
            (..., d) or (..., C, H, W): rows or images; the result has the same shape.
        alpha_bar : float or torch.Tensor
            a in (0, 1], one number or one an image, (B,).

        Raises
        ------
        ValueError
            Where the images have another size than the filter, or ``alpha_bar`` is no signal level.
        """
        rows = self._rows(x_t).to(self.LA.dtype)
        a = torch.as_tensor(alpha_bar, dtype=self.LA.dtype, device=self.LA.device)
        if a.ndim and a.shape != rows.shape[: a.ndim]:
            raise ValueError(f"alpha_bar of {tuple(a.shape)} does not go with images of {tuple(x_t.shape)}")
        centred = rows / a.sqrt()[..., None] - self.mean
        if self.tail is None or len(self.LA) == len(self.mean):
            estimate = self.mean + (self.shrink(a) * (centred @ self.Vh.T)) @ self.U.T
        else:
            rest = self._shrink(a, self.LA.new_tensor([self.tail]))
            estimate = self.mean + rest * centred + ((self.shrink(a) - rest) * (centred @ self.Vh.T)) @ self.U.T
        return estimate.reshape(x_t.shape).to(x_t.dtype)

    def _rows(self, x_t: torch.Tensor) -> torch.Tensor:
        size = len(self.mean)
        if x_t.ndim >= 3 and x_t.shape[-3:].numel() == size:
            return x_t.flatten(start_dim=-3)
        if x_t.ndim and x_t.shape[-1] == size:
            return x_t
        raise ValueError(f"images of {tuple(x_t.shape)} do not fit a filter of {size} values")
