"""Job: what the user asks for. The same model is a YAML file's content, the command line's options and an HTTP body."""

import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from tilecov.storage.redact import redact, redact_url

from .sizes import parse_size

RANGES = {"symmetric": (2 / 255, -1.0), "unit": (1 / 255, 0.0), "byte": (1.0, 0.0)}
"""Scale and offset of each value range: v = scale * x + offset for uint8 x."""

KEYS = ("png", "jpg", "jpeg", "webp", "npy")
"""The file extensions that samples can be read from."""

# What only says how the work is done: another value gives the same numbers, so a resumed run may change it.
HOW = frozenset(
    [
        "device",
        "memory",
        "workers",
        "scheduler",
        "storage_options",
        "decode_threads",
        "block_rows",
        "strategy",
        "keep_rows",
        "samples",
    ]
)


class Job(BaseModel):
    """What to compute, from which shards, to where.

    Notes
    -----
    ``resolution`` and ``channels`` give rows of d = channels * resolution**2 values. ``storage_options`` may hold
    credentials: it is never shown and never stored.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    shards: tuple[str, ...] = Field(min_length=1, description="paths, globs, fsspec URLs and brace ranges")
    resolution: int = Field(ge=1, le=4096, description="images are resized to resolution x resolution")
    out: str | None = Field(None, description="the run folder, a path or fsspec URL")
    channels: Literal[1, 3] = 3
    image_key: tuple[str, ...] = Field(KEYS, description="extensions, the first that a sample has is its image")
    range: Literal["symmetric", "unit", "byte"] = "symmetric"
    dtype: Literal["float32", "float64"] = "float32"
    rank: int | str = Field("full", description="eigenvectors to keep: full, K, energy=E or noise=SIGMA; 0 for none")
    svd: Literal["auto", "direct", "blocked", "randomized", "dual"] = "auto"
    tolerance: float | None = Field(None, gt=0, lt=1, description="residual at which the randomized method stops")
    covariance: bool = Field(
        default=True, description="whether the covariance is written; without it N < d rows are needed"
    )
    augment: Literal["hflip", "vflip", "rot90", "d4"] | None = Field(None, description="symmetries to add")
    group_by: str | None = Field(None, description="cls, json:FIELD, or a regular expression on the key")
    max_groups: int = Field(16, ge=1, description="sets of moments that memory is kept for")
    extend: str | None = Field(None, description="a finished run whose moments are taken over")
    on_error: Literal["fail", "skip"] = "fail"
    max_skipped: float = Field(0.01, ge=0, le=1, description="fraction of the samples that may be skipped")
    max_sample: Annotated[int, BeforeValidator(parse_size)] = Field(
        2**28, description="bytes; larger files are refused"
    )

    device: str = "auto"
    memory: Annotated[int, BeforeValidator(parse_size), Field(gt=0)] | None = Field(
        None, description="bytes, ceiling of each process"
    )
    workers: int = Field(1, ge=1)
    scheduler: str | None = None
    decode_threads: int | None = Field(None, ge=1)
    block_rows: int | None = Field(None, ge=1)
    strategy: Literal["auto", "resident", "staged"] = "auto"
    keep_rows: bool = False
    samples: int | None = Field(None, ge=1, description="how many there are, where the plan would guess wrong")
    storage_options: dict[str, Any] = Field(default_factory=dict, repr=False, exclude=True)

    @field_validator("image_key", mode="before")
    @classmethod
    def _split_keys(cls, value: Any) -> Any:
        keys = tuple(value.lower().replace(",", ";").split(";")) if isinstance(value, str) else tuple(value)
        unknown = [key for key in keys if key not in KEYS]
        if unknown or not keys:
            raise ValueError(f"image key {';'.join(unknown)!r} is not among {';'.join(KEYS)}")
        return keys

    @field_validator("group_by")
    @classmethod
    def _check_grouping(cls, value: str | None) -> str | None:
        if value is not None:
            from .grouping import Grouping

            Grouping.parse(value)
        return value

    @field_validator("rank")
    @classmethod
    def _check_rank(cls, value: int | str) -> int | str:
        if isinstance(value, int) or value == "full":
            return value
        kind, _, text = value.partition("=")
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if kind == "energy" and 0 < number <= 1:
            return f"energy={number}"
        if kind == "noise" and 0 < number < math.inf:
            return f"noise={number}"
        raise ValueError(f"rank {value!r} is none of full, a number, energy=E with 0 < E <= 1, and noise=SIGMA above 0")

    @model_validator(mode="after")
    def _check_together(self) -> "Job":
        for field, why in self._faults_together():
            # As a ValueError of the whole model it would name no field.
            kind = PydanticCustomError("value_error", "{why}", {"why": why})
            fault = InitErrorDetails(type=kind, loc=(field,), input=getattr(self, field))
            raise ValidationError.from_exception_data("Job", [fault])
        return self

    def _faults_together(self) -> Iterator[tuple[str, str]]:
        """Yield (field, what is wrong with it) of fields that do not go with the others."""
        if isinstance(self.rank, int) and not 0 <= self.rank <= self.size:
            yield "rank", f"rank {self.rank} is not between 0 and d = {self.size}"
        others = [name for name in ("augment", "group_by", "extend") if getattr(self, name)]
        if self.svd == "dual":
            why = "the dual method works on the rows of one run as they are: no augment, group_by, extend or resident"
            yield from ((name, why) for name in (*others, *["strategy"] * (self.strategy == "resident")))
        if not self.covariance:
            why = "without the covariance only the dual method works: no other svd, augment, group_by or extend"
            yield from ((name, why) for name in (*others, *["svd"] * (self.svd not in {"auto", "dual"})))
            if self.rank == 0:
                yield "rank", "rank 0 without the covariance leaves nothing to compute but the mean; drop one of them"

    @property
    def size(self) -> int:
        """Values of a row, d."""
        return self.channels * self.resolution**2

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a row."""
        return self.channels, self.resolution, self.resolution

    @property
    def is_adaptive(self) -> bool:
        """Whether the spectrum itself decides how many eigenvectors are kept."""
        return isinstance(self.rank, str) and self.rank != "full"

    @property
    def affine(self) -> tuple[float, float]:
        """Scale and offset of the value range."""
        return RANGES[self.range]

    def what(self) -> dict[str, Any]:
        """Return the fields that the result depends on, as JSON takes them."""
        fields = self.model_dump(mode="json", exclude={*HOW, "shards", "out"})
        return {**fields, "extend": self.extend and redact_url(self.extend)}

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            shown = tuple(map(redact, value)) if name == "shards" else value
            yield name, redact_url(value) if name in {"out", "extend", "scheduler"} and value else shown
