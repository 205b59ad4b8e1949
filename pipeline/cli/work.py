"""run, plan and merge."""

import json
import os
import sys
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from tilecov.storage.redact import secrets_of

from .options import LogAs, make_job, parse_rank, storage_options, takes_job

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Out = Annotated[str, typer.Option("--out", "-o", help="The run folder, a path or fsspec URL.", metavar="RUN")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]


@takes_job
def run(
    shards: list[str],
    options: dict[str, Any],
    out: Out,
    json_: Json = False,
    quiet: Quiet = False,
    log: LogAs = "text",
) -> int:
    """Compute mean, covariance, SVD and artifacts of SHARDS. The same command again resumes."""
    from ..run import run as carry_out
    from .progress import make_observer

    job = make_job(shards, options, out)
    with make_observer(quiet=quiet or json_, log=log, secrets=_secrets(job.storage_options)) as observer:
        manifest = carry_out(job, observer)
        observer.completed(manifest, out)
    return _show(manifest, out, json_=json_, quiet=quiet)


@takes_job
def plan(shards: list[str], options: dict[str, Any], json_: Json = False) -> int:
    """Show what a run would do: passes, tiles, memory, disk, bytes read, time. Computes nothing."""
    from ..plan import plan as make_plan
    from .tables import print_plan

    planned = make_plan(make_job(shards, options))
    if json_:
        json.dump(planned.as_dict(), sys.stdout, indent=2)
        print()
    else:
        print_plan(planned)
    return 0


def merge(
    runs: Annotated[list[str], typer.Argument(help="Folders of complete runs.", metavar="RUN...")],
    out: Out,
    subtract: Annotated[list[str] | None, typer.Option("--subtract", help="A run to take away.", metavar="RUN")] = None,
    allow_duplicates: Annotated[bool, typer.Option("--allow-duplicates", help="Let a shard count twice.")] = False,
    rank: Annotated[str | None, typer.Option("--rank", help="As for run; by default the first run's.")] = None,
    svd: Annotated[str | None, typer.Option("--svd", help="As for run; by default the first run's.")] = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="float32 or float64; by default the first run's.")
    ] = None,
    memory: Annotated[str | None, typer.Option("--memory", help="Ceiling of the process.", metavar="SIZE")] = None,
    options: Annotated[str | None, typer.Option("--storage-options", help="JSON for fsspec, or @FILE.")] = None,
    json_: Json = False,
    quiet: Quiet = False,
    log: LogAs = "text",
) -> int:
    """Add the exact moments of runs, and take others away, then finish as run does."""
    from ..merge import merge as add
    from .progress import make_observer

    given: dict[str, Any] = {"rank": parse_rank(rank), "svd": svd, "dtype": dtype, "memory": memory}
    changes = {name: value for name, value in given.items() if value is not None}
    changes["storage_options"] = storage_options(options)
    secrets = _secrets(changes["storage_options"])
    with make_observer(quiet=quiet or json_, log=log, secrets=secrets) as observer:
        manifest = add(
            runs, out, subtract=subtract or (), allow_duplicates=allow_duplicates, changes=changes, observer=observer
        )
        observer.completed(manifest, out)
    return _show(manifest, out, json_=json_, quiet=quiet)


def _secrets(options: Mapping[str, Any]) -> frozenset[str]:
    return secrets_of(options, os.environ)


def _show(manifest: dict[str, Any], out: str, *, json_: bool, quiet: bool) -> int:
    from .tables import print_run

    if json_:
        json.dump(manifest, sys.stdout, indent=2)
        print()
    elif not quiet:
        print_run(manifest, out)
    return 0


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    app.command(rich_help_panel="Work")(run)
    app.command(rich_help_panel="Work")(plan)
    app.command(rich_help_panel="Work")(merge)
