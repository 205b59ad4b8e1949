"""What a request may ask for: a Job, less what the operator decides."""

from typing import Any

from pydantic import ConfigDict, field_validator

from ..job import Job

_OPERATORS = ("out", "scheduler", "storage_options")
_MOST_SHARDS = 10_000
_LONGEST = 4096  # letters of any text
_LONGEST_EXPRESSION = 200  # letters of a regular expression: half a second of compiling at worst, in the planner

EXAMPLES = {
    "whole": {
        "summary": "The full spectrum of a folder of shards",
        "value": {"shards": ["/data/photos/train-{000..099}.tar"], "resolution": 64},
    },
    "leading": {
        "summary": "The 512 leading eigenvectors of gray images in a bucket, bad samples left out",
        "value": {
            "shards": ["s3://photos/train/*.tar"],
            "resolution": 128,
            "channels": 1,
            "rank": 512,
            "on_error": "skip",
            "memory": "8GiB",
        },
    },
}


def _without_operators(schema: dict[str, Any]) -> None:
    for name in _OPERATORS:
        schema.get("properties", {}).pop(name, None)


def _not_longer(value: Any, most: int) -> Any:
    if isinstance(value, str) and len(value) > most:
        raise ValueError(f"it has {len(value)} letters, {most} at most")
    return value


class Submission(Job):
    """A job as a request may ask for it.

    The service chooses the run folder, and its operator the scheduler and the credentials.
    """

    model_config = ConfigDict(json_schema_extra=_without_operators)

    @field_validator(*_OPERATORS, mode="before")
    @classmethod
    def _is_the_operators(cls, value: Any) -> Any:
        if value not in (None, {}):
            raise ValueError("it is the service's operator who decides this; leave it out")
        return value

    @field_validator("shards")
    @classmethod
    def _check_shards(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(value) > _MOST_SHARDS:
            raise ValueError(f"{len(value)} patterns are named, {_MOST_SHARDS} at most; use globs and brace ranges")
        return value

    @field_validator("device", "extend", mode="before")
    @classmethod
    def _check_length(cls, value: Any) -> Any:
        return _not_longer(value, _LONGEST)

    # Of the same name as the Job's own, whose place it takes: the service's loop compiles no expression of a stranger.
    # The planner's process makes a Job of this one, and names the field where it is no expression.
    @field_validator("group_by", mode="before")
    @classmethod
    def _check_grouping(cls, value: Any) -> Any:
        return _not_longer(value, _LONGEST_EXPRESSION)

    @field_validator("samples", "block_rows", "decode_threads", "workers", "max_groups", "max_sample", "memory")
    @classmethod
    def _check_size(cls, value: int | None) -> int | None:
        if value is not None and value > 1 << 50:
            raise ValueError(f"{value:.1e} is more than any machine has")
        return value

    def fields(self) -> dict[str, Any]:
        """Return what was asked for as the queue keeps it."""
        return self.model_dump(mode="json", exclude=set(_OPERATORS), exclude_unset=True)
