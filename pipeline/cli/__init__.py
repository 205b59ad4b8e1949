"""The command line: parses, prints, sets the exit status; no mathematics. One module a command."""

import os
import sys
import traceback
from contextlib import suppress
from types import TracebackType

import typer

from tilecov.storage.redact import redact, secrets_of

from . import data, derive, look, remote, report, serve, work
from .interrupts import heed

__all__ = ["app", "main"]

app = typer.Typer(
    name="tilecov",
    help="Exact mean, covariance and SVD of whole image datasets, streamed from shards inside a stated memory.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
work.register(app)
look.register(app)
data.register(app)
derive.register(app)
report.register(app)
serve.register(app)
remote.register(app)


def main() -> None:
    """Run the command line; exit 0 done, 1 failed, 2 wrong usage, 130 interrupted by Ctrl-C or SIGTERM."""
    sys.excepthook = _show_bug
    heed()
    sys.exit(run_safely(sys.argv[1:]))


def _show_bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print a traceback as Python does, without credentials in its messages."""
    text = "".join(traceback.format_exception(kind, error, trace))
    print(redact(text, _secrets(sys.argv[1:])), end="", file=sys.stderr)


def _secrets(arguments: list[str]) -> frozenset[str]:
    """Return the credentials that the command line and the environment hand over."""
    from .options import storage_options

    name, settings = "--storage-options", [dict(os.environ)]
    for at, argument in enumerate(arguments):
        given = argument.removeprefix(f"{name}=") if argument != name else "".join(arguments[at + 1 : at + 2])
        if argument.startswith(name):
            with suppress(typer.BadParameter):
                settings.append(storage_options(given))
    return secrets_of(*settings)


def run_safely(arguments: list[str]) -> int:
    """Run the command line with ``arguments`` and return its exit status; errors become one clear line."""
    try:
        command = typer.main.get_command(app)
        status = int(command.main(arguments, prog_name="tilecov", standalone_mode=False) or 0)
    except Exception as error:
        found = _explained(error, arguments)
        if found is None:
            raise
        return found
    # typer turns Ctrl-C into this status
    return _fail("interrupted; the same command goes on where it stopped", 130) if status == 130 else status


def _explained(error: Exception, arguments: list[str]) -> int | None:
    """Show an error that may happen, and return the exit status; None where it is a bug."""
    from pydantic import ValidationError

    from .failures import EXPECTED, explain, explain_usage

    if isinstance(error, ValidationError):
        return _fail(redact(explain_usage(error), _secrets(arguments)), 2)
    if isinstance(error, EXPECTED):
        return _fail(redact(explain(error), _secrets(arguments)), 1)
    if not hasattr(error, "show"):
        return None
    error.message = redact(str(getattr(error, "message", "")), _secrets(arguments))  # type: ignore[attr-defined]
    error.show()  # wrong usage, in click's own words
    return int(getattr(error, "exit_code", 2))


def _fail(message: str, status: int) -> int:
    print(f"tilecov: {message}", file=sys.stderr)
    return status
