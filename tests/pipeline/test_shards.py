"""Samples of a shard: webdataset's conventions, held against webdataset itself."""

import contextlib
import io
import pickle
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fsspec
import pytest
import webdataset as wds
from hypothesis import given
from hypothesis import strategies as st
from webdataset.tariterators import group_by_keys, tar_file_expander

from tilecov.pipeline.shards import Refused, Sample, Unwanted, samples, webdataset_stage
from tilecov.storage.tar import TarError

SHARDS = Path(__file__).parents[2] / "../shared/data/twemoji64"
IMAGES = ("png", "jpg", "jpeg", "webp", "npy")
LARGE = 1 << 30

LEAVES_FILES_OPEN = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # wds.WebDataset does

TRICKY = [
    *("a.png", "a.PNG", "a.jpg", "a.seg.png", "a.txt", "a.", "a..png", "a", "a.cls.JSON"),
    *("b.jpeg", "b.Jpg", "b.npy", "b.txt", "é.png", "\udcff.png", "a b.png", "a\nb.png", "a.pn\ng"),
    *("./a.png", "d/a.png", "d.x/a.png", "d.x/a", "d/.hidden.png", ".hidden.png", "._a.png", "d/e/a.webp"),
    *("__m__", "__m__.png", "__m__/a.png", "d/__m__.png", "__a.png", "__a__b.png", "k" * 120 + ".png"),
]


def packed(*names: str, size: int = 5) -> bytes:
    """Return a tar of files that hold their name and a running number."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", encoding="utf-8") as tar:
        for number, name in enumerate(names):
            data = f"{number} {name!r}".encode().ljust(size, b".")
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def read(tar: bytes, image_keys: Sequence[str] = IMAGES, **options: Any) -> list[Sample | Unwanted | Refused]:
    return list(samples(io.BytesIO(tar), image_keys, **{"max_bytes": LARGE, **options}))


def by_webdataset(tar: bytes) -> tuple[list[dict[str, Any]], bool]:
    """Return webdataset's samples, and whether it raised after them because one has a file twice."""
    found: list[dict[str, Any]] = []
    try:
        found.extend(group_by_keys(tar_file_expander([{"url": "u", "stream": io.BytesIO(tar)}])))
    except ValueError:
        return found, True
    return found, False


def expected(sample: dict[str, Any], image_keys: Sequence[str]) -> Sample | Unwanted:
    for key in image_keys:
        if key in sample:
            return Sample(sample["__key__"], key, sample[key])
    return Unwanted(sample["__key__"])


@given(
    st.lists(st.sampled_from(TRICKY), max_size=8),
    st.permutations([*IMAGES, "seg.png", "txt"]).map(lambda keys: keys[:4]),
    st.sampled_from([100, 512, 1 << 20]),
)
def test_equals_webdataset(names: list[str], image_keys: list[str], chunk_bytes: int) -> None:
    tar = packed(*names)
    found = read(tar, image_keys, chunk_bytes=chunk_bytes)
    theirs, twice = by_webdataset(tar)
    seen: set[str] = set()
    for ours, sample in zip(found, theirs, strict=False):
        if sample["__key__"] in seen:
            assert isinstance(ours, Refused)
            assert ours.key == sample["__key__"]
        else:
            assert ours == expected(sample, image_keys)
        seen.add(sample["__key__"])
    if twice:
        assert isinstance(found[len(theirs)], Refused)
    else:
        assert len(found) == len(theirs)


@pytest.mark.parametrize(
    ("names", "result"),
    [
        (["a.png", "a.jpg"], [("a", "png", 0)]),
        (["a.jpg", "a.png"], [("a", "png", 1)]),
        (["a.npy", "a.jpeg", "a.txt"], [("a", "jpeg", 1)]),
        (["a.JPG"], [("a", "jpg", 0)]),
        (["a.seg.png"], [("a", None, None)]),
        (["a.png.txt"], [("a", None, None)]),
        (["x/a.png", "y/a.png"], [("x/a", "png", 0), ("y/a", "png", 1)]),
        (["a.txt", "README", "a.png"], [("a", "png", 2)]),
        (["__meta__/a.png", "__m.png__", "a.png"], [("a", "png", 2)]),
        (["__meta__.json", "a.png"], [("__meta__", None, None), ("a", "png", 1)]),
        ([], []),
    ],
)
def test_the_first_of_the_image_keys_is_taken(names: list[str], result: list[tuple[str, str, int]]) -> None:
    found = [
        (s.key, s.extension, int(bytes(s.data).split()[0])) if isinstance(s, Sample) else (s.key, None, None)
        for s in read(packed(*names))
    ]
    assert found == result


def test_image_keys_match_in_any_case() -> None:
    assert [s.extension for s in read(packed("a.Seg.PNG"), ["SEG.png"]) if isinstance(s, Sample)] == ["seg.png"]


@pytest.mark.parametrize(
    ("names", "outcome", "reason"),
    [
        (["a.png", "a.png"], [Refused], "'a.png', at byte 1024 of the shard"),
        (["a.txt", "a.png", "a.TXT"], [Refused], "'a.TXT', at byte 2048"),
        (["a.png", "a.txt", "a.txt", "b.png"], [Refused, Sample], "'a.txt', at byte 2048"),
        (["a.png", "b.png", "a.png", "c.png"], [Sample, Sample, Refused, Sample], "'a.png', at byte 2048"),
        (["a.png", "b.png", "a.txt"], [Sample, Sample, Refused], "'a.txt', at byte 2048"),
        (["a.txt", "b.png", "a.png"], [Unwanted, Sample, Refused], "'a.png', at byte 2048"),
    ],
)
def test_duplicates_are_refused_by_name(names: list[str], outcome: list[type], reason: str) -> None:
    found = read(packed(*names))
    assert [type(sample) for sample in found] == outcome
    assert [sample.key for sample in found if isinstance(sample, Refused)] == ["a"]
    assert all(reason in sample.reason for sample in found if isinstance(sample, Refused))


def test_an_image_over_the_limit_is_refused_and_other_files_may_be_of_any_size() -> None:
    tar = packed("a.mp4", "a.png", "b.png", "b.txt", size=700)
    assert read(tar, ["png"], max_bytes=699) == [
        Refused("a", "'a.png' has 700 bytes, more than the 699 allowed."),
        Refused("b", "'b.png' has 700 bytes, more than the 699 allowed."),
    ]
    assert [type(sample) for sample in read(tar, ["png"], max_bytes=700)] == [Sample, Sample]
    assert read(tar, ["npy"], max_bytes=0) == [Unwanted("a"), Unwanted("b")]


def test_other_files_are_not_read() -> None:
    class Counted(io.BytesIO):
        count = 0

        def read(self, size: int | None = -1) -> bytes:
            data = super().read(size)
            self.count += len(data)
            return data

    stream = Counted(packed("a.mp4", "a.png", "b.mp4", "b.png", size=100_000))
    assert [type(s) for s in samples(stream, ["png"], max_bytes=LARGE, chunk_bytes=4096)] == [Sample, Sample]
    assert stream.count < 250_000


@given(st.integers(0, 8 * 1024 + 511), st.sampled_from([100, 4096, 1 << 20]))
def test_samples_that_ended_before_the_damage_are_yielded(cut: int, chunk_bytes: int) -> None:
    # Four samples of two files, each file two blocks; the next key's header shows that a sample has ended.
    names = [f"{key}.{extension}" for key in "abcd" for extension in ("png", "txt")]
    tar = packed(*names)
    found: list[Sample | Unwanted | Refused] = []
    with pytest.raises(TarError, match=r"is (cut|empty)"):
        found.extend(samples(io.BytesIO(tar[:cut]), IMAGES, max_bytes=LARGE, chunk_bytes=chunk_bytes))
    # Of b.png, say, the header and its payload must be there, for a tar's member is whole or it is not one.
    assert found == read(tar)[: max(0, (cut // 1024 - 1) // 2)]


@pytest.fixture
def shards(tmp_path: Path) -> list[str]:
    """Write three shards as a user would, by webdataset's own writer."""
    urls = [str(tmp_path / f"{i}.tar") for i in range(3)]
    for number, url in enumerate(urls):
        with wds.TarWriter(url) as out:
            for i in range(5):
                out.write({"__key__": f"{number}/{i}", "png": bytes([i]) * 600 * i, "cls": i, "seg.png": b"mask"})
    return urls


@LEAVES_FILES_OPEN
def test_the_stage_yields_what_webdataset_yields(shards: list[str]) -> None:
    stage = pickle.loads(pickle.dumps(webdataset_stage(["png"], max_bytes=LARGE)))  # as a DataLoader's workers get it
    ours = list(wds.DataPipeline(wds.SimpleShardList(shards), stage))
    theirs = [
        {key: sample[key] for key in ("__key__", "__url__", "png")}
        for sample in wds.WebDataset(shards, shardshuffle=False)
    ]
    assert ours == theirs
    assert all(type(sample["png"]) is bytes for sample in ours)


def test_the_stage_reads_any_fsspec_url() -> None:
    with fsspec.open("memory://test_shards/a.tar", "wb") as out:
        out.write(packed("a.png", "b.txt"))
    found = list(webdataset_stage(IMAGES, max_bytes=LARGE)([{"url": "memory://test_shards/a.tar"}]))
    assert found == [{"__key__": "a", "__url__": "memory://test_shards/a.tar", "png": b"0 'a.png'"}]


def test_the_stage_asks_webdatasets_handlers(shards: list[str], tmp_path: Path) -> None:
    twice, cut, missing = tmp_path / "twice.tar", tmp_path / "cut.tar", tmp_path / "missing.tar"
    twice.write_bytes(packed("x.png", "x.png", "y.png"))
    cut.write_bytes(packed("v.png", "w.png")[:2048])
    urls = [str(twice), str(cut), str(missing), shards[0]]

    def keys(handler: Any) -> tuple[list[str], list[Exception]]:
        met: list[Exception] = []
        stage = webdataset_stage(IMAGES, max_bytes=LARGE, handler=lambda error: (met.append(error), handler(error))[1])
        found = []
        with contextlib.suppress(ValueError):
            for sample in stage({"url": url} for url in urls):
                found.append(sample["__key__"])  # noqa: PERF401 - what came before the error is kept
        return found, met

    found, met = keys(wds.ignore_and_continue)
    assert found == ["y", "v", "0/0", "0/1", "0/2", "0/3", "0/4"]
    assert [type(error) for error in met] == [ValueError, TarError, FileNotFoundError]
    assert [url in error.args for url, error in zip(urls, met, strict=False)] == [True, True, True]
    for handler in (wds.ignore_and_stop, wds.reraise_exception):
        found, met = keys(handler)
        assert (found, len(met)) == ([], 1)


@LEAVES_FILES_OPEN
def test_real_shards_equal_webdataset() -> None:
    if not SHARDS.is_dir():
        pytest.skip("the real shards are not on this machine")
    path = min(SHARDS.glob("*.tar"))
    with path.open("rb") as stream:
        ours = [(s.key, s.extension, bytes(s.data)) for s in samples(stream, IMAGES, max_bytes=LARGE)]
    assert ours == [(s["__key__"], "png", s["png"]) for s in wds.WebDataset(str(path), shardshuffle=False)]
    assert len(ours) == 480
