"""Samples found in C are those that Python finds, whatever lies in the shard and wherever its chunks end."""

import io
import tarfile
from typing import Any

import pytest
from compiled import A_COMPILER_IS_HERE
from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from tilecov.pipeline import shards
from tilecov.pipeline.shards import Refused, Sample, Unwanted, samples
from tilecov.storage.tar import TarError

Found = list[Sample | Unwanted | Refused]

KEYS = st.sampled_from(["a", "b", "c", "d/a", "d.x/b", "é", "\udcff", "__m__", "__m__/a", "_", "a__b__", "a\nb", ""])
ENDS = st.sampled_from([".png", ".PNG", ".jpg", ".seg.png", ".cls", ".json", ".txt", ".", "", "..png", ".é", ".pn\ng"])
FILES = st.lists(st.tuples(KEYS, ENDS, st.sampled_from([0, 5, 700])), max_size=14)


def test_it_is_compiled_where_a_compiler_is() -> None:
    """Installing goes on without it: this is where that would be seen."""
    assert shards.usual_samples.__module__.endswith("_samples") or not A_COMPILER_IS_HERE


def packed(files: list[tuple[str, str, int]]) -> bytes:
    """Return a tar of files of these sizes, which hold their number."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for number, (key, end, size) in enumerate(files):
            info = tarfile.TarInfo(key + end)
            info.size = size
            archive.addfile(info, io.BytesIO(bytes([number]) * size))
    return out.getvalue()


def found_in(data: bytes, **options: Any) -> tuple[list[tuple[Any, ...]], str]:
    """Return what is found, with copies of the bytes, and what is said of the shard."""
    found: Found = []
    try:
        for item in samples(io.BytesIO(data), **options):
            found.append(item)
        said = ""
    except TarError as error:
        said = str(error)
    return [
        (item.key, item.extension, bytes(item.data), None if item.companion is None else bytes(item.companion))
        if isinstance(item, Sample)
        else (type(item).__name__, item)
        for item in found
    ], said


def as_python_finds(data: bytes, **options: Any) -> tuple[list[tuple[Any, ...]], str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "usual_samples", lambda entries, at, *_: ([], at))
        return found_in(data, **options)


@settings(max_examples=400)
@given(
    FILES,
    st.sampled_from(["", "cls", "png"]),
    st.sampled_from([("png",), ("jpg", "png"), ("PNG", "png", "seg.png")]),
    st.sampled_from([600, 1 << 20]),
    st.sampled_from([700, 2048, 1 << 20]),
    st.sampled_from([0, 1024, 1500]),
)
@example(
    [("a", ".cls", 5), ("a", ".png", 5), ("b", ".png", 5), ("b", ".cls", 700), ("c", ".png", 5)],
    "cls",
    ("png",),
    600,
    1 << 20,
    0,
)
@example([("a", f".{n}", 5) for n in range(20)] + [("a", ".png", 5), ("b", ".png", 5)], "", ("png",), 600, 1 << 20, 0)
def test_c_and_python_find_the_same(
    files: list[tuple[str, str, int]], companion: str, image_keys: tuple[str, ...], most: int, chunk: int, cut: int
) -> None:
    data = packed(files)
    options: dict[str, Any] = {
        "image_keys": image_keys,
        "max_bytes": most,
        "companion": companion,
        "chunk_bytes": chunk,
    }
    data = data[: len(data) - cut]
    event("all whole" if not cut else "cut")
    assert found_in(data, **options) == as_python_finds(data, **options)


def test_the_usual_samples_are_found_in_c(monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the first, which comes with the archive's first header, and the last, of which more might follow."""
    if not A_COMPILER_IS_HERE:
        pytest.skip("no C compiler was there when tilecov was installed")
    taken: list[str] = []
    usual = shards.usual_samples

    def watched(*arguments: Any) -> Any:
        found = usual(*arguments)
        taken.extend(item[0] for item in found[0])
        return found

    monkeypatch.setattr(shards, "usual_samples", watched)
    data = packed([(f"d/é{number}", end, 5) for number in range(9) for end in (".cls", ".png", ".txt")])
    whole, said = found_in(data, image_keys=("png",), max_bytes=100, companion="cls")
    assert not said
    assert [item[0] for item in whole] == [f"d/é{number}" for number in range(9)]
    assert taken == [f"d/é{number}" for number in range(1, 8)]
    assert whole[4] == ("d/é4", "png", bytes([13]) * 5, bytes([12]) * 5)


def test_c_looks_at_what_it_is_given() -> None:
    if not A_COMPILER_IS_HERE:
        pytest.skip("no C compiler was there when tilecov was installed")
    sound: list[Any] = [[("a.png", 5, 0), ("b.png", 5, 1024)], 0, ("png",), "", "", set(), 10]
    assert shards.usual_samples(*sound) == ([("a", 0, 512, 517, -1, -1)], 1)
    for place, wrong in [
        (0, None),
        (0, [("a.png", 5), ("b.png", 5, 1)]),
        (0, [("a.png", "5", 0), ("b.png", 5, 1)]),
        (0, [(b"a.png", 5, 0), ("b.png", 5, 1)]),
        (0, ["a.png"]),
        (2, ("png", 1)),
        (2, ["png"]),
        (5, {}),
        (6, "10"),
    ]:
        sound[5].clear()
        with pytest.raises((TypeError, IndexError)):
            shards.usual_samples(*sound[:place], wrong, *sound[place + 1 :])
    sound[5].clear()
    assert shards.usual_samples(*sound[:2], ("\udcff", "png"), "\udcff", "\udcff", *sound[5:])[0] == [
        ("a", 1, 512, 517, -1, -1)
    ]
    assert shards.usual_samples(*sound[:1], -1, *sound[2:]) == ([], -1)
    assert shards.usual_samples(*sound[:1], 7, *sound[2:]) == ([], 7)
    assert shards.usual_samples(*sound[:2], tuple("abcdefghijklmnopqrstuvwxyzABCDEFGH"), *sound[3:]) == ([], 0)
