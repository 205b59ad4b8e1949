"""The report of a run: one self-contained HTML page. `tilecov report`, `run` and the service all make the same."""

from .writing import make_report, write_report

__all__ = ["make_report", "write_report"]
