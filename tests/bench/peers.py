"""tilecov beside what a user would pick instead, at the same work, turn by turn.

Usage: peers.py [--quick] [--table NAME] [--rounds N] [--images PART] [--side N] [--out FOLDER] [--data FOLDER]
                [--fresh]

Writes FOLDER/peers.md, peers.png and measures.json after every table, then growth.md, growth.png and growth.json: how
cost grows with N, d and workers (the table ``growth``). What is in measures.json is not measured again where machine,
versions, sizes and tilecov's sources are the same, so the same command goes on, and --rounds 5 adds to 3. Each measure
is a process of its own; imports and making data ready are not timed. Contenders take turns, forwards and backwards, so
that a busy minute hits all; ratios are medians over the rounds. A table is made only where all found the same numbers.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import growth
from contests import Scale, contests
from here import code, machine
from tables import Table, draw
from turns import Contest, take_turns


def main() -> None:
    """Measure, print and write."""
    names = [*(contest.name for contest in contests(Scale(Path(), quick=True))), "growth"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, one round: shows that all of it runs")
    parser.add_argument(
        "--table", action="append", metavar="NAME", help=f"one of {', '.join(names)}, or their beginning"
    )
    parser.add_argument("--rounds", type=int, help="of each table (default: 5, or 3 where one takes minutes)")
    parser.add_argument(
        "--images", type=float, default=1.0, metavar="PART", help="of the usual number (default: 1), but for growth"
    )
    parser.add_argument("--side", type=int, default=64, help="of the images that usually have 64, but for growth")
    parser.add_argument("--out", type=Path, default=Path("bench"))
    parser.add_argument("--data", type=Path, default=Path("bench/data"), help="where shards are made and kept")
    parser.add_argument("--fresh", action="store_true", help="measure again what has been measured")
    options = parser.parse_args()
    scale = Scale(options.data.resolve(), options.quick, options.images, options.side)
    wanted = [name for name in names if not options.table or name.startswith(tuple(options.table))]
    if not wanted:
        parser.error(f"no table is called {' or '.join(options.table)}; there are {', '.join(names)}")
    kept = Kept(options.out, contests(scale), quick=options.quick)
    for contest in kept.known:
        if contest.name in wanted:
            rounds = kept.rounds(contest, fresh=options.fresh)
            take_turns(contest, 1 if options.quick else options.rounds or contest.rounds, rounds, kept.save)
            sys.stdout.write(kept.table(contest).markdown() + "\n")
            sys.stdout.flush()
            kept.show()
    if "growth" in wanted:
        sys.stdout.write(growth.grow(scale, options.out, options.rounds, fresh=options.fresh))


class Kept:
    """What was measured, in a folder.

    Parameters
    ----------
    folder : Path
    known : sequence of Contest
        In the order in which they are shown.
    quick : bool
    """

    def __init__(self, folder: Path, known: Sequence[Contest], *, quick: bool) -> None:
        self._folder, self.known = folder, known
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / "measures.json"
        self._here, self._code = machine(), code()
        self._found: dict[str, Any] = json.loads(self._file.read_text()) if self._file.exists() else {}
        self._note = " A quick run: it shows that all of it runs, and its figures mean nothing." if quick else ""

    def rounds(self, contest: Contest, *, fresh: bool) -> list[dict[str, Any]]:
        """Return the rounds kept of a contest, to be added to: none from elsewhere, of other sizes or other code."""
        found = self._found.get(contest.name, {})
        same = {"title": contest.title, "machine": self._here}
        sources = found.get("code", {}).get("sources")
        if fresh or any(found.get(name) != value for name, value in same.items()) or sources != self._code["sources"]:
            found = self._found[contest.name] = {**same, "code": self._code, "rounds": []}
        rounds: list[dict[str, Any]] = found["rounds"]
        return rounds

    def save(self) -> None:
        """Write what there is."""
        fresh = self._file.with_suffix(".new")
        fresh.write_text(json.dumps(self._found, indent=1) + "\n")
        fresh.replace(self._file)

    def table(self, contest: Contest) -> Table:
        """Return a contest's table."""
        found = self._found[contest.name]
        return Table(found["title"], f"{contest.note} {_said_of(found.get('code'))}", found["rounds"])

    def show(self) -> None:
        """Write the page and the picture of all that was measured here."""
        done = [
            contest
            for contest in self.known
            if self._found.get(contest.name, {}).get("machine") == self._here and self._found[contest.name]["rounds"]
        ]
        tables = [self.table(contest) for contest in done]
        heading = f"# tilecov beside its peers\n\n{self._here}{self._note}\n\n{METHOD}\n![rates](peers.png)\n\n"
        (self._folder / "peers.md").write_text(heading + "\n".join(table.markdown() for table in tables))
        draw(tables, self._folder / "peers.png")


def _said_of(code: dict[str, str] | None) -> str:
    if code is None:
        return "Which sources of tilecov these were was not noted then."
    return f"tilecov's sources: {code['sources']}{', ' * bool(code['commit'])}{code['commit']}."


METHOD = """\
`make bench` made this page. Every measure is a process of its own, importing and making data ready untimed; contenders
take turns, forwards and backwards. "First line is" says how many times as fast the first line is as this one: the
median over the rounds of the ratio within a round. Peak memory is that of the whole process tree, shared pages counted
once. All use both cores where nothing else is said. `OPENBLAS_CORETYPE` and `OPENBLAS_L2_SIZE` are unset for all
contenders, since they slow current numpy. A table is made only where all contenders found the same numbers.
"""


if __name__ == "__main__":
    main()
