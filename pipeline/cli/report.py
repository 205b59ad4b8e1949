"""report."""

from pathlib import Path
from typing import Annotated

import typer

from .options import storage_options


def report(
    run: Annotated[str, typer.Argument(help="The run folder, a path or fsspec URL.", metavar="RUN")],
    out: Annotated[str | None, typer.Option("--out", "-o", help="Default: RUN/report.html.", metavar="FILE")] = None,
    shard: Annotated[
        list[str] | None,
        typer.Option(
            "--shard", help="Show its first images noisy and denoised; by default, images drawn from the Gaussian.",
            metavar="SHARD",
        ),
    ] = None,
    options: Annotated[
        str | None, typer.Option("--storage-options", help="JSON for fsspec, or @FILE.", metavar="JSON")
    ] = None,
) -> int:  # fmt: skip
    """Write what a run, finished or not, found as one HTML page: pictures, spectrum, ledger, certificate, files."""
    from tilecov.storage.objects import Folder
    from tilecov.storage.redact import redact_url
    from tilecov.storage.runs import REPORT, RunFolder

    from ..report import make_report

    folder = RunFolder(Folder(run, storage_options(options)))
    page = make_report(folder, shards=shard or (), links="" if out is None else None)
    if out is None:
        folder.root.write(REPORT, page.encode())
    else:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        Path(out).write_text(page, encoding="utf-8")
    print(f"report: {out or redact_url(run).rstrip('/') + '/' + REPORT}")
    return 0


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command(rich_help_panel="Look")(report)
