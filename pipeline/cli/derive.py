"""export."""

from typing import Annotated, Literal

import typer

from .options import storage_options


def export(
    run: Annotated[str, typer.Argument(help="The folder of a complete run, a path or fsspec URL.", metavar="RUN")],
    to: Annotated[str, typer.Option("--to", help="Where: a path or fsspec URL.", metavar="DIR")],
    what: Annotated[
        Literal["wiener", "npz", "zca", "shrunk"],
        typer.Option(
            "--what",
            help="wiener: U, LA, Vh, mean. npz: mu, sigma in float64, as FID tools read them. zca: the whitening "
            "matrices. shrunk: the filter of the shrunk covariance.",
        ),
    ],
    regularization: Annotated[
        float | None,
        typer.Option("--regularization", help="zca: added to eigenvalues, a fraction of their mean.", metavar="X"),
    ] = None,
    estimator: Annotated[
        Literal["ledoit-wolf", "oas"] | None,
        typer.Option("--estimator", help="shrunk: which. Default: oas."),
    ] = None,
    options: Annotated[
        str | None, typer.Option("--storage-options", help="JSON for fsspec, or @FILE.", metavar="JSON")
    ] = None,
) -> int:
    """Write what other programs read, derived from a complete run: one line a file, with its size and SHA-256."""
    from tilecov.storage.objects import Folder
    from tilecov.storage.runs import RunFolder

    from ..derived import derive
    from ..sizes import show_size

    for name, value, belongs in (("regularization", regularization, "zca"), ("estimator", estimator, "shrunk")):
        if value is not None and what != belongs:
            raise typer.BadParameter(f"it belongs to --what {belongs}, not {what}", param_hint=f"--{name}")
    settings = storage_options(options)
    for file in derive(
        RunFolder(Folder(run, settings)), Folder(to, settings), what,
        regularization=regularization or 0.0, estimator=estimator or "oas",
    ):  # fmt: skip
        print(f"{file.path}  {show_size(file.size)}  sha256 {file.sha256}", flush=True)
    return 0


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command(rich_help_panel="Look")(export)
