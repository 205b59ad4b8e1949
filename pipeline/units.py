"""Whether this machine's processor has int8 matrix units, and how large factors are that were cut for them.

What multiplies on them is C, for the units that x86 processors have (AMX), on Linux, where a compiler was at hand when
tilecov was installed: `_exact.c` bytes (see `exact`), `_sliced.c` float32 as bytes (see `sliced`). The former is for
processors with AVX2 and no int8 instructions at all too.
"""

from importlib import import_module
from types import ModuleType

BLOCK = 512
"""Numbers to sum that have one exponent."""
STRIP = 16
"""Columns or rows of a tile."""
STRIP_BYTES = 3 * STRIP * BLOCK
"""Bytes of a block of a tile's columns or rows."""


def _compiled(name: str) -> ModuleType | None:
    try:
        return import_module(name, __package__)
    except ImportError:  # pragma: no cover - no compiler was there
        return None


compiled = _compiled("._sliced")
compiled_exact = _compiled("._exact")


def units() -> ModuleType | None:
    """Return the C functions for float32 where this machine has int8 matrix units; None where not."""
    return compiled if compiled is not None and compiled.chosen() == "amx" else None


def exact_functions() -> ModuleType | None:
    """Return the C functions for bytes where torch's int8 products come nowhere near them; None where not."""
    return compiled_exact if compiled_exact is not None and compiled_exact.beats_int8() else None


def bytes_of(count: int, depth: int) -> int:
    """Return the bytes that a factor of ``count`` columns or rows takes once it is cut."""
    return strips_of(count) * blocks_of(depth) * (STRIP_BYTES + 8 * STRIP)


def strips_of(count: int) -> int:
    """Return the tiles that ``count`` columns or rows take, side by side."""
    return -(-count // STRIP)


def blocks_of(depth: int) -> int:
    """Return the blocks that ``depth`` numbers to sum take."""
    return -(-depth // BLOCK)
