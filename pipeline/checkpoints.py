"""What the randomized method keeps between its passes, so that a crash costs one of them, or so many seconds."""

import time
from typing import Any

import torch

from tilecov.storage.partials import Partial
from tilecov.storage.runs import RunFolder

from .svd.randomized import Progress

_STAGE, _TASK = "spectrum", "krylov"
_NUMBERS = ("passes", "drawn", "due", "born", "squares", "residual", "look")


class KrylovState:
    """A Krylov basis in a run's work folder: rows as they were added, and one record that says which count.

    Parameters
    ----------
    run : RunFolder
    seconds : float
        Between two saves: writing takes a tenth of a run whose passes take a second.
    """

    def __init__(self, run: RunFolder, seconds: float) -> None:
        self._run, self._seconds = run, seconds
        self._prefix = run.fresh(_STAGE, _TASK)
        self._pieces: list[dict[str, Any]] = []
        self._saves, self._changed, self._saved = 0, 0, time.monotonic()

    def load(self) -> Progress | None:
        """Return what was saved last; None where nothing was."""
        record = self._run.commits(_STAGE).get(_TASK)
        if record is None:
            return None
        self._pieces, self._prefix = record["pieces"], record["prefix"]
        self._saves, self._changed = record["saves"], self._pieces[-1]["stop"]
        partial = self._partial
        basis = torch.cat([torch.from_numpy(partial.read(piece["record"]).copy()) for piece in self._pieces])
        small = {name: torch.from_numpy(partial.read(record[name]).copy()) for name in ("coupling", "values")}
        return Progress(basis, small["coupling"], small["values"], **record["numbers"])

    def save(self, progress: Progress, changed: int) -> None:
        """Save the rows from ``changed`` on, and what is small; the record that makes them count comes last.

        What comes within some seconds of the last save is left to a later one.
        """
        self._changed = min(self._changed, changed)
        if time.monotonic() - self._saved < self._seconds:
            return
        self._saves += 1
        kept = [piece for piece in self._pieces if piece["stop"] <= self._changed]
        start = kept[-1]["stop"] if kept else 0
        dropped = self._pieces[len(kept) :]
        partial, stop = self._partial, len(progress.basis)
        rows = partial.write(f"rows-{self._saves}", progress.basis[start:].cpu().numpy())
        self._pieces = [*kept, {"stop": stop, "record": rows}]
        record = {
            "prefix": self._prefix,
            "saves": self._saves,
            "pieces": self._pieces,
            "coupling": partial.write(f"coupling-{self._saves}", progress.coupling.cpu().numpy()),
            "values": partial.write(f"values-{self._saves}", progress.values.cpu().numpy()),
            "numbers": {name: getattr(progress, name) for name in _NUMBERS},
        }
        self._run.renew(_STAGE, _TASK, record)
        for piece in dropped:
            partial.folder.remove(piece["record"]["name"])
        for name in ("coupling", "values") if self._saves > 1 else ():
            partial.folder.remove(f"{name}-{self._saves - 1}")
        self._changed, self._saved = stop, time.monotonic()

    def forget(self) -> None:
        """Remove everything: the spectrum is noted."""
        self._run.forget(_STAGE, _TASK)
        self._run.root.remove(self._prefix)

    @property
    def _partial(self) -> Partial:
        return Partial(self._run.folder(self._prefix))
