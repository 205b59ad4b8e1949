"""The command line: parses, prints, sets the exit status; no mathematics. One module a command."""

import sys

import typer

from . import data, derive, look, work

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


def main() -> None:
    """Run the command line; exit 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    sys.exit(run_safely(sys.argv[1:]))


def run_safely(arguments: list[str]) -> int:
    """Run the command line with ``arguments`` and return its exit status; errors become one clear line."""
    from pydantic import ValidationError

    from .failures import EXPECTED, explain, explain_usage

    try:
        command = typer.main.get_command(app)
        status = int(command.main(arguments, prog_name="tilecov", standalone_mode=False) or 0)
    except ValidationError as error:
        return _fail(explain_usage(error), 2)
    except EXPECTED as error:
        return _fail(explain(error), 1)
    except Exception as error:
        if not hasattr(error, "show"):
            raise
        error.show()  # wrong usage, in click's own words
        return int(getattr(error, "exit_code", 2))
    # typer turns Ctrl-C into this status
    return _fail("interrupted; the same command goes on where it stopped", 130) if status == 130 else status


def _fail(message: str, status: int) -> int:
    print(f"tilecov: {message}", file=sys.stderr)
    return status
