"""Measures of contenders that took turns: medians, spreads and ratios, as markdown and as a picture."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OURS, THEIRS = "#1b6ca8", "#b8c4ce"

Round = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Table:
    """Contenders at the same work; the first is ours.

    Parameters
    ----------
    title, note : str
    rounds : sequence of mapping
        What each contender measured, by name.
    """

    title: str
    note: str
    rounds: Sequence[Round]

    @property
    def names(self) -> list[str]:
        """The contenders."""
        return list(self.rounds[0])

    def rates(self, name: str) -> list[float]:
        """Return rows a second, one a round."""
        return [found[name]["rows"] / found[name]["seconds"] for found in self.rounds]

    def seconds(self, name: str) -> float:
        """Return the median of the seconds."""
        return statistics.median(found[name]["seconds"] for found in self.rounds)

    def ratio(self, name: str, of: str | None = None) -> float:
        """Return how many times as fast ``of`` is, by default the first: the median of the ratio within each round."""
        pairs = zip(self.rates(of or self.names[0]), self.rates(name), strict=True)
        return statistics.median(one / other for one, other in pairs)

    def markdown(self) -> str:
        """Return the table as markdown."""
        lines = [
            f"## {self.title}",
            "",
            f"{self.note} {len(self.rounds)} {'round' if len(self.rounds) == 1 else 'rounds'}.",
            "",
            "| | rows/s, median | from - to | seconds | first line is | peak memory |",
            "| --- | ---: | ---: | ---: | ---: | ---: |",
        ]
        return "\n".join([*lines, *map(self._line, self.names), *self._details()]) + "\n"

    def _line(self, name: str) -> str:
        rates = self.rates(name)
        peak = statistics.median(found[name]["peak"] for found in self.rounds) / 2**30
        spread = f"{min(rates):,.0f} - {max(rates):,.0f}"
        return (
            f"| {name} | {statistics.median(rates):,.0f} | {spread} | {self.seconds(name):,.1f} | "
            f"{self.ratio(name):.2f} x | {peak:.2f} GiB |"
        )

    def _details(self) -> list[str]:
        """Return a line for each contender whose parts are timed: the median of each part's seconds."""
        lines = []
        for name in self.names:
            parts = self.rounds[0][name].get("detail", {})
            middles = {part: statistics.median(found[name]["detail"][part] for found in self.rounds) for part in parts}
            if middles:
                lines += ["", f"{name}, seconds: " + ", ".join(f"{part} {took:.1f}" for part, took in middles.items())]
            if name not in {self.names[0], self.names[-1]} and is_ours(name) and not is_ours(self.names[-1]):
                ratio = self.ratio(self.names[-1], name)
                lines += ["", f"{name}: {ratio:.2f} x as fast as {self.names[-1]}"]
            if "certificate" in middles:
                lines += ["", self._unchecked(name, self.names[-1])]
        return lines

    def _unchecked(self, name: str, other: str) -> str:
        """Return a line for the job as the other one does it: nobody checks what it found."""
        found = [(round_[name]["seconds"] - round_[name]["detail"]["certificate"], round_) for round_ in self.rounds]
        ratio = statistics.median(round_[other]["seconds"] / seconds for seconds, round_ in found)
        middle = statistics.median(seconds for seconds, _ in found)
        return f"{name}, to the artifacts, without their certificate: {middle:.1f} s, {ratio:.2f} x as fast as {other}"


def is_ours(name: str) -> bool:
    """Return whether a contender is this program."""
    return name.startswith("tilecov")


def draw(tables: Sequence[Table], path: Path) -> None:
    """Draw the median rates of all tables as bars with their spread, a panel a table."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    heights = [1.2 + 0.4 * len(table.names) for table in tables]
    figure, panels = plt.subplots(
        len(tables), 1, figsize=(9, sum(heights)), squeeze=False, height_ratios=heights, layout="constrained"
    )
    for panel, table in zip(panels[:, 0], tables, strict=True):
        for place, name in enumerate(reversed(table.names)):
            rates = table.rates(name)
            middle, colour = statistics.median(rates), OURS if is_ours(name) else THEIRS
            panel.barh(place, middle, color=colour, xerr=[[middle - min(rates)], [max(rates) - middle]], ecolor="0.3")
            panel.annotate(f" {middle:,.0f}", (max(rates), place), va="center", fontsize=9)
        panel.set_yticks(range(len(table.names)), list(reversed(table.names)), fontsize=9)
        panel.set_title(table.title, loc="left", fontsize=10, wrap=True)
        panel.set_xlabel("rows a second", fontsize=9)
        panel.margins(x=0.12)
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)
