"""Writing tensor files: torch loads them, equal tensors make equal files, and what goes wrong leaves nothing."""

import hashlib
import io
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensors import (  # noqa: F401  (the fixtures `folder` and `anywhere`)
    Float,
    folder_anywhere,
    joined,
    load,
    local_folder,
    numbers,
    quick,
    same,
)

from tilecov.storage.artifacts import TensorFile, write_tensor
from tilecov.storage.objects import Folder

shapes = st.lists(st.integers(0, 7), max_size=4).map(tuple)


def cut(values: Float, points: Iterable[int]) -> list[Float]:
    return np.split(values.ravel(), sorted(points))


# --- torch loads what is written


@quick
@given(shape=shapes, seed=st.integers(0, 99), data=st.data())
def test_torch_loads_any_shape_from_any_slabs(
    folder: Folder, shape: tuple[int, ...], seed: int, data: st.DataObject
) -> None:
    values = numbers(shape, seed)
    points = data.draw(st.lists(st.integers(0, values.size), max_size=6))
    write_tensor(folder, "U.pt", shape, iter(cut(values, points)))
    assert same(load(folder, "U.pt"), values)
    assert same(load(folder, "U.pt", mmap=True), values)
    with zipfile.ZipFile(folder.path("U.pt")) as archive:
        assert archive.testzip() is None
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0,), (), (1,), (1, 1, 1, 1, 1), (2, 0, 2)])
def test_torch_loads_the_smallest_shapes(folder: Folder, shape: tuple[int, ...]) -> None:
    values = numbers(shape)
    for slabs in ([values], [values[:0]] * 2 + [values] if shape else [values]):
        write_tensor(folder, "x.pt", shape, slabs)
        assert same(load(folder, "x.pt"), values)
        assert same(load(folder, "x.pt", mmap=True), values)


def test_no_slab_is_enough_for_no_value(folder: Folder) -> None:
    write_tensor(folder, "x.pt", (0, 3), [])
    assert same(load(folder, "x.pt"), np.empty((0, 3), np.float32))


@pytest.mark.parametrize(
    "name", ["U.pt", "mean.pt", "a.b.pt", "no-ending", "x.pt.pt", "with space.pt", "U" * 200 + ".pt"]
)
def test_any_name_will_do(anywhere: Folder, name: str) -> None:
    values = numbers((3, 5))
    write_tensor(anywhere, name, (3, 5), [values])
    raw = anywhere.read(name)
    assert same(np.asarray(torch.load(io.BytesIO(raw), weights_only=True).numpy()), values)
    file = TensorFile.open(anywhere, name)
    assert same(joined(file, 2), values)
    assert file.offset % 64 == 0  # a mapped file can be used in place
    assert raw[file.offset : file.offset + values.nbytes] == values.tobytes()


@pytest.mark.parametrize("name", ["ünïcode.pt", "名.pt"])
def test_a_name_of_other_letters_loads_too(folder: Folder, name: str) -> None:
    write_tensor(folder, name, (3, 5), [numbers((3, 5))])
    assert same(load(folder, name), numbers((3, 5)))
    assert same(load(folder, name, mmap=True), numbers((3, 5)))
    assert same(joined(TensorFile.open(folder, name), 2), numbers((3, 5)))


@pytest.mark.parametrize("name", ["ünïcode.pt", "名.pt"])
def test_values_are_aligned_behind_other_letters(folder: Folder, name: str) -> None:
    write_tensor(folder, name, (3, 5), [numbers((3, 5))])
    assert TensorFile.open(folder, name).offset % 64 == 0


def test_a_name_in_a_folder_is_loaded_or_refused(folder: Folder) -> None:
    try:
        write_tensor(folder, "deeper/U.pt", (2,), [np.ones(2, np.float32)])
    except ValueError:
        return
    assert load(folder, "deeper/U.pt").sum() == 2


@pytest.mark.parametrize("dtype", ["float64", ">f4", "float16", "int32", "uint8"])
def test_other_slabs_become_float32(folder: Folder, dtype: str) -> None:
    values = np.arange(12).astype(dtype)
    write_tensor(folder, "x.pt", (3, 4), [values[:5], values[5:]])
    assert same(load(folder, "x.pt"), np.arange(12, dtype=np.float32).reshape(3, 4))


def test_slabs_are_taken_in_c_order_however_they_lie(folder: Folder) -> None:
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    for view in (base.T, np.asfortranarray(base), base[::-1, ::2], np.broadcast_to(base[0], (3, 6))):
        write_tensor(folder, "x.pt", view.shape, [view[:2], view[2:]])
        assert same(load(folder, "x.pt"), np.ascontiguousarray(view))


def test_slabs_may_be_one_buffer_filled_again(folder: Folder) -> None:
    buffer = np.empty((2, 3), np.float32)

    def refilled() -> Iterator[Float]:
        for value in range(4):
            buffer[:] = value
            yield buffer

    write_tensor(folder, "x.pt", (8, 3), refilled())
    assert same(load(folder, "x.pt"), np.repeat(np.arange(4, dtype=np.float32), 2)[:, None].repeat(3, axis=1))


def test_a_loaded_tensor_is_an_ordinary_one(folder: Folder) -> None:
    write_tensor(folder, "x.pt", (3, 4), [numbers((3, 4))])
    for mmap in (False, True):
        tensor = torch.load(folder.path("x.pt"), weights_only=True, mmap=mmap)
        assert type(tensor) is torch.Tensor
        assert not tensor.requires_grad
        assert tensor.device.type == "cpu"
        tensor += 1
    assert same(load(folder, "x.pt"), numbers((3, 4)))  # not even a mapped file changes


def test_the_written_tensor_is_the_one_torch_would_save(folder: Folder) -> None:
    values = numbers((4, 3))
    write_tensor(folder, "ours.pt", (4, 3), [values])
    torch.save(torch.from_numpy(values.copy()), folder.path("theirs.pt"))
    assert same(load(folder, "ours.pt"), load(folder, "theirs.pt"))
    with zipfile.ZipFile(folder.path("ours.pt")) as ours, zipfile.ZipFile(folder.path("theirs.pt")) as theirs:
        for member in ("byteorder", "version", "data/0"):
            assert ours.read(f"ours/{member}") == theirs.read(f"theirs/{member}")


# --- equal tensors, equal files


@quick
@given(shape=shapes, seed=st.integers(0, 99), data=st.data())
def test_equal_tensors_make_equal_files(folder: Folder, shape: tuple[int, ...], seed: int, data: st.DataObject) -> None:
    values = numbers(shape, seed)
    digests, files = set(), set()
    for inner in ("a", "b"):
        points = data.draw(st.lists(st.integers(0, values.size), max_size=4))
        digests.add(write_tensor(folder.folder(inner), "U.pt", shape, cut(values, points)))
        files.add(folder.folder(inner).read("U.pt"))
    assert len(files) == 1
    assert (
        digests == {hashlib.sha256(files.pop()).hexdigest()} == {TensorFile.open(folder.folder("a"), "U.pt").checksum()}
    )


def test_a_file_does_not_know_when_or_where_it_was_made(
    anywhere: Folder, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = write_tensor(anywhere, "U.pt", (5,), [numbers((5,))])
    later = time.time() + 1e8
    monkeypatch.setattr(time, "time", lambda: later)
    assert write_tensor(folder, "U.pt", (5,), [numbers((5,))]) == before
    assert folder.read("U.pt") == anywhere.read("U.pt")


@pytest.mark.parametrize("other", [(6, 4), (4, 6, 1), (24,), (2, 12)])
def test_other_tensors_make_other_files(folder: Folder, other: tuple[int, ...]) -> None:
    values = numbers((4, 6))
    one = write_tensor(folder, "U.pt", (4, 6), [values])
    assert write_tensor(folder, "U.pt", other, [values]) != one
    assert write_tensor(folder, "U.pt", (4, 6), [numbers((4, 6), seed=1)]) != one


# --- what goes wrong leaves nothing


def wrong(values: Float) -> dict[str, list[Float]]:
    return {
        "none": [],
        "short": [values[:-1]],
        "long": [values, values[:1]],
        "twice": [values, values],
        "empty": [values[:0]],
    }


@pytest.mark.parametrize("case", ["none", "short", "long", "twice", "empty"])
def test_slabs_that_do_not_add_up_leave_no_file(folder: Folder, case: str) -> None:
    slabs = wrong(numbers((12,)))[case]
    given_ = sum(slab.size for slab in slabs)
    with pytest.raises(ValueError, match=rf"U\.pt.*12.*\b{given_}\b"):
        write_tensor(folder, "U.pt", (3, 4), slabs)
    assert list(Path(folder.path()).rglob("*")) == []


@pytest.mark.parametrize("case", ["none", "short", "long"])
def test_slabs_that_do_not_add_up_leave_the_old_file(folder: Folder, case: str) -> None:
    write_tensor(folder, "U.pt", (3, 4), [numbers((12,), seed=5)])
    with pytest.raises(ValueError, match="12"):
        write_tensor(folder, "U.pt", (3, 4), wrong(numbers((12,)))[case])
    assert same(load(folder, "U.pt"), numbers((3, 4), seed=5))
    assert [path.name for path in Path(folder.path()).rglob("*")] == ["U.pt"]


def test_slabs_that_do_not_add_up_leave_no_object() -> None:
    memory = fsspec.filesystem("memory")
    try:
        with pytest.raises(ValueError, match="12"):
            write_tensor(Folder("memory://wrong"), "U.pt", (3, 4), [])
        assert not memory.store
    finally:
        memory.store.clear()
        memory.pseudo_dirs[:] = [""]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, StopIteration])
def test_a_slab_that_cannot_be_made_leaves_no_file(folder: Folder, error: type[BaseException]) -> None:
    class Slabs:
        def __iter__(self) -> Iterator[Float]:
            return map(self.make, range(3))

        def make(self, i: int) -> Float:
            if i == 2:
                raise error
            return numbers((4,))

    expected = ValueError if error is StopIteration else error  # StopIteration ends an iterator: too few slabs
    with pytest.raises(expected):
        write_tensor(folder, "U.pt", (3, 4), Slabs())
    assert list(Path(folder.path()).rglob("*")) == []


# --- memory

_MEASURE = """
import sys
import numpy as np
import torch
from tilecov.storage.artifacts import TensorFile, write_tensor
from tilecov.storage.objects import Folder


def status(field):
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith(field))


folder, rows, columns, step = Folder(sys.argv[1]), 8192, 8192, 128  # 256 MiB in slabs of 4 MiB
write_tensor(folder, "small.pt", (2,), [np.ones(2, np.float32)])  # what the first call imports and makes is no growth
list(TensorFile.open(folder, "small.pt").rows(1))
before = status("VmRSS")
write_tensor(folder, "U.pt", (rows, columns), (np.full((step, columns), i, np.float32) for i in range(rows // step)))
file = TensorFile.open(folder, "U.pt")
total = sum(float(values[:, 0].sum()) for _, values in file.rows(step))
file.checksum()
print(file.shape == (rows, columns), total == step * sum(range(rows // step)), status("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_a_tensor_larger_than_the_memory_is_written_and_read_by_slabs(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(tmp_path)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    shaped, summed, growth = done.stdout.split()
    assert (shaped, summed) == ("True", "True")
    assert (tmp_path / "U.pt").stat().st_size > 256 << 20
    assert int(growth) < 64 << 20
    assert load(Folder(str(tmp_path)), "U.pt", mmap=True)[8191, 0] == 63
