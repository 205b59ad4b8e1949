"""pack and synth."""

from typing import Annotated

import typer

from .options import storage_options

Shards = Annotated[
    str, typer.Argument(help="Where: x.tar, a brace range x-{000..007}.tar, or x-%06d.tar.", metavar="SHARDS")
]
PerShard = Annotated[int, typer.Option("--per-shard", help="Samples a shard, where SHARDS has a %06d.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace shards of these names.")]
Options = Annotated[str | None, typer.Option("--storage-options", help="JSON for fsspec, or @FILE.", metavar="JSON")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]


def pack(
    folder: Annotated[str, typer.Argument(help="A folder of images; its sub-folders count too.", metavar="FOLDER")],
    shards: Shards,
    per_shard: PerShard = 1000,
    overwrite: Overwrite = False,
    options: Options = None,
    quiet: Quiet = False,
) -> int:
    """Make shards of a folder of images, their bytes unchanged."""
    from ..pack import pack as write
    from .progress import make_observer

    with make_observer(quiet=quiet) as observer:
        observer.stage("pack", 0, "images")
        report = write(
            folder, shards, per_shard=per_shard, overwrite=overwrite, storage_options=storage_options(options),
            progress=observer.advance,
        )  # fmt: skip
    if not quiet:
        print(
            f"{report.samples:,} samples in {len(report.urls)} shards; {report.passed_over:,} other files passed over"
        )
    return 0


def synth(
    shards: Shards,
    count: Annotated[int, typer.Option("--count", "-n", help="Images in all.", metavar="N")],
    resolution: Annotated[int, typer.Option("--resolution", "-r", help="Images are R x R.", metavar="R")],
    channels: Annotated[int, typer.Option("--channels", help="3: RGB. 1: gray.", metavar="{1,3}")] = 3,
    seed: Annotated[int, typer.Option("--seed", help="Equal seeds give equal bytes.")] = 0,
    extension: Annotated[str, typer.Option("--format", help="png, jpg or webp.")] = "png",
    per_shard: PerShard = 1000,
    overwrite: Overwrite = False,
    workers: Annotated[int | None, typer.Option("--workers", help="Processes. Default: one a core.")] = None,
    options: Options = None,
    quiet: Quiet = False,
) -> int:
    """Make shards of dead-leaves images, whose power spectrum falls as 1/f^2 like that of photographs."""
    from ..synth import synth as draw
    from .progress import make_observer

    with make_observer(quiet=quiet) as observer:
        observer.stage("synth", count, "images")
        urls = draw(
            shards, count=count, resolution=resolution, channels=channels, seed=seed, extension=extension,
            per_shard=per_shard, overwrite=overwrite, workers=workers, storage_options=storage_options(options),
            progress=observer.advance,
        )  # fmt: skip
    if not quiet:
        print(f"{count:,} images of {resolution} x {resolution} in {len(urls)} shards")
    return 0


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    app.command(rich_help_panel="Data")(pack)
    app.command(rich_help_panel="Data")(synth)
