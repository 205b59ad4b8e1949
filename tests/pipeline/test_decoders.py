"""A batch of samples becomes the rows that its samples become one by one, and says the same of each that cannot."""

import io

import numpy as np
import pytest
from compiled import NO_COMPILER
from conftest import npy, png, random_images
from PIL import Image

from tilecov.pipeline.decoders import ANY_PICTURE, PictureBudget, decode_batch
from tilecov.pipeline.errors import DoesNotFitError
from tilecov.pipeline.grouping import Grouping
from tilecov.pipeline.headers import SAME_LIBJPEG
from tilecov.pipeline.jpeg import compiled as compiled_jpeg
from tilecov.pipeline.png import decodes_batches
from tilecov.pipeline.rows import RowSpec
from tilecov.pipeline.shards import Sample

SIDE = 6
PICTURES = random_images(8, SIDE)


def jpeg(pixels: np.ndarray) -> bytes:  # type: ignore[type-arg]
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=95, subsampling=0)
    return out.getvalue()


MIXED = [
    Sample("png", "png", png(PICTURES[0])),
    Sample("view", "png", memoryview(png(PICTURES[1]))),
    Sample("cut", "png", png(PICTURES[2])[:90]),
    Sample("jpeg", "jpg", jpeg(PICTURES[3])),
    Sample("smaller", "png", png(PICTURES[4][:3, :3])),
    Sample("no picture", "png", b"text"),
    Sample("empty", "png", b""),
    Sample("png again", "jpg", png(PICTURES[5])),
]
ARRAYS = [
    Sample("array", "npy", npy(PICTURES[6].transpose(2, 0, 1))),
    Sample("a picture called array", "npy", png(PICTURES[7])),
    Sample("float", "npy", npy(np.zeros(3 * SIDE**2))),
]


@pytest.mark.parametrize(
    "samples", [MIXED, MIXED + ARRAYS, MIXED[:1], []], ids=["pictures", "arrays too", "one", "none"]
)
@pytest.mark.parametrize("pictures", [ANY_PICTURE, PictureBudget(usual=SIDE**2)], ids=["any", "small"])
def test_a_batch_is_its_samples_one_by_one(samples: list[Sample], pictures: PictureBudget) -> None:
    spec = RowSpec(3, SIDE, ("png", "jpg", "npy"), "uint8", 2**26)
    alone = np.full((len(samples), spec.size), 9, np.uint8)
    failed = []
    for index, sample in enumerate(samples):
        try:
            pictures.decode(spec, sample, alone[index])
        except ValueError as error:
            failed.append((index, sample.key, str(error)))
    rows = np.full((len(samples), spec.size), 9, np.uint8)
    found = decode_batch(spec, pictures, samples, rows)
    assert found.failed == failed
    assert found.labels is None
    assert np.array_equal(rows, alone)
    assert {key for _, key, _ in failed} == {sample.key for sample in samples} & {
        "cut", "no picture", "empty", "a picture called array", "float",
    }  # fmt: skip


def test_a_picture_too_large_for_the_plan_is_refused_in_a_batch_too() -> None:
    """Also where pictures of the size of a row are: the usual way asks for no leave."""
    spec = RowSpec(3, SIDE, ("png",), "uint8", 2**26)
    rows = np.zeros((1, spec.size), np.uint8)
    with pytest.raises(DoesNotFitError, match="'png', 6 x 6"):
        decode_batch(spec, PictureBudget(usual=SIDE**2 - 1, large=0), MIXED[:1], rows)
    assert decode_batch(spec, PictureBudget(usual=SIDE**2, large=0), MIXED[:1], rows).failed == []


def test_float_rows_take_no_pictures() -> None:
    spec = RowSpec(3, SIDE, ("png", "npy"), "float64", 2**26)
    rows = np.zeros((2, spec.size))
    samples = [MIXED[0], ARRAYS[2]]
    found = decode_batch(spec, ANY_PICTURE, samples, rows)
    assert [index for index, _, _ in found.failed] == [0]
    assert "an image in a dataset of float64 arrays" in found.failed[0][2]


def test_a_sample_without_a_group_is_said_once_and_in_its_place() -> None:
    spec = RowSpec(3, SIDE, ("png",), "uint8", 2**26, Grouping.parse("cls"))
    samples = [
        Sample("a", "png", png(PICTURES[0]), b"cat"),
        Sample("b", "png", b"no picture", b"cat"),
        Sample("c", "png", png(PICTURES[1]), b""),
        Sample("d", "png", b"neither", None),
        Sample("e", "png", png(PICTURES[2]), memoryview(b"dog")),
    ]
    rows = np.zeros((len(samples), spec.size), np.uint8)
    found = decode_batch(spec, ANY_PICTURE, samples, rows)
    assert [(index, key) for index, key, _ in found.failed] == [(1, "b"), (2, "c"), (3, "d")]
    assert ["picture" in found.failed[0][2], "its group" in found.failed[1][2], "no .cls" in found.failed[2][2]] == [
        True
    ] * 3
    assert found.labels is not None
    assert [found.labels[index] for index in (0, 4)] == ["cat", "dog"]
    assert np.array_equal(rows[4], PICTURES[2].transpose(2, 0, 1).reshape(-1))


def test_a_sample_without_a_group_is_not_decoded() -> None:
    """Else one that is too large besides would end the run instead of being left out."""
    spec = RowSpec(3, SIDE, ("png",), "uint8", 2**26, Grouping.parse("cls"))
    samples = [Sample("a", "png", png(random_images(1, 50)[0]), None)]
    found = decode_batch(spec, PictureBudget(usual=SIDE**2, large=0), samples, np.zeros((1, spec.size), np.uint8))
    assert [(key, "no .cls" in reason) for _, key, reason in found.failed] == [("a", True)]


@pytest.mark.skipif(not decodes_batches(), reason=NO_COMPILER)
def test_pictures_of_two_kinds_and_arrays_do_not_hold_each_other_up() -> None:
    spec = RowSpec(3, SIDE, ("png", "jpg", "npy"), "uint8", 2**26)
    rows = np.zeros((len(MIXED + ARRAYS), spec.size), np.uint8)
    left = [(MIXED + ARRAYS)[index].key for index in spec.decode_usual(MIXED + ARRAYS, rows, SIDE**2)]
    known = {"jpeg"} if compiled_jpeg is not None and SAME_LIBJPEG else set()
    assert {*left, *known} == {
        "cut", "jpeg", "smaller", "no picture", "empty", "array", "a picture called array", "float",
    }  # fmt: skip
    assert not known & set(left)
