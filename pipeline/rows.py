"""Samples to rows: what a row is, and how one sample becomes one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .arrays import npy_row
from .grouping import Grouping
from .images import MAX_PIXELS, image_row, usual_rows
from .job import Job
from .shards import Sample

Kind = Literal["uint8", "float32", "float64"]


@dataclass(frozen=True, slots=True)
class RowSpec:
    """What a row is.

    Parameters
    ----------
    channels, resolution : int
        Rows have d = channels * resolution**2 values, CHW.
    image_keys : tuple of str
        Extensions, the first that a sample has is read.
    kind : str
        The dtype of all rows: uint8 for images and uint8 arrays, float32 or float64 for float arrays.
    max_sample : int
        Bytes; larger files are refused before they are read.
    grouping : Grouping or None
        How samples fall into groups.
    """

    channels: int
    resolution: int
    image_keys: tuple[str, ...]
    kind: Kind
    max_sample: int
    grouping: Grouping | None = None

    @classmethod
    def of(cls, job: Job, kind: Kind) -> "RowSpec":
        """Return the rows that ``job`` asks for."""
        grouping = Grouping.parse(job.group_by) if job.group_by else None
        return cls(job.channels, job.resolution, job.image_key, kind, job.max_sample, grouping)

    @property
    def size(self) -> int:
        """Values of a row, d."""
        return self.channels * self.resolution**2

    @property
    def itemsize(self) -> int:
        """Bytes of a value."""
        return np.dtype(self.kind).itemsize

    def decode_usual(self, samples: Sequence[Sample], out: npt.NDArray[Any], max_pixels: int) -> Sequence[int]:
        """Write the rows of samples of the most usual kind into ``out``, (n, d); return the indices of those left.

        Those are `decode`'s, and whatever is to be said of them.
        """
        if self.kind != "uint8" or self.resolution**2 > max_pixels:
            return range(len(samples))
        rows = out.reshape(len(samples), self.channels, self.resolution, self.resolution)
        # A picture that calls itself an array is none, so nothing is shown of arrays.
        return usual_rows([b"" if sample.extension == "npy" else sample.data for sample in samples], rows)

    def decode(self, sample: Sample, out: npt.NDArray[Any], max_pixels: int = MAX_PIXELS) -> None:
        """Write the row of ``sample`` into ``out``, (d,).

        Raises
        ------
        ValueError
            With the cause, where the sample is damaged, too large or no row of this kind.
        """
        if sample.extension != "npy":
            if self.kind != "uint8":
                raise ValueError(f"an image in a dataset of {self.kind} arrays; choose one with --image-key")
            image_row(sample.data, self.channels, self.resolution, out, max_pixels=max_pixels)
            return
        row = npy_row(sample.data, array_shapes(self.channels, self.resolution))
        if (row.dtype == np.uint8) != (self.kind == "uint8") or row.itemsize > out.itemsize:
            raise ValueError(f"a {row.dtype} array in a dataset of {self.kind} rows; keep them in separate runs")
        out[:] = row


def array_shapes(channels: int, resolution: int) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of an array that make a row: (d,), (C, H, W), and (H, W) where there is one channel."""
    image = (channels, resolution, resolution)
    flat = (channels * resolution**2,)
    return (flat, image, image[1:]) if channels == 1 else (flat, image)


def kind_of(sample: Sample, channels: int, resolution: int) -> Kind:
    """Return the kind of rows that a dataset with this sample has.

    Raises
    ------
    ValueError
        Where the sample cannot become a row.
    """
    if sample.extension != "npy":
        return "uint8"
    name = npy_row(sample.data, array_shapes(channels, resolution)).dtype.name
    return "uint8" if name == "uint8" else "float64" if name == "float64" else "float32"
