"""status and verify."""

import json
import sys
from typing import Annotated

import typer

from .options import storage_options

Run = Annotated[str, typer.Argument(help="The run folder, a path or fsspec URL.", metavar="RUN")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Options = Annotated[str | None, typer.Option("--storage-options", help="JSON for fsspec, or @FILE.", metavar="JSON")]


def status(run: Run, options: Options = None, json_: Json = False) -> int:
    """Show a run's stages, ledger totals, digest and certificate."""
    from tilecov.storage.objects import Folder
    from tilecov.storage.runs import RunFolder

    from .tables import print_status

    manifest = RunFolder(Folder(run, storage_options(options))).load()
    if manifest is None:
        raise FileNotFoundError(f"no run at {run}; `tilecov run SHARDS... --out {run}` makes one")
    if json_:
        json.dump(manifest, sys.stdout, indent=2)
        print()
    else:
        print_status(manifest, run)
    return 0


def verify(run: Run, options: Options = None, json_: Json = False) -> int:
    """Measure a run's artifacts again; exit 1 where they fall short."""
    from tilecov.storage.objects import Folder
    from tilecov.storage.redact import redact_url
    from tilecov.storage.runs import RunFolder

    from ..verify import verify as measure
    from .tables import print_certificate

    certificate, breaches = measure(RunFolder(Folder(run, storage_options(options))))
    if json_:
        json.dump({"certificate": certificate, "breaches": breaches}, sys.stdout, indent=2)
        print()
    else:
        print_certificate(certificate)
        print(f"verified: {redact_url(run)}" if not breaches else "", end="\n" if not breaches else "")
    for breach in breaches:
        print(f"tilecov: {breach}", file=sys.stderr)
    return 1 if breaches else 0


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    app.command(rich_help_panel="Look")(status)
    app.command(rich_help_panel="Look")(verify)
