"""A run's folder: its manifest, its commits and its ledger."""

import json
import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from .objects import Folder

FORMAT = 1
"""Version of the run folder's layout; another one is refused by name."""

MANIFEST = "run.json"
LEDGER = "ledger.jsonl"
STATISTICS = "statistics.zarr"
MOMENTS = "moments.zarr"
ARTIFACTS = "artifacts"
WORK = "work"
REPORT = "report.html"

_ATTEMPT = re.compile(r".+-[0-9a-f]{12}")  # as `fresh` names them


class OtherFormatError(ValueError):
    """The folder was written by a version of tilecov with another layout."""


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run.

    Parameters
    ----------
    root : Folder
    """

    root: Folder

    @property
    def url(self) -> str:
        """Where the run is."""
        return self.root.url

    def folder(self, name: str) -> Folder:
        """Return a folder of the run, such as STATISTICS."""
        return self.root.folder(name)

    def load(self) -> dict[str, Any] | None:
        """Return the manifest, or None where there is no run yet.

        Raises
        ------
        OtherFormatError
            Where its format version is not this one's.
        ValueError
            Where it is no JSON.
        """
        try:
            raw = self.root.read(MANIFEST)
        except FileNotFoundError:
            return None
        try:
            manifest = dict(json.loads(raw))
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{self.root.path(MANIFEST)} is damaged ({error}); remove the folder and run again"
            ) from error
        if manifest.get("format") != FORMAT:
            found = manifest.get("format")
            raise OtherFormatError(
                f"{self.url} has run format {found}, this tilecov writes {FORMAT}; choose another --out"
            )
        return manifest

    def save(self, manifest: Mapping[str, Any]) -> None:
        """Write the manifest, all at once."""
        self.root.write(MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())

    def commit(self, stage: str, task: str, record: Mapping[str, Any]) -> dict[str, Any]:
        """Make a task's result count: one small file, written last, by whoever is first.

        Returns
        -------
        dict
            The record that counts: of another attempt at the task, where that was first.
        """
        name = f"{WORK}/commits/{stage}/{task}.json"
        try:
            self.root.create(name, json.dumps(record).encode())
        except FileExistsError:
            return dict(json.loads(self.root.read(name)))
        return dict(record)

    def renew(self, stage: str, task: str, record: Mapping[str, Any]) -> None:
        """Replace what a task has committed, as its work goes on."""
        self.root.write(f"{WORK}/commits/{stage}/{task}.json", json.dumps(record).encode())

    def forget(self, stage: str, task: str = "") -> None:
        """Take a commit back, or all of a stage, so that it is made again."""
        self.root.remove(f"{WORK}/commits/{stage}/{task}.json" if task else f"{WORK}/commits/{stage}")

    def commits(self, stage: str) -> dict[str, dict[str, Any]]:
        """Return the records of the tasks of ``stage`` that are done, by name."""
        names = [name for name in self.root.names(f"{WORK}/commits/{stage}") if name.endswith(".json")]
        raw = {name.removesuffix(".json"): self.root.read(f"{WORK}/commits/{stage}/{name}") for name in names}
        return {task: json.loads(text) for task, text in raw.items()}

    def fresh(self, stage: str, task: str) -> str:
        """Return the name of a folder that no attempt at the task has used."""
        return f"{WORK}/{stage}/{task}-{uuid.uuid4().hex[:12]}"

    def sweep(self) -> None:
        """Remove what attempts left behind that no commit names: those of a process that died."""
        committed = "".join(
            self.root.read(f"{WORK}/commits/{stage}/{name}").decode()
            for stage in self.root.names(f"{WORK}/commits")
            for name in self.root.names(f"{WORK}/commits/{stage}")
            if name.endswith(".json")
        )
        for stage in self.root.names(WORK):
            for attempt in filter(_ATTEMPT.fullmatch, self.root.names(f"{WORK}/{stage}")):
                if attempt not in committed:
                    self.root.remove(f"{WORK}/{stage}/{attempt}")

    def write_ledger(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Write the ledger, one JSON line a shard."""
        self.root.write(LEDGER, "".join(json.dumps(line) + "\n" for line in lines).encode())

    def read_ledger(self) -> list[dict[str, Any]]:
        """Return the ledger's lines; none where there is no ledger yet."""
        try:
            return [json.loads(line) for line in self.root.read(LEDGER).decode().splitlines()]
        except FileNotFoundError:
            return []


def versions() -> dict[str, str]:
    """Return the versions of what the numbers went through."""
    return {name: metadata.version(name) for name in ("tilecov", "torch", "zarr", "numpy", "imagecodecs", "pillow")}


def now() -> str:
    """Return the time, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
