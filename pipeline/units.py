"""Whether this machine's processor has int8 matrix units, and how large factors are that were cut for them.

What multiplies on them is C (`_sliced.c`), for the units that x86 processors have (AMX), on Linux, where a compiler was
at hand when tilecov was installed. `sliced` says how.
"""

from importlib import import_module
from types import ModuleType

BLOCK = 512
"""Numbers to sum that have one exponent."""
STRIP = 16
"""Columns or rows of a tile."""
STRIP_BYTES = 3 * STRIP * BLOCK
"""Bytes of a block of a tile's columns or rows."""

try:
    compiled: ModuleType | None = import_module("._sliced", __package__)
except ImportError:  # pragma: no cover - no compiler was there
    compiled = None


def units() -> ModuleType | None:
    """Return the C functions where this machine has int8 matrix units for them; None where not."""
    return compiled if compiled is not None and compiled.chosen() == "amx" else None


def bytes_of(count: int, depth: int) -> int:
    """Return the bytes that a factor of ``count`` columns or rows takes once it is cut."""
    return strips_of(count) * blocks_of(depth) * (STRIP_BYTES + 8 * STRIP)


def strips_of(count: int) -> int:
    """Return the tiles that ``count`` columns or rows take, side by side."""
    return -(-count // STRIP)


def blocks_of(depth: int) -> int:
    """Return the blocks that ``depth`` numbers to sum take."""
    return -(-depth // BLOCK)
