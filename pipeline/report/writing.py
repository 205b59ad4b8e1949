"""The page itself: templates filled with what a run found, and the file in the run folder."""

import posixpath
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilecov.storage.redact import redact_url
from tilecov.storage.runs import REPORT, RunFolder

from ..sizes import show_size, show_time

if TYPE_CHECKING:
    from jinja2 import Environment

BODY = ("<!-- report begins -->", "<!-- report ends -->")
"""What stands around the part of the page that the service's page of a run shows too."""


def make_report(run: RunFolder, *, shards: Sequence[str] = (), links: str | None = "") -> str:
    """Return the report of ``run`` as one HTML page that needs no other file.

    Pictures are drawn from the tiles of ``statistics.zarr``, one tile at a time; beside a tile, about fifty float32
    vectors of d values are held.

    Parameters
    ----------
    run : RunFolder
        Finished or not: what is not there yet is left out.
    shards : sequence of str
        Shards of which the first images are shown noisy and denoised. Without any, images are drawn from the Gaussian
        that has the run's mean and spectrum: no image of the dataset is on the page.
    links : str or None
        What stands before ``artifacts/U.pt`` in the links to the artifacts; None for no links.

    Raises
    ------
    FileNotFoundError
        Where there is no run.
    """
    from .findings import find
    from .tables import certificate_of, files_of, read_ledger, stages_of

    manifest = run.load()
    if manifest is None:
        raise FileNotFoundError(f"no run at {run.url}; `tilecov run` makes one")
    return templates().get_template("report.html").render(
        run=manifest,
        name=posixpath.basename(redact_url(run.root.absolute).rstrip("/")),
        found=find(run, manifest, shards),
        ledger=read_ledger(run),
        stages=stages_of(manifest),
        certificate=certificate_of(manifest),
        files=files_of(manifest),
        links=links,
        shards_shown=[redact_url(url) for url in shards],
        body=BODY,
    )  # fmt: skip


def write_report(run: RunFolder) -> None:
    """Write the report of ``run`` into its folder."""
    run.root.write(REPORT, make_report(run).encode())


@cache
def templates() -> "Environment":
    """Return the templates; whatever is filled in is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    found = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    found.filters |= {"size": show_size, "time": show_time, "count": _count, "pyname": repr, "moment": _moment}
    return found


def _count(number: Any) -> str:
    return "-" if number is None else f"{number:,}"


def _moment(time: str) -> str:
    """Return a time of a manifest, UTC, as people read it."""
    return time[:16].replace("T", " ") + " UTC"
