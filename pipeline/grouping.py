"""Which group a sample belongs to: by its class file, a field of its JSON file, or its key."""

import json
import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote

from .shards import Sample

LONGEST = 100
"""Characters of a label; a longer one is a sign that the field is not a class."""


@dataclass(frozen=True, slots=True)
class Grouping:
    """How samples fall into groups.

    Parameters
    ----------
    kind : str
    argument : str
        The JSON field, or the regular expression.
    """

    kind: Literal["cls", "json", "key"]
    argument: str = ""

    @classmethod
    def parse(cls, text: str) -> "Grouping":
        """Return what ``cls``, ``json:FIELD`` or a regular expression on the key asks for.

        Raises
        ------
        ValueError
            Where the field is empty or the expression is none.
        """
        if text == "cls":
            return cls("cls")
        if text.startswith("json:"):
            if len(text) == len("json:"):
                raise ValueError("json: names no field; write --group-by json:FIELD")
            return cls("json", text.removeprefix("json:"))
        try:
            re.compile(text)
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f"{text!r} is neither cls nor json:FIELD nor a regular expression: {error}") from error
        return cls("key", text)

    @property
    def companion(self) -> str:
        """The extension of the file, beside the image, that the label is read from; empty where it is the key."""
        return "" if self.kind == "key" else self.kind

    def label(self, sample: Sample) -> str:
        """Return the group of ``sample``.

        Raises
        ------
        ValueError
            Where the sample does not say.
        """
        label = self._found(sample).strip()
        if not label or len(label) > LONGEST:
            raise ValueError(
                f"its group is {label[:LONGEST]!r} of {len(label)} characters; 1 to {LONGEST} make a label"
            )
        return label

    def _found(self, sample: Sample) -> str:
        if self.kind == "key":
            found = re.search(self.argument, sample.key)
            if found is None:
                raise ValueError(f"its key does not match --group-by {self.argument!r}")
            return (found[1] if found.re.groups else found[0]) or ""
        if sample.companion is None:
            raise ValueError(f"it has no .{self.companion} file, which --group-by reads")
        text = bytes(sample.companion).decode("utf-8", errors="replace")
        return text if self.kind == "cls" else self._field(text)

    def _field(self, text: str) -> str:
        try:
            value = json.loads(text)[self.argument]
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise ValueError(f"its .json file has no field {self.argument!r}, which --group-by reads") from error
        return value if isinstance(value, str) else json.dumps(value)


def folder_name(label: str) -> str:
    """Return ``label`` as the name of a Zarr group: letters, digits, - and _ as they are, the rest as %XX."""
    return quote(label, safe="").replace(".", "%2E").replace("~", "%7E")
