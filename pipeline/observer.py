"""Who watches a run: told of stages and progress, answers nothing."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
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

    def finished(self, name: str, seconds: float) -> None:
        """Take the end of a stage."""
