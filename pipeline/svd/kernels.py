"""What is compiled for the two stages to a tridiagonal: bulge chasing, and its reflectors applied to a slab.

Both consist of products of some dozens of rows, for which a call of NumPy or torch takes as long as the arithmetic: C
(`_chase.c`) chases ten times as fast and applies twice as fast (docs/decisions.md). Where no compiler was at hand when
tilecov was installed, and on other devices than CPUs, NumPy and torch do the same.
"""

from importlib import import_module
from types import ModuleType

LARGEST = 1 << 19
"""Columns up to which the C functions count."""

try:
    compiled: ModuleType | None = import_module("._chase", __package__)
except ImportError:  # pragma: no cover - no compiler was there
    compiled = None


def compiled_for(size: int) -> ModuleType | None:
    """Return the C functions for matrices of ``size`` columns; None where there are none."""
    return compiled if size <= LARGEST else None
