"""Measure one contender in this process, once: rows, seconds, peak memory and proof as a line of JSON.

Usage: measure.py MODULE.FUNCTION JSON-ARGUMENTS
"""

import importlib
import json
import sys
import time

from memory import PeakMemory


def main() -> None:
    """Print the measures of the contender named."""
    module, _, name = sys.argv[1].partition(".")
    trial = getattr(importlib.import_module(f"contenders.{module}"), name)(**json.loads(sys.argv[2]))
    with PeakMemory() as peak:
        started = time.perf_counter()
        result = trial.work()
        seconds = time.perf_counter() - started
    measured = {"rows": trial.rows, "seconds": seconds, "peak": peak.bytes, "detail": trial.detail(result)}
    sys.stdout.write(json.dumps({**measured, "proof": trial.proof(result)}) + "\n")


if __name__ == "__main__":
    main()
