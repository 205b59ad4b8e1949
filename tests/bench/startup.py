"""What it takes to begin: the command line's first answers, and a job of 1,000 small images beyond importing torch.

Usage: startup.py [--data FOLDER] [--out FILE] [--rounds N]

Each is a process of its own, in turn; its seconds are those of the whole process. Python's bytecode is kept in a folder
of this program's and made before anything is timed, as `pip install` makes it.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from contests import Scale
from here import machine

COUNT, SIDE = 1_000, 28
JOB, TORCH = f"`tilecov run`, {COUNT:,} images of {SIDE} x {SIDE}", "`import torch`"
_TILECOV = [sys.executable, "-m", "tilecov.pipeline.cli"]


def commands(shards: list[str], folder: Path) -> dict[str, list[str]]:
    """Return what is timed, by name; the job comes before what looks at its run."""
    job = [*_TILECOV, "run", *shards, "--resolution", str(SIDE), "--channels", "1", "--out", str(folder / "run")]
    return {
        "`python -c pass`": [sys.executable, "-c", "pass"],
        "`tilecov --help`": [*_TILECOV, "--help"],
        TORCH: [sys.executable, "-c", "import torch"],
        JOB: [*job, "--quiet"],
        "`tilecov status`": [*_TILECOV, "status", str(folder / "run")],
    }


def measured(shards: list[str], folder: Path, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each, one a round, after one that is not counted."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(folder / "bytecode")
    found: dict[str, list[float]] = {}
    for _ in range(rounds + 1):
        shutil.rmtree(folder / "run", ignore_errors=True)
        for name, command in commands(shards, folder).items():
            started = time.perf_counter()
            subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
            found.setdefault(name, []).append(time.perf_counter() - started)
    return {name: seconds[1:] for name, seconds in found.items()}


def page(found: dict[str, list[float]]) -> str:
    """Return the table as markdown."""
    lines = [f"# Starting\n\n{machine()}\n", "| | seconds, median | from - to |\n| --- | ---: | ---: |"]
    for name, seconds in found.items():
        lines.append(f"| {name} | {statistics.median(seconds):.2f} | {min(seconds):.2f} - {max(seconds):.2f} |")
    beyond = statistics.median(whole - alone for whole, alone in zip(found[JOB], found[TORCH], strict=True))
    return (
        "\n".join([*lines, f"\nThe job takes {beyond:.2f} s beyond importing torch: the median over the rounds."])
        + "\n"
    )


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("bench/data"), help="where shards are made and kept")
    parser.add_argument("--out", type=Path, help="a file for the page")
    parser.add_argument("--rounds", type=int, default=11)
    options = parser.parse_args()
    options.data.mkdir(parents=True, exist_ok=True)
    scale = Scale(options.data.resolve(), quick=False)
    with tempfile.TemporaryDirectory() as folder:
        said = page(measured(scale.shards(COUNT, SIDE, 1), Path(folder), options.rounds))
    sys.stdout.write(said)
    if options.out:
        options.out.write_text(said)


if __name__ == "__main__":
    main()
