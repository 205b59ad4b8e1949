"""Ledgers added and subtracted: which shards count in a run made of other runs."""

from collections.abc import Iterable
from typing import Any

from .errors import OtherJobError

Line = dict[str, Any]


def combine(read: Iterable[tuple[int, Iterable[Line]]], *, allow_duplicates: bool = True) -> list[Line]:
    """Return the ledger of runs that are added (sign 1) and taken away (sign -1).

    Parameters
    ----------
    read : iterable of (int, iterable of dict)
        Each run's sign and ledger, those added first.
    allow_duplicates : bool
        Whether a shard that two runs have read may count twice.

    Raises
    ------
    OtherJobError
        Where a shard would count twice, or is taken away and not there.
    """
    lines: dict[str, list[Line]] = {}
    for sign, ledger in read:
        for line in ledger:
            found = lines.setdefault(line["url"], [])
            if sign < 0:
                same = next((there for there in found if _is_same(there, line)), None)
                if same is None:
                    raise OtherJobError(f"{line['url']} is not among the runs added, as it was read")
                found.remove(same)
            elif found and not allow_duplicates:
                raise OtherJobError(
                    f"{line['url']} was read by two of the runs, its {line['used']} rows would count twice; "
                    "--allow-duplicates lets them"
                )
            else:
                found.append(line)
    return [line for found in lines.values() for line in found]


def _is_same(there: Line, line: Line) -> bool:
    """Return whether two lines agree in all that both say; ledgers of earlier versions say less."""
    return all(there[name] == line[name] for name in there.keys() & line.keys())
