"""Plans, runs and certificates as tables."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from tilecov.storage.redact import redact_url

from ..report.tables import MEASURES
from ..sizes import show_size, show_time

if TYPE_CHECKING:
    from ..plan import Plan


def console(*, stderr: bool = False) -> Console:
    """Return where tables go; wide enough to be read by a program where there is no terminal."""
    found = Console(highlight=False, stderr=stderr)
    return found if found.is_terminal else Console(highlight=False, stderr=stderr, width=max(120, found.width))


def print_plan(plan: "Plan", *, stderr: bool = False) -> None:
    """Print a plan; to stderr where it only comes before the result."""
    out = console(stderr=stderr)
    out.print(
        f"[bold]d = {plan.size:,}[/bold], tiles of {plan.tile:,}, {plan.strategy}, {len(plan.units)} units, "
        f"blocks of {plan.block_rows:,} rows, {plan.decode_threads} decode {'processes' if plan.forked else 'threads'}"
        + (f", products in {plan.kernel}" if plan.kernel else "")
    )
    out.print(f"svd: {plan.reason}")
    table = Table(
        "stage", *(_right(name) for name in ("memory", "read", "written", "requests", "Gflop", "time")), box=None
    )
    for stage in plan.stages:
        sizes = (show_size(size) for size in (stage.memory, stage.read, stage.written))
        table.add_row(stage.name, *sizes, f"{stage.requests:,}", f"{stage.flops / 1e9:,.1f}", show_time(stage.seconds))
    out.print(table)
    out.print(
        f"in all {show_time(plan.seconds)}; at most {show_size(plan.peak)} a process, "
        f"{show_size(plan.memory)} allowed; disk {show_size(plan.disk)}"
    )


def print_run(manifest: Mapping[str, Any], run: str) -> None:
    """Print what a finished run found and where it is."""
    print_status(manifest, run)
    if "artifacts" in manifest:
        console().print(
            f"artifacts: {redact_url(run).rstrip('/')}/artifacts ({', '.join(manifest['artifacts'])})", soft_wrap=True
        )


def print_status(manifest: Mapping[str, Any], run: str) -> None:
    """Print the state of a run."""
    out, data, job = console(), manifest["dataset"], manifest["job"]
    out.print(f"[bold]{redact_url(run)}[/bold]: {manifest['state']}", soft_wrap=True)
    out.print(
        f"rows of {job['channels']} x {job['resolution']} x {job['resolution']} values ({data['kind']}), "
        f"{data['shards']:,} shards, {show_size(data['bytes'])}"
    )
    if "used" in data:
        out.print(
            f"samples: {data['samples']:,}, used {data['used']:,}, passed over {data['passed_over']:,}, "
            f"skipped {data['skipped']:,}"
        )
    _print_stages(out, manifest)
    if "moments_digest" in manifest:
        out.print(f"moments digest: {manifest['moments_digest']}", soft_wrap=True)
    if (denoising := manifest.get("spectrum", {}).get("denoising")) is not None:
        out.print(
            f"Wiener estimate at {job['rank']}: expected squared error {denoising['kept']:.6g} of what was kept, "
            f"at most {denoising['excess']:.6g} more for what was cut"
        )
    print_certificate(manifest.get("certificate", {}))


def _print_stages(out: Console, manifest: Mapping[str, Any]) -> None:
    table = Table("stage", *(_right(name) for name in ("time", "predicted", "memory", "predicted")), box=None)
    for stage in manifest["plan"]["stages"]:
        found = manifest["stages"].get(stage["name"])
        measured = (show_time(found["seconds"]), show_size(found["peak_memory"])) if found else ("to do", "")
        table.add_row(stage["name"], measured[0], show_time(stage["seconds"]), measured[1], show_size(stage["memory"]))
    out.print(table)


def print_certificate(certificate: Mapping[str, Any]) -> None:
    """Print the measures of a spectrum."""
    if not certificate:
        return
    table = Table("certificate", _right("measured"), "what it is", box=None)
    for name, meaning in MEASURES:
        value = certificate.get(name)
        shown = "-" if value is None else str(value) if isinstance(value, int) else f"{value:.6g}"
        table.add_row(name, shown, meaning)
    console().print(table)


def _right(name: str) -> Any:
    from rich.table import Column

    return Column(name, justify="right")
