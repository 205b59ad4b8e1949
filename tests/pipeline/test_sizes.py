"""Sizes and durations as people write and read them."""

import re
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilecov.pipeline.sizes import parse_size, show_size, show_time

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
UNITS |= {f"{unit}i": 2 ** (10 * power) for power, unit in enumerate("KMGT", 1)}


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4GiB", 4 * 2**30),
        ("500MB", 500_000_000),
        ("2g", 2_000_000_000),
        ("1048576", 1048576),
        (1048576, 1048576),
        ("0", 0),
        ("007", 7),
        ("1.5 KiB", 1536),
        ("0.5kb", 500),
        ("  3 TiB  ", 3 * 2**40),
        ("10 B", 10),
        ("1Mi", 2**20),
        ("1.9", 1),
        ("2.3KB", 2300),
        ("1.001 MB", 1_001_000),
        ("8.2GB", 8_200_000_000),
    ],
)
def test_sizes_are_what_they_say(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@given(st.integers(0, 2**53))
def test_a_number_of_bytes_is_itself(size: int) -> None:
    assert parse_size(size) == parse_size(str(size)) == parse_size(f"{size}B") == size


@given(st.decimals(0, 2000, places=3), st.sampled_from(list(UNITS)), st.sampled_from(["", "B"]), st.booleans())
def test_any_case_and_fraction_counts_to_the_byte(number: Decimal, unit: str, byte: str, upper: bool) -> None:
    text = f"{number} {unit}{byte}"
    assert parse_size(text.upper() if upper else text.lower()) == int(number * UNITS[unit])


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "B", "GiB", "-1", "-1GB", "+1", "1e9", "4 XB", "4GiBs", "4 Gi B", "1.", ".5", "1,5GB", "5iB", "5i",
        "4G 5M", "0x10", "inf", "nan", "4\u00a0Gigabytes", "\u0664GB", "4KK", "4PB", "None",
    ],
)  # fmt: skip
def test_what_is_no_size_is_refused_with_examples(text: str) -> None:
    with pytest.raises(ValueError, match=rf"{re.escape(repr(text))} is no size; .*4GiB.*500MB"):
        parse_size(text)


@pytest.mark.parametrize("number", [-1, -(2**40), 1e300, True])
def test_numbers_that_are_no_size_are_refused(number: int) -> None:
    with pytest.raises(ValueError, match="is no size"):
        parse_size(number)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (2**20, "1.0 MiB"),
        (int(2.5 * 2**30), "2.5 GiB"),
        (2**40, "1.0 TiB"),
        (5000 * 2**40, "5000.0 TiB"),
        (-2048, "-2.0 KiB"),
    ],
)
def test_sizes_are_shown_in_the_unit_that_fits(size: int, text: str) -> None:
    assert show_size(size) == text


@given(st.integers(0, 2**60))
def test_what_is_shown_can_be_typed_again(size: int) -> None:
    """One digit is shown after the point: the size comes back to a twentieth of its unit."""
    shown = show_size(size)
    unit = UNITS[shown.split()[1].removesuffix("B")]
    assert abs(parse_size(shown) - size) <= (0 if unit == 1 else unit / 20 + 1)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (0.04, "0.0 s"),
        (12.34, "12.3 s"),
        (60, "1 min 0 s"),
        (200, "3 min 20 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 0 min"),
        (3600, "1 h 0 min"),
        (7384, "2 h 3 min"),
        (360_000, "100 h 0 min"),
    ],
)
def test_durations_are_shown_as_people_say_them(seconds: float, text: str) -> None:
    assert show_time(seconds) == text
