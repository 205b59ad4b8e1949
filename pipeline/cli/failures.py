"""Errors as people read them."""

from pydantic import ValidationError

from tilecov.storage.partials import DamagedTileError
from tilecov.storage.runs import OtherFormatError

from ..errors import BadDataError, BusyError, CertificateError, DoesNotFitError, OtherJobError

EXPECTED = (
    BadDataError,
    BusyError,
    CertificateError,
    DamagedTileError,
    DoesNotFitError,
    OSError,
    OtherFormatError,
    OtherJobError,
    RuntimeError,
    ValueError,
)
"""What can go wrong without a bug: shown as one line, without a traceback."""


def explain(error: BaseException) -> str:
    """Return one line for an expected error."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__


def explain_usage(error: ValidationError) -> str:
    """Return a line for each option that is wrong."""
    lines = []
    for problem in error.errors():
        name = "--" + str(problem["loc"][0]).replace("_", "-") if problem["loc"] else ""
        lines.append(f"{name}: {problem['msg'].removeprefix('Value error, ')}".removeprefix(": "))
    return "; ".join(lines)
