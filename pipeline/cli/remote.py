"""submit, watch and fetch."""

import json
import os
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import make_job, takes_job

if TYPE_CHECKING:
    from ..service.client import Client

_EVERY = 5.0  # seconds between two lines of progress
_DEFAULT = "http://127.0.0.1:8750"

Service = Annotated[
    str | None, typer.Option("--service", help=f"Its URL. Default: TILECOV_SERVICE, or {_DEFAULT}.", metavar="URL")
]
Token = Annotated[
    str | None, typer.Option("--token-file", help="The bearer token. Default: TILECOV_TOKEN.", metavar="FILE")
]
Run = Annotated[str, typer.Argument(help="The id of a run of the service.", metavar="ID")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _client(service: str | None, token_file: str | None) -> "Client":
    from ..service.client import Client
    from ..service.settings import read_token

    return Client(service or os.environ.get("TILECOV_SERVICE", _DEFAULT), read_token(token_file))


@takes_job
def submit(
    shards: list[str],
    options: dict[str, Any],
    service: Service = None,
    token_file: Token = None,
    wait: Annotated[bool, typer.Option("--watch", help="Watch the run until it is over.")] = False,
    json_: Json = False,
) -> int:
    """Give a job to a service; its shards are paths and URLs as the service sees them. Prints the run's id."""
    if options["storage_options"]:
        raise typer.BadParameter("the operator of the service gives credentials", param_hint="--storage-options")
    client = _client(service, token_file)
    run = client.submit(make_job(shards, options))
    if json_:
        json.dump(run, sys.stdout, indent=2)
        print()
    else:
        print(run["id"], flush=True)
    return _watch(client, run["id"]) if wait else 0


def watch(run: Run, service: Service = None, token_file: Token = None) -> int:
    """Watch a run of a service until it is over; exit 1 where it failed or was cancelled."""
    return _watch(_client(service, token_file), run)


def fetch(
    run: Run,
    out: Annotated[str, typer.Option("--out", "-o", help="A folder of this machine.", metavar="DIR")],
    service: Service = None,
    token_file: Token = None,
) -> int:
    """Fetch a complete run's artifacts, ledger and report; checksums are compared, a broken fetch is gone on with."""
    for path in _client(service, token_file).fetch(run, out):
        print(path, flush=True)
    return 0


def _watch(client: "Client", run: str) -> int:
    last = 0.0

    def show(name: str, data: dict[str, Any]) -> None:
        nonlocal last
        if name == "progress" and time.monotonic() - last >= _EVERY:
            last = time.monotonic()
            rate = f" {data['rows'] / data['seconds']:,.0f} rows/s" if data["rows"] and data["seconds"] else ""
            _say(f"{data['stage']}: {data['done']}/{data['total']} {data['unit']}{rate}")
        elif name == "stage_done":
            _say(f"{data['stage']}: done in {data['seconds']:.1f} s")
        elif name == "note":
            _say(data["text"])

    found = client.wait(run, show)
    print(f"{run}: {found['state']}")
    if found["error"]:
        _say(f"tilecov: {found['error']}")
    return 0 if found["state"] == "complete" else 1


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    for command in (submit, watch, fetch):
        app.command(rich_help_panel="Service")(command)
