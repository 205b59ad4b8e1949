"""Ledgers added and taken away, line by line."""

from typing import Any

import pytest

from tilecov.pipeline.errors import OtherJobError
from tilecov.pipeline.ledgers import combine

LINE: dict[str, Any] = {"url": "a.tar", "size": 10, "tag": "1", "crc32": 7, "used": 3}


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in LINE.items() if key != name}


@pytest.mark.parametrize("taken", [LINE, without("crc32")])
def test_a_line_is_taken_away_also_by_a_ledger_that_says_less(taken: dict[str, Any]) -> None:
    assert combine([(1, [LINE]), (-1, [taken])]) == []


@pytest.mark.parametrize("change", [{"crc32": 8}, {"tag": "2"}, {"url": "b.tar"}])
def test_what_was_read_otherwise_is_not_taken_away(change: dict[str, Any]) -> None:
    with pytest.raises(OtherJobError, match="not among the runs added"):
        combine([(1, [LINE]), (-1, [{**LINE, **change}])])


def test_twice_only_where_it_is_allowed() -> None:
    assert combine([(1, [LINE]), (1, [LINE])]) == [LINE, LINE]
    with pytest.raises(OtherJobError, match="3 rows would count twice"):
        combine([(1, [LINE]), (1, [LINE])], allow_duplicates=False)
