"""serve."""

import importlib.util
from typing import Annotated

import typer

from ..sizes import parse_size
from .options import storage_options


def serve(
    root: Annotated[str, typer.Option("--root", help="Where queue and runs are kept, a path or URL.", metavar="URL")],
    allow: Annotated[
        list[str] | None,
        typer.Option("--allow", help="A folder, bucket or server that jobs may read shards of.", metavar="PREFIX"),
    ] = None,
    host: Annotated[str, typer.Option("--host", help="Address to bind; all but loopback need a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port to bind.")] = 8750,
    token_file: Annotated[
        str | None, typer.Option("--token-file", help="The bearer token. Default: TILECOV_TOKEN.", metavar="FILE")
    ] = None,
    concurrent: Annotated[int, typer.Option("--concurrent", min=1, help="Runs at a time.")] = 1,
    memory: Annotated[
        str | None, typer.Option("--memory", help="For all runs. Default: 80 % of the machine.", metavar="SIZE")
    ] = None,
    disk: Annotated[str | None, typer.Option("--disk", help="For all run folders.", metavar="SIZE")] = None,
    waiting: Annotated[int, typer.Option("--waiting", min=1, help="Runs that may be queued.")] = 1000,
    scheduler: Annotated[
        str | None, typer.Option("--scheduler", help="Dask scheduler that runs use.", metavar="ADDRESS")
    ] = None,
    options: Annotated[
        str | None, typer.Option("--storage-options", help="JSON for fsspec, or @FILE.", metavar="JSON")
    ] = None,
) -> int:
    """Take jobs over HTTP, run them one after another, and show what was found."""
    missing = [name for name in ("fastapi", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        raise RuntimeError(f"serve needs {', '.join(missing)}; pip install 'tilecov[service]'")
    from ..service.serving import serve as start
    from ..service.settings import Settings, read_token

    sizes = {"memory": memory, "disk": disk}
    given = {name: parse_size(text) for name, text in sizes.items() if text is not None}
    settings = Settings(
        root=root, allow=tuple(allow or ()), token=read_token(token_file), host=host, port=port, concurrent=concurrent,
        waiting=waiting, scheduler=scheduler, storage_options=storage_options(options), **given,
    )  # fmt: skip
    start(settings)
    return 0


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command(rich_help_panel="Service")(serve)
