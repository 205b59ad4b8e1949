"""Rows of values as small PNG pictures inside an HTML page."""

import base64
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Array = npt.NDArray[Any]

LARGEST = 256
"""Pixels a side above which a picture is made smaller: what a page shows at most, and what bounds its size."""

_COLD, _MIDDLE, _WARM = (33, 102, 172), (245, 245, 242), (178, 24, 43)


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture as the page takes it.

    Parameters
    ----------
    source : str
        A data URI.
    label : str
        What it shows, in words: for those who do not see it too.
    caption : str
    """

    source: str
    label: str
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Look:
    """How rows are shown: their shape, and the values that are black and white.

    Parameters
    ----------
    shape : (int, int, int)
        C, H, W.
    low, high : float
    """

    shape: tuple[int, int, int]
    low: float
    high: float

    @property
    def half(self) -> float:
        """Half the range of the values."""
        return (self.high - self.low) / 2

    def show(self, row: Array, label: str, caption: str = "") -> Picture:
        """Return a row (d,) of values between low and high as a picture."""
        scaled = (row.astype(np.float32) - self.low) / ((self.high - self.low) or 1.0)
        return Picture(_encode(self._planes(scaled)), label, caption)

    def show_signed(self, row: Array, label: str, caption: str = "") -> Picture:
        """Return a row (d,) about 0 as a picture: gray is 0, the largest size is black or white."""
        size = float(np.abs(row).max()) or 1.0
        return Picture(_encode(self._planes(0.5 + 0.5 * row.astype(np.float32) / size)), label, caption)

    def _planes(self, row: Array) -> Array:
        """Return (H, W, 3) or (H, W) of a row."""
        planes = row.reshape(self.shape)
        return planes.transpose(1, 2, 0) if len(planes) == 3 else planes[0]


def show_diverging(plane: Array, label: str, caption: str = "") -> Picture:
    """Return (H, W) values in [-1, 1] as blue, white and red."""
    values = np.clip(plane.astype(np.float32), -1, 1)[..., None]
    middle = np.array(_MIDDLE, np.float32)
    colours = np.where(
        values < 0, middle - values * (np.array(_COLD) - middle), middle + values * (np.array(_WARM) - middle)
    )
    return Picture(_encode(colours / 255), label, caption)


def _encode(planes: Array) -> str:
    """Return a data URI of values in [0, 1], (H, W) or (H, W, 3)."""
    pixels = (np.clip(np.nan_to_num(planes), 0, 1) * 255 + 0.5).astype(np.uint8)
    image = Image.fromarray(pixels)
    if max(image.size) > LARGEST:
        image.thumbnail((LARGEST, LARGEST), Image.Resampling.BOX)
    sink = io.BytesIO()
    image.save(sink, "PNG")
    return "data:image/png;base64," + base64.b64encode(sink.getvalue()).decode()
