"""The service in numbers, as Prometheus reads them.

The text format is small: https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ..machine import resident_bytes
from .supervisor import Supervisor

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
"""Seconds."""
_STATES = ("queued", "running", "complete", "failed", "cancelled")

Labels = tuple[tuple[str, str], ...]


@dataclass
class Metrics:
    """Counts requests and how long they took."""

    requests: Counter[Labels] = field(default_factory=Counter)
    within: Counter[float] = field(default_factory=Counter)
    seconds: float = 0.0

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        self.requests[("method", method), ("route", route), ("status", str(status))] += 1
        if not route.endswith(("/events", "/artifacts/{name}")):  # those last as long as the client likes
            self.seconds += seconds
            self.within[next((limit for limit in BUCKETS if seconds <= limit), float("inf"))] += 1

    def text(self, supervisor: Supervisor) -> str:
        """Return all numbers."""
        counts = Counter[str](record.state for record in supervisor.queue.records.values())
        lines = [
            *_family("tilecov_runs", "gauge", "Runs by state.", {(("state", s),): counts[s] for s in _STATES}),
            *_family("tilecov_workers_started_total", "counter", "Workers started.", {(): supervisor.begun}),
            *_family("tilecov_rows_total", "counter", "Rows read by runs.", {(): supervisor.rows}),
            *_family(
                "tilecov_memory_taken_bytes",
                "gauge",
                "Memory that running runs may take.",
                {(): supervisor.memory_taken},
            ),
            *_family("tilecov_memory_allowed_bytes", "gauge", "Memory for all runs.", {(): supervisor.settings.memory}),
            *_family("tilecov_disk_taken_bytes", "gauge", "Disk that run folders take.", {(): supervisor.disk_taken}),
            *_family("tilecov_listeners", "gauge", "Clients that stream events.", {(): supervisor.hub.count}),
            *_family("process_resident_memory_bytes", "gauge", "Memory of the web process.", {(): resident_bytes()}),
            *_family("tilecov_http_requests_total", "counter", "Requests answered.", self.requests),
            *self._histogram("tilecov_http_request_seconds", "Time of requests other than streams."),
        ]
        return "\n".join(lines) + "\n"

    def _histogram(self, name: str, meaning: str) -> Iterable[str]:
        yield from (f"# HELP {name} {meaning}", f"# TYPE {name} histogram")
        total = 0
        for limit in (*BUCKETS, float("inf")):
            total += self.within[limit]
            yield f'{name}_bucket{{le="{"+Inf" if limit == float("inf") else limit}"}} {total}'
        yield f"{name}_sum {self.seconds:.6f}"
        yield f"{name}_count {total}"


def _family(name: str, kind: str, meaning: str, values: Mapping[Labels, float]) -> Iterable[str]:
    yield from (f"# HELP {name} {meaning}", f"# TYPE {name} {kind}")
    for labels, value in values.items():
        shown = ",".join(f'{label}="{_escape(text)}"' for label, text in labels)
        yield f"{name}{{{shown}}} {value}" if shown else f"{name} {value}"


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
