"""``python -m tilecov.pipeline.cli``: the command line without its script."""

from . import main

main()
