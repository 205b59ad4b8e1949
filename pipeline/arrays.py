"""Samples that are `.npy` vectors instead of pictures.

The header is a Python literal, which NumPy's own reader parses without evaluating it; an array of objects would be a
pickle and is refused by its dtype. Nothing is allocated before the declared shape has met the bytes that are there.
"""

import io
import math
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

ARRAY_EXTENSIONS = ("npy",)

# What each stored dtype becomes: float16 sums would overflow, all else stays as it is (in the machine's byte order).
_ROW_DTYPES = {"u1": np.uint8, "f2": np.float32, "f4": np.float32, "f8": np.float64}
# 3.0 differs from 2.0 only in the encoding of field names, and an array with fields is refused anyway.
_HEADER_READERS = {
    (1, 0): npy.read_array_header_1_0,
    (2, 0): npy.read_array_header_2_0,
    (3, 0): npy.read_array_header_2_0,
}
_HEADER_BYTES = 2**14  # NumPy refuses headers above 10,000 bytes; no more than this is looked at


def npy_row(
    data: bytes | memoryview, shapes: tuple[tuple[int, ...], ...]
) -> NDArray[np.uint8] | NDArray[np.float32] | NDArray[np.float64]:
    """Read a `.npy` file as one row.

    Parameters
    ----------
    data
        The whole file, in format version 1.0, 2.0 or 3.0; C or Fortran order, either byte order.
    shapes
        The shapes accepted, such as ``((d,), (C, H, W))``.

    Returns
    -------
    Shape (d,), in C order of the stored shape, native byte order. uint8, float32 and float64 keep their dtype, float16
    becomes float32. May be a read-only view of `data`.

    Raises
    ------
    ValueError
        The bytes are no `.npy` file or not as many as declared; another dtype or shape; NaN or infinity.
    """
    shape, fortran, dtype, start = _read_header(data)
    row_dtype = _ROW_DTYPES.get(f"{dtype.kind}{dtype.itemsize}")
    if row_dtype is None:
        raise ValueError(
            f"The array has dtype {dtype}, but only uint8, float16, float32 and float64 are accepted. "
            "Save it as one of them."
        )
    if shape not in shapes:
        raise ValueError(f"The array has shape {shape}, but {' or '.join(map(str, shapes))} is expected.")
    _check_length(shape, dtype, len(data) - start)
    stored = np.frombuffer(data, dtype, count=math.prod(shape), offset=start)
    row = stored.reshape(shape, order="F" if fortran else "C").reshape(-1).astype(row_dtype, copy=False)
    _check_finite(row)
    return row


def _read_header(data: bytes | memoryview) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Return the shape, whether it is in Fortran order, the dtype, and the offset of the values in bytes."""
    stream = io.BytesIO(data[:_HEADER_BYTES])
    try:
        version = npy.read_magic(stream)
        shape, fortran, dtype = _HEADER_READERS[version](stream)
    except KeyError as error:
        raise ValueError(f"The .npy format version {error} is none of {[*_HEADER_READERS]}. Save it anew.") from error
    except Exception as error:
        cause = (str(error) or type(error).__name__).partition("\n")[0][:200]  # NumPy quotes whole headers
        raise ValueError(
            f"These {len(data)} bytes have no sound .npy header: {cause}. Write the array again with numpy.save."
        ) from error
    return shape, fortran, dtype, stream.tell()


def _check_length(shape: tuple[int, ...], dtype: np.dtype[Any], found: int) -> None:
    needed = math.prod(shape) * dtype.itemsize
    if found != needed:
        raise ValueError(
            f"The array of shape {shape} and dtype {dtype} takes {needed:,} bytes, but {found:,} follow its header. "
            f"It is {'cut short' if found < needed else 'followed by something else'}: write it again, or skip it."
        )


def _check_finite(row: NDArray[Any]) -> None:
    finite = np.isfinite(row)
    if not finite.all():
        first = int(np.argmin(finite))
        raise ValueError(
            f"{np.count_nonzero(~finite):,} of {row.size:,} values are NaN or infinite, the first at index {first} "
            f"({row[first]}). Repair the array, or skip it."
        )
