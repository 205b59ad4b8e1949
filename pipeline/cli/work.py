"""run and plan."""

import json
import sys
from typing import Annotated, Any

import typer

from .options import make_job, takes_job

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]


@takes_job
def run(
    shards: list[str],
    options: dict[str, Any],
    out: Annotated[str, typer.Option("--out", "-o", help="The run folder, a path or fsspec URL.", metavar="RUN")],
    json_: Json = False,
    quiet: Quiet = False,
) -> int:
    """Compute mean, covariance, SVD and artifacts of SHARDS. The same command again resumes."""
    from ..run import run as carry_out
    from .progress import make_observer
    from .tables import print_run

    job = make_job(shards, options, out)
    with make_observer(quiet=quiet or json_) as observer:
        manifest = carry_out(job, observer)
    if json_:
        json.dump(manifest, sys.stdout, indent=2)
        print()
    elif not quiet:
        print_run(manifest, out)
    return 0


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


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    app.command(rich_help_panel="Work")(run)
    app.command(rich_help_panel="Work")(plan)
