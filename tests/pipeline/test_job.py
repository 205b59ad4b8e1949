"""Job: what may be asked for, what the result depends on, and that no credential is ever shown."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tilecov.pipeline import Job
from tilecov.pipeline.job import HOW, KEYS, RANGES

SECRET = "hunter2-AKIA-do-not-show"
OPTIONS = {"key": "me", "secret": SECRET, "client_kwargs": {"token": SECRET}}


def job(**fields: Any) -> Job:
    return Job(**({"shards": ["a.tar"], "resolution": 8} | fields))


def complaint(**fields: Any) -> tuple[str, str]:
    """Return the field and the message of the one thing that is wrong."""
    with pytest.raises(ValidationError) as caught:
        job(**fields)
    (problem,) = caught.value.errors()
    return str(problem["loc"][0]) if problem["loc"] else "", problem["msg"]


# What may be asked for


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("shards", [], "at least 1"),
        ("shards", None, "tuple"),
        ("resolution", 0, "greater than or equal to 1"),
        ("resolution", -64, "greater than or equal to 1"),
        ("resolution", 4097, "4096"),
        ("resolution", 2.5, "integer"),
        ("resolution", "big", "integer"),
        ("channels", 2, "1 or 3"),
        ("range", "bytes", "'symmetric', 'unit' or 'byte'"),
        ("dtype", "float16", "'float32' or 'float64'"),
        ("svd", "magic", "'auto'"),
        ("on_error", "ignore", "'fail' or 'skip'"),
        ("max_skipped", -0.01, "greater than or equal to 0"),
        ("max_skipped", 1.01, "less than or equal to 1"),
        ("max_skipped", float("nan"), "than or equal to"),
        ("workers", 0, "greater than or equal to 1"),
        ("decode_threads", 0, "greater than or equal to 1"),
        ("block_rows", 0, "greater than or equal to 1"),
        ("memory", "lots", "'lots' is no size; write it as 4GiB"),
        ("memory", -1, "-1 is no size"),
        ("max_sample", "4 XB", "'4 XB' is no size"),
        ("image_key", "tiff", "'tiff' is not among png;jpg;jpeg;webp;npy"),
        ("image_key", "png;gif;bmp", "'gif;bmp' is not among"),
        ("image_key", "png;", "not among"),
        ("image_key", "", "not among"),
        ("image_key", [], "not among"),
        ("image_key", ["png", "exe"], "'exe' is not among"),
        ("resolutoin", 8, "not permitted"),
    ],
)
def test_what_cannot_be_asked_for_is_named_with_what_can(field: str, value: Any, says: str) -> None:
    where, message = complaint(**{field: value})
    assert where == field
    assert says in message


@pytest.mark.parametrize("rank", [-1, 193, 10**9])
def test_a_rank_that_no_matrix_of_this_size_has_names_both(rank: int) -> None:
    assert complaint(rank=rank)[1].endswith(f"rank {rank} is not between 0 and d = 192")


@pytest.mark.parametrize(
    ("fields", "at_fault"),
    [
        ({"rank": 193}, "rank"),
        ({"rank": 0, "covariance": False}, "rank"),
        ({"svd": "dual", "augment": "hflip"}, "augment"),
        ({"svd": "dual", "group_by": "cls"}, "group_by"),
        ({"svd": "dual", "strategy": "resident"}, "strategy"),
        ({"covariance": False, "extend": "run"}, "extend"),
        ({"covariance": False, "svd": "blocked"}, "svd"),
    ],
)
def test_fields_that_do_not_go_together_name_the_one_at_fault(fields: dict[str, Any], at_fault: str) -> None:
    assert complaint(**fields)[0] == at_fault


@pytest.mark.parametrize("rank", ["half", 1.5, None])
def test_a_rank_is_a_number_or_full(rank: Any) -> None:
    with pytest.raises(ValidationError, match="rank"):
        job(rank=rank)


@pytest.mark.parametrize(("channels", "size"), [(1, 64), (3, 192)])
def test_every_rank_up_to_the_size_may_be_asked_for(channels: int, size: int) -> None:
    assert [job(channels=channels, rank=rank).rank for rank in (0, 1, size)] == [0, 1, size]
    assert job(channels=channels, rank="full").rank == job(channels=channels).rank == "full"
    assert complaint(channels=channels, rank=size + 1)[1].endswith(f"d = {size}")


@pytest.mark.parametrize(
    ("given", "keys"),
    [
        ("png", ("png",)),
        ("jpg;png", ("jpg", "png")),
        ("jpg,png", ("jpg", "png")),
        ("PNG;JpEg", ("png", "jpeg")),
        (["webp", "npy"], ("webp", "npy")),
        (("npy",), ("npy",)),
    ],
)
def test_image_keys_keep_the_order_they_are_given_in(given: Any, keys: tuple[str, ...]) -> None:
    assert job(image_key=given).image_key == keys


def test_all_image_keys_are_looked_for_unless_told_otherwise() -> None:
    assert job().image_key == KEYS == ("png", "jpg", "jpeg", "webp", "npy")


def test_sizes_may_be_written_as_people_do() -> None:
    asked = job(memory="4GiB", max_sample="1MB")
    assert (asked.memory, asked.max_sample) == (2**32, 10**6)
    assert job(memory=12345).memory == 12345
    assert job().memory is None


@given(st.integers(1, 4096), st.sampled_from([1, 3]))
def test_rows_have_channels_times_resolution_squared_values(resolution: int, channels: Any) -> None:
    asked = job(resolution=resolution, channels=channels)
    assert asked.shape == (channels, resolution, resolution)
    assert asked.size == channels * resolution * resolution


@pytest.mark.parametrize(("name", "ends"), [("symmetric", (-1, 1)), ("unit", (0, 1)), ("byte", (0, 255))])
def test_a_value_range_is_where_0_and_255_come_to_lie(name: Any, ends: tuple[float, float]) -> None:
    scale, offset = job(range=name).affine
    assert (offset, 255 * scale + offset) == pytest.approx(ends, abs=1e-15)
    assert job(range=name).affine == RANGES[name]
    assert job().range == "symmetric"


def test_a_job_cannot_be_changed() -> None:
    asked = job()
    for field in Job.model_fields:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(asked, field, getattr(asked, field))


# What the result depends on

WHAT: dict[str, Any] = {
    "resolution": 16,
    "channels": 1,
    "image_key": "jpg;png",
    "range": "unit",
    "dtype": "float64",
    "rank": 5,
    "svd": "direct",
    "on_error": "skip",
    "max_skipped": 0.5,
    "max_sample": 1000,
}
ONLY_HOW: dict[str, Any] = {
    "device": "cuda:0",
    "memory": "1GiB",
    "workers": 3,
    "scheduler": "tcp://there:8786",
    "storage_options": OPTIONS,
    "decode_threads": 2,
    "block_rows": 77,
}


def test_every_field_says_either_what_or_how() -> None:
    assert set(WHAT) <= set(job().what())
    assert set(ONLY_HOW) <= HOW
    assert set(Job.model_fields) == set(job().what()) | HOW | {"shards", "out"}
    assert not set(job().what()) & HOW


@pytest.mark.parametrize(("field", "value"), WHAT.items(), ids=WHAT)
def test_another_result_is_another_what(field: str, value: Any) -> None:
    before, after = job().what(), job(**{field: value}).what()
    assert {name for name in before if before[name] != after[name]} == {field}


@pytest.mark.parametrize(("field", "value"), [*ONLY_HOW.items(), ("shards", ["b.tar"]), ("out", "there")])
def test_how_and_where_it_is_done_is_no_part_of_what(field: str, value: Any) -> None:
    assert job(**{field: value}).what() == job().what()


def test_what_survives_json_and_asks_for_the_same_again() -> None:
    asked = job(**WHAT)
    stored = json.loads(json.dumps(asked.what()))
    assert stored == asked.what()
    assert job(**stored) == asked
    assert job(**stored).what() == stored


def test_a_job_may_come_as_json() -> None:
    fields = {"shards": ["a.tar", "b-{0..3}.tar"], "image_key": "png", "rank": "full", "memory": "2GB", "resolution": 8}
    assert Job.model_validate_json(json.dumps(fields)) == Job(**fields)


# Credentials


def test_no_credential_is_shown_or_stored() -> None:
    asked = job(storage_options=OPTIONS)
    assert asked.storage_options == OPTIONS
    shown = [repr(asked), str(asked), f"{asked}", asked.model_dump_json(), repr(asked.model_dump()), repr(asked.what())]
    for text in shown:
        assert SECRET not in text
        assert "storage_options" not in text


BAD: dict[str, Any] = {
    "another field is wrong": {"resolution": 0},
    "a field is unknown": {"resolutoin": 8},
    "a field is missing": {"resolution": None},
    "fields do not go together": {"rank": 10**6},
    "the options are no mapping": {"storage_options": "hunter2"},
    "the options are a list": {"storage_options": ["hunter2"]},
}


@pytest.mark.parametrize("fields", BAD.values(), ids=BAD)
def test_no_error_shows_a_credential(fields: dict[str, Any]) -> None:
    """The options come last: of a long input, its end is shown."""
    asked = {"shards": ["a"], "resolution": 8} | fields
    asked["storage_options"] = asked.pop("storage_options", {"secret": "hunter2"})
    with pytest.raises(ValidationError) as caught:
        Job(**{name: value for name, value in asked.items() if value is not None})
    assert "hunter2" not in str(caught.value)
