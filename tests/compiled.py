"""What tests of functions in C have in common."""

import shutil
import sysconfig
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

A_COMPILER_IS_HERE = bool(shutil.which("cc")) and (Path(sysconfig.get_paths()["include"]) / "Python.h").exists()
NO_COMPILER = "no C compiler was there when tilecov was installed"


def assert_sizes_are_checked(
    call: Callable[..., Any],
    sound: list[Any],
    lengths: Collection[int] = (),
    numbers: Collection[int] = (-1, 2**31, 2**40, 2**62),
    says: str = r"must be|have 4 or 8|bytes|asked for",
) -> None:
    """Check that the sound arguments pass and that none of them may be out of step with the others.

    Buffers at the places ``lengths`` may be empty: their lengths say how much there is to do. In the place of any
    number each of ``numbers`` is refused.
    """
    call(*sound)
    for place, given in enumerate(sound):
        before, after = sound[:place], sound[place + 1 :]
        if isinstance(given, np.ndarray):
            flat = given.reshape(-1)
            for wrong in (flat[:-1], flat[:0]):
                if len(wrong) or place not in lengths:
                    with pytest.raises(ValueError, match="bytes"):
                        call(*before, wrong, *after)
        elif type(given) is int:
            for number in numbers:
                with pytest.raises(ValueError, match=says):
                    call(*before, number, *after)
    with pytest.raises((ValueError, TypeError)):
        call(*sound[:-1])
