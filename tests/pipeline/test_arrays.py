"""`.npy` vectors to rows: NumPy's values, or a refusal that says why."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.lib import format as npy_format

from tilecov.pipeline.arrays import npy_row

SHAPES = ((12,), (3, 2, 2))
VERSIONS = [(1, 0), (2, 0), (3, 0)]


def npy(values: npt.NDArray[Any], version: tuple[int, int] = (1, 0)) -> bytes:
    """Encode as .npy; objects are pickled."""
    sink = io.BytesIO()
    npy_format.write_array(sink, values, version)
    return sink.getvalue()


def npy_with_header(header: str, body: bytes = b"") -> bytes:
    """Put any text where the header belongs."""
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode("latin-1") + body


FINITE = {"allow_nan": False, "allow_infinity": False}
ARRAYS = st.sampled_from(["u1", "<f2", ">f2", "<f4", ">f4", "<f8", ">f8"]).flatmap(
    lambda dtype: hnp.arrays(dtype, st.sampled_from(SHAPES), elements=FINITE if "f" in dtype else None)
)


@given(ARRAYS, st.sampled_from("CF"), st.sampled_from(VERSIONS), st.booleans())
def test_row_has_the_stored_values_in_c_order(
    values: npt.NDArray[Any], order: Any, version: tuple[int, int], as_view: bool
) -> None:
    data = npy(np.asarray(values, order=order), version)
    row = npy_row(memoryview(b"x" + data + b"x")[1:-1] if as_view else data, SHAPES)
    assert row.shape == (12,)
    assert row.dtype == (np.float32 if values.itemsize == 2 else values.dtype.newbyteorder("="))
    assert row.dtype.isnative
    np.testing.assert_array_equal(row, values.reshape(-1))


@pytest.mark.parametrize(
    "values",
    [
        np.zeros(12, dtype)
        for dtype in ("i1", "<i4", ">u2", "<u8", "?", "<c8", "<M8[s]", "S4", "<U3", "V5", [("a", "<f4"), ("b", "u1")])
    ],
    ids=lambda values: str(values.dtype),
)
def test_other_dtypes_are_refused_by_name(values: npt.NDArray[Any]) -> None:
    with pytest.raises(ValueError, match="only uint8, float16, float32 and float64 are accepted") as caught:
        npy_row(npy(values, (3, 0)), SHAPES)
    assert f"dtype {values.dtype}," in str(caught.value)


class Spy:
    """Creates a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return Path.touch, (self.path,)  # type: ignore[return-value]


def test_objects_are_refused_and_never_unpickled(tmp_path: Path) -> None:
    data = npy(np.array([Spy(tmp_path / "ran")] * 12, dtype=object))
    with pytest.raises(ValueError, match="dtype object"):
        npy_row(data, SHAPES)
    assert not (tmp_path / "ran").exists()
    np.load(io.BytesIO(data), allow_pickle=True)
    assert (tmp_path / "ran").exists()  # the spy works


@pytest.mark.parametrize("shape", [(), (0,), (11,), (2, 3, 2), (2, 2, 3), (12, 1), (1, 12)])
def test_wrong_shape_is_refused_with_those_expected(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected") as caught:
        npy_row(npy(np.zeros(shape, np.float32)), SHAPES)
    assert str(caught.value) == f"The array has shape {shape}, but (12,) or (3, 2, 2) is expected."


@pytest.mark.parametrize("change", [-48, -4, -1, 1, 4, 1000])
@pytest.mark.parametrize("order", ["C", "F"])
def test_payload_of_another_length_is_refused_with_both_numbers(change: int, order: Any) -> None:
    data = npy(np.zeros((3, 2, 2), np.float32, order=order))
    data = data[:change] if change < 0 else data + bytes(change)
    with pytest.raises(ValueError, match=rf"takes 48 bytes, but {48 + change:,} follow its header.* is (cut|followed)"):
        npy_row(data, SHAPES)


def test_huge_array_that_is_not_there_is_refused_before_it_is_allocated() -> None:
    shape = (2**20, 2**20)
    data = npy_with_header(f"{{'descr': '<f8', 'fortran_order': True, 'shape': {shape}}}\n", b"12345678")
    with pytest.raises(ValueError, match=r"takes 8,796,093,022,208 bytes, but 8 follow"):
        npy_row(data, (shape,))


@given(
    hnp.arrays(st.sampled_from(["<f2", ">f4", "<f8"]), (3, 2, 2), elements=FINITE),
    st.dictionaries(st.integers(0, 11), st.sampled_from([np.nan, np.inf, -np.inf]), min_size=1),
)
def test_values_that_are_no_numbers_are_refused_with_count_and_place(
    values: npt.NDArray[Any], bad: dict[int, float]
) -> None:
    values.reshape(-1)[list(bad)] = list(bad.values())
    with pytest.raises(ValueError, match=rf"^{len(bad)} of 12 values .* at index {min(bad)} \({bad[min(bad)]}\)"):
        npy_row(npy(values), SHAPES)


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"", "magic"),
        (b"\x93NUMPY", "magic"),
        (b"\x89PNG\r\n\x1a\n" + bytes(90), "magic"),
        (b"\x93NUMPY\x09\x00" + bytes(90), r"version \(9, 0\)"),
        (b"\x93NUMPY\x01\x00\xff\xff", "EOF"),
        (npy_with_header("[1]"), "not a dictionary"),
        (npy_with_header("{'shape': (12,)}"), "correct keys"),
        (npy_with_header("{'descr': 'what', 'fortran_order': False, 'shape': (12,)}"), "descr"),
        (npy_with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (1.5,)}"), "shape"),
        (npy_with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (-12,)}"), r"shape \(-12,\)"),
        (npy_with_header("{'descr': '<f4', 'fortran_order': False, 'shape': __import__('os').abort()}"), "malformed"),
        (npy_with_header("(" * 9000), "header"),
        (npy_with_header("-" * 9000 + "1"), "header"),
        (npy_with_header(" " * 12_000), "large"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\x7f", "EOF"),
    ],
)
def test_damaged_header_is_refused_with_its_cause(data: bytes, cause: str) -> None:
    with pytest.raises(ValueError, match=cause) as caught:
        npy_row(data, SHAPES)
    assert len(str(caught.value)) < 400
    assert "allow_pickle" not in str(caught.value)  # NumPy's own advice


@given(st.data())
def test_damaged_bytes_give_a_row_or_a_value_error(draw: st.DataObject) -> None:
    data = bytearray(npy(np.arange(12, dtype=np.float32)))
    for _ in range(draw.draw(st.integers(1, 3))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    try:
        row = npy_row(bytes(data), SHAPES)
    except ValueError:
        return
    assert np.isfinite(row).all()
    assert row.shape == (12,)
