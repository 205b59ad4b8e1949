"""Who watches a run: told of stages and progress, answers nothing."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tilecov.storage.retries import Retry

    from .plan import Plan


class Observer:
    """Ignores everything; a base for those that show it."""

    def note(self, text: str) -> None:
        """Take a line for people."""

    def planned(self, plan: "Plan") -> None:
        """Take the plan, before anything runs."""

    def stage(self, name: str, total: int, unit: str) -> None:
        """Take the start of a stage with ``total`` things to do."""

    def advance(self, done: int, rows: int = 0) -> None:
        """Take progress: things done and rows read since the last call."""

    def unit(self, stage: str, name: str, record: Mapping[str, Any]) -> None:
        """Take the commit record of a task that has just ended."""

    def retried(self, retry: "Retry") -> None:
        """Take what a store refused for a moment; called on the thread that asks it again."""

    def finished(self, name: str, seconds: float) -> None:
        """Take the end of a stage."""

    def completed(self, manifest: Mapping[str, Any], run: str) -> None:
        """Take the manifest of the finished run at ``run``."""
