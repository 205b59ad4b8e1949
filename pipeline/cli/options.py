"""The options of a job, listed once for every command that takes them."""

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..sizes import parse_size

if TYPE_CHECKING:
    from ..job import Job


def _option(*names: str, help: str, metavar: str | None = None, panel: str = "Result") -> Any:  # noqa: A002  (typer's word)
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel=panel, show_default=True)


LogAs = Annotated[
    Literal["text", "json"],
    typer.Option("--log", help="Progress on stderr: text, or json, an object a line, with --quiet too."),
]

_WORK = "How it is done (another choice gives the same numbers)"

# name, type, default, option
# ruff: noqa: E501  (a table reads better unbroken)
_TABLE: tuple[tuple[str, Any, Any, Any], ...] = (
    ("resolution", int, ..., _option("--resolution", "-r", help="Images are resized to R x R.", metavar="R")),
    ("channels", int, 3, _option("--channels", help="3: RGB. 1: gray, converted before the resize.", metavar="{1,3}")),
    ("image_key", str, "png;jpg;jpeg;webp;npy", _option("--image-key", help="Extensions; a sample's first is its image.")),
    ("range", str, "symmetric", _option("--range", help="Of the statistics: symmetric [-1, 1], unit [0, 1] or byte.")),
    ("dtype", str, "float32", _option("--dtype", help="Of covariance and eigenvectors in Zarr: float32 or float64.")),
    ("rank", str, "full", _option("--rank", help="Eigenvectors to keep: full, K, energy=E or noise=SIGMA; 0 stops after the covariance.")),
    ("svd", str, "auto", _option("--svd", help="Method of the decomposition: auto, direct, blocked, randomized or dual.")),
    ("tolerance", float, None, _option("--tolerance", help="Residual at which randomized stops. Default: by the precision.")),
    ("covariance", bool, True, _option("--covariance/--no-covariance", help="Whether the covariance is written; without it, N < d only.")),
    ("augment", str, None, _option("--augment", help="Add symmetries: hflip, vflip, rot90 or d4.")),
    ("group_by", str, None, _option("--group-by", help="Moments a group too: cls, json:FIELD or a regex on the key.")),
    ("max_groups", int, 16, _option("--max-groups", help="Groups that memory is kept for.")),
    ("extend", str, None, _option("--extend", help="A complete run; only shards that it has not are read.", metavar="RUN")),
    ("on_error", str, "fail", _option("--on-error", help="Bad shards and samples: fail, or skip and count them.")),
    ("max_skipped", float, 0.01, _option("--max-skipped", help="Fraction of the samples that skip may leave out.")),
    ("max_sample", str, "256MiB", _option("--max-sample", help="Larger files are refused before they are read.", metavar="SIZE")),
    ("device", str, "auto", _option("--device", help="auto, cpu, cuda or cuda:0.", panel=_WORK)),
    ("memory", str, None, _option("--memory", help="Ceiling for each process. Default: 80 % of the machine.", metavar="SIZE", panel=_WORK)),
    ("workers", int, 1, _option("--workers", help="Processes on this machine.", panel=_WORK)),
    ("scheduler", str, None, _option("--scheduler", help="Address of a Dask scheduler.", metavar="ADDRESS", panel=_WORK)),
    ("decode_threads", int, None, _option("--decode-threads", help="Decoders a process. Default: its cores.", panel=_WORK)),
    ("block_rows", int, None, _option("--block-rows", help="Rows multiplied at a time. Default: by memory.", panel=_WORK)),
    ("samples", int, None, _option("--samples", help="How many there are, where the plan would guess wrong.", panel=_WORK)),
    ("strategy", str, "auto", _option("--strategy", help="resident: tiles in memory. staged: rows on disk. auto: the plan chooses.", panel=_WORK)),
    ("keep_rows", bool, False, _option("--keep-rows", help="Leave staged rows in the run folder.", panel=_WORK)),
    ("storage_options", str, None, _option("--storage-options", help="JSON for fsspec, or @FILE. Never stored.", metavar="JSON", panel=_WORK)),
)  # fmt: skip


def takes_job(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give ``command(shards, options, ...)`` the options of a job, gathered in the dict ``options``."""
    own = [item for item in inspect.signature(command).parameters.values() if item.name not in {"shards", "options"}]
    shards = Annotated[list[str], typer.Argument(help="Paths, globs, URLs, brace ranges.", metavar="SHARDS...")]
    parameters = [inspect.Parameter("shards", inspect.Parameter.KEYWORD_ONLY, annotation=shards)]
    for name, kind, default, option in _TABLE:
        optional = kind | None if default is None else kind
        blank = inspect.Parameter.empty if default is ... else default
        annotation: Any = Annotated.__class_getitem__((optional, option))  # type: ignore[attr-defined]
        parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=blank, annotation=annotation))
    parameters += [item.replace(kind=inspect.Parameter.KEYWORD_ONLY) for item in own]
    names = {row[0] for row in _TABLE}

    def filled(**given: Any) -> Any:
        options = {name: given.pop(name) for name in names}
        return command(shards=given.pop("shards"), options=options, **given)

    filled.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    filled.__annotations__ = {item.name: item.annotation for item in parameters}
    filled.__doc__ = command.__doc__
    filled.__name__ = command.__name__
    return filled


def make_job(shards: list[str], options: dict[str, Any], out: str | None = None) -> "Job":
    """Return the job that the options ask for.

    Raises
    ------
    pydantic.ValidationError
        Where an option is out of its range.
    typer.BadParameter
        Where ``--storage-options`` is no JSON object.
    """
    from ..job import Job

    given = {name: value for name, value in options.items() if value is not None}
    given["storage_options"] = storage_options(options["storage_options"])
    given["rank"] = parse_rank(given["rank"])
    for name in {"memory", "max_sample"} & set(given):
        try:
            given[name] = parse_size(given[name])
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--" + name.replace("_", "-")) from error
    return Job(shards=tuple(shards), out=out, **given)


def parse_rank(text: str | None) -> int | str | None:
    """Return the number that ``text`` is, or the text where it is none: the job says whether it means something."""
    return int(text) if text is not None and text.isdigit() else text


def storage_options(text: str | None) -> dict[str, Any]:
    """Return the JSON object that ``--storage-options`` gives, or that the file after ``@`` holds."""
    if not text:
        return {}
    try:
        value = json.loads(Path(text[1:]).read_text(encoding="utf-8") if text.startswith("@") else text)
    except OSError as error:
        # What stands behind the @ may be the JSON itself, so it is not shown either.
        reason = f"the file after @ cannot be read: {error.strerror}"
        raise typer.BadParameter(reason, param_hint="--storage-options") from None
    except ValueError:
        value = None
    if not isinstance(value, dict):
        # The text may hold credentials, so it is not shown.
        raise typer.BadParameter("it is no JSON object, such as '{\"anon\": true}'", param_hint="--storage-options")
    return value
