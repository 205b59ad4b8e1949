"""Who watches a run: told of stages and progress, answers nothing."""


class Observer:
    """Ignores everything; a base for those that show it."""

    def note(self, text: str) -> None:
        """Take a line for people."""

    def stage(self, name: str, total: int, unit: str) -> None:
        """Take the start of a stage with ``total`` things to do."""

    def advance(self, done: int, rows: int = 0) -> None:
        """Take progress: things done and rows read since the last call."""

    def finished(self, name: str, seconds: float) -> None:
        """Take the end of a stage."""
