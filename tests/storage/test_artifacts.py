"""Tensor files: torch loads them, they are read by rows, and nothing else is taken for one."""

import builtins
import hashlib
import io
import os
import pickle
import subprocess
import sys
import time
import uuid
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tilecov.storage.artifacts import TensorFile, write_tensor
from tilecov.storage.objects import Folder

Float = npt.NDArray[np.float32]

quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
shapes = st.lists(st.integers(0, 7), max_size=4).map(tuple)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(str(tmp_path / "artifacts"))


@pytest.fixture(params=["local", "memory"])
def anywhere(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Folder]:
    yield Folder(str(tmp_path / "a") if request.param == "local" else f"memory://{uuid.uuid4().hex}/a")
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]


in_memory = pytest.mark.parametrize("anywhere", ["memory"], indirect=True)  # thousands of files, so none is synced


def numbers(shape: tuple[int, ...], seed: int = 0) -> Float:
    """Return any bits: NaN of every kind, infinities, subnormals, negative zeros."""
    count = int(np.prod(shape))
    bits = np.random.default_rng(seed).integers(0, 1 << 32, count, dtype=np.uint32)
    special = np.array([0, 1 << 31, 0x7F800000, 0xFF800000, 0x7FC00001, 1], np.uint32)
    bits[: min(count, 6)] = special[: min(count, 6)]
    return bits.view(np.float32).reshape(shape)


def cut(values: Float, points: Iterable[int]) -> list[Float]:
    return np.split(values.ravel(), sorted(points))


def load(folder: Folder, name: str, *, mmap: bool = False) -> Float:
    tensor = torch.load(folder.path(name), weights_only=True, mmap=mmap)
    assert tensor.dtype == torch.float32
    assert tensor.is_contiguous()
    return np.asarray(tensor.numpy())


def same(one: Float, other: Float) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and one.tobytes() == other.tobytes()


def joined(file: TensorFile, step: int) -> Float:
    parts = [np.empty((0, *file.shape[1:]), np.float32), *(values for _, values in file.rows(step))]
    return np.concatenate(parts)


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


# --- reading by rows


@quick
@given(shape=st.lists(st.integers(0, 7), min_size=1, max_size=3).map(tuple), step=st.integers(1, 9))
def test_rows_are_the_tensor_in_order(folder: Folder, shape: tuple[int, ...], step: int) -> None:
    values = numbers(shape)
    write_tensor(folder, "U.pt", shape, [values])
    file = TensorFile.open(folder, "U.pt")
    assert file.shape == shape
    covered = 0
    for span, part in file.rows(step):
        assert (span.start, span.stop) == (covered, min(covered + step, shape[0]))
        assert same(np.ascontiguousarray(part), np.ascontiguousarray(values[span]))
        covered = span.stop
    assert covered == shape[0]


def test_rows_can_be_read_again_and_side_by_side(anywhere: Folder) -> None:
    write_tensor(anywhere, "U.pt", (6, 2), [numbers((6, 2))])
    write_tensor(anywhere, "Vh.pt", (6, 2), [numbers((6, 2), seed=1)])
    one, other = (TensorFile.open(anywhere, name) for name in ("U.pt", "Vh.pt"))
    for _ in range(2):
        for (span, left), (_, right) in zip(one.rows(4), other.rows(4), strict=True):
            assert same(np.array(left), numbers((6, 2))[span])
            assert same(np.array(right), numbers((6, 2), seed=1)[span])


def test_a_missing_file_is_a_file_not_found_error(anywhere: Folder) -> None:
    with pytest.raises(FileNotFoundError):
        TensorFile.open(anywhere, "U.pt")
    with pytest.raises(FileNotFoundError):
        TensorFile(anywhere, "U.pt", (3,), 0).checksum()


def test_credentials_are_not_shown() -> None:
    assert "AKIA" not in repr(TensorFile(Folder("s3://b/run", {"secret": "AKIA-hidden"}), "U.pt", (3,), 0))


# --- what is no tensor file


@quick
@given(st.binary(max_size=200))
def test_any_other_file_is_a_value_error(folder: Folder, raw: bytes) -> None:
    folder.write("U.pt", raw)
    with pytest.raises(ValueError, match=r"U\.pt"):
        TensorFile.open(folder, "U.pt")


@pytest.mark.parametrize("anywhere", ["local", "memory"], indirect=True)
def test_a_file_cut_anywhere_is_a_value_error(anywhere: Folder) -> None:
    write_tensor(anywhere, "U.pt", (6,), [numbers((6,))])
    raw = anywhere.read("U.pt")
    for length in range(len(raw)):
        anywhere.write("U.pt", raw[:length])
        with pytest.raises(ValueError, match=r"U\.pt"):
            TensorFile.open(anywhere, "U.pt")


def test_a_file_cut_after_it_was_opened_is_a_value_error(folder: Folder) -> None:
    write_tensor(folder, "U.pt", (6, 3), [numbers((6, 3))])
    file, raw = TensorFile.open(folder, "U.pt"), folder.read("U.pt")
    for length in (0, file.offset, file.offset + 1, file.offset + 6 * 3 * 4 - 1):
        folder.write("U.pt", raw[:length])
        with pytest.raises(ValueError, match=r"U\.pt.*cut"):
            list(file.rows(4))


@in_memory
def test_a_damaged_file_opens_or_is_a_value_error(anywhere: Folder) -> None:
    write_tensor(anywhere, "U.pt", (6,), [numbers((6,))])
    raw = anywhere.read("U.pt")
    others: dict[str, int] = {}
    for at in range(len(raw)):
        for flip in (0x01, 0x80, 0xFF):
            anywhere.write("U.pt", raw[:at] + bytes([raw[at] ^ flip]) + raw[at + 1 :])
            try:
                TensorFile.open(anywhere, "U.pt")
            except ValueError:
                continue
            except Exception as error:  # noqa: BLE001  (which others there are is the question)
                others[type(error).__name__] = at
    assert others == {}


def write_zip(folder: Folder, stem: str, pickled: bytes, raw: bytes, compression: int = zipfile.ZIP_STORED) -> None:
    """Write what looks like a tensor file."""
    with folder.writing(f"{stem}.pt") as stream, zipfile.ZipFile(stream, "w", compression) as archive:
        for name, data in (("data.pkl", pickled), ("byteorder", b"little"), ("data/0", raw), ("version", b"3\n")):
            archive.writestr(f"{stem}/{name}", data)


class Call:
    """Pickles as a call of something."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "call",
    [
        lambda mark: Call(os.system, f"touch '{mark}'"),
        lambda mark: Call(builtins.eval, f"open({mark!r}, 'w').close()"),
        lambda mark: Call(builtins.exec, f"open({mark!r}, 'w').close()"),
        lambda mark: Call(os.mkdir, mark),
        lambda mark: Call(builtins.getattr, Call(builtins.__import__, "os"), "sep"),
        lambda mark: [1, (2, {"deep": Call(subprocess.call, ["touch", mark])})],
        lambda mark: OrderedDict(a=Call(open, mark, "w")),
    ],
)
def test_a_hostile_pickle_calls_nothing(
    folder: Folder, tmp_path: Path, call: Callable[[str], Any], protocol: int
) -> None:
    mark = tmp_path / "it-ran"
    write_zip(folder, "U", pickle.dumps(call(str(mark)), protocol), bytes(24))
    with pytest.raises(ValueError, match=r"U\.pt is not a tensor file"):
        TensorFile.open(folder, "U.pt")
    assert not mark.exists()


@pytest.mark.parametrize(
    "name",
    [
        "torch\nload",
        "torch\nDoubleStorage",
        "torch._utils\n_rebuild_parameter",
        "torch.storage\nTypedStorage",
        "numpy\nload",
        "collections\nnamedtuple",
        "tilecov.storage.artifacts\n_rebuild",
    ],
)
def test_a_pickle_that_names_anything_else_is_refused(folder: Folder, name: str) -> None:
    write_zip(folder, "U", b"c" + name.encode() + b"\n.", bytes(24))
    with pytest.raises(ValueError, match="is not a tensor file"):
        TensorFile.open(folder, "U.pt")


class _Storage:
    pass


class _Forging(pickle.Pickler):
    def persistent_id(self, item: Any) -> Any:
        return ("storage", torch.FloatStorage, "0", "cpu", 6) if isinstance(item, _Storage) else None


def forged(shape: Any, stride: Any = (1,), offset: int = 0) -> bytes:
    sink = io.BytesIO()
    rebuild = torch._utils._rebuild_tensor_v2
    _Forging(sink, 2).dump(Call(rebuild, _Storage(), offset, shape, stride, False, OrderedDict()))
    return sink.getvalue()


def read_through(folder: Folder, name: str = "U.pt") -> Float:
    return joined(TensorFile.open(folder, name), 4)


def test_what_the_forger_makes_can_be_true(folder: Folder) -> None:
    values = numbers((6,))
    write_zip(folder, "U", forged((6,)), values.tobytes())
    assert same(load(folder, "U.pt"), values)
    assert same(read_through(folder), values)


@pytest.mark.parametrize("pickled", [pickle.dumps(True), b"", pickle.dumps({}), pickle.dumps([1]), pickle.dumps(None)])
def test_a_pickle_without_a_tensor_is_a_value_error(folder: Folder, pickled: bytes) -> None:
    write_zip(folder, "U", pickled, bytes(24))
    with pytest.raises(ValueError, match=r"U\.pt"):
        TensorFile.open(folder, "U.pt")


@pytest.mark.parametrize("shape", [(7,), (-6,), ("6",), 6, (6.0,), (2, 2), (3, -2), None])
def test_a_shape_that_the_values_do_not_have_is_a_value_error(folder: Folder, shape: Any) -> None:
    write_zip(folder, "U", forged(shape), numbers((6,)).tobytes())
    with pytest.raises(ValueError, match=r"U\.pt"):
        read_through(folder)


def test_a_shape_beyond_the_file_is_a_value_error(folder: Folder) -> None:
    write_zip(folder, "U", forged((10**15,)), numbers((6,)).tobytes())
    with pytest.raises(ValueError, match=r"U\.pt"):
        read_through(folder)


def test_a_compressed_file_is_a_value_error(folder: Folder) -> None:
    values = numbers((600,))
    write_zip(folder, "U", forged((600,)), values.tobytes(), zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match=r"U\.pt"):
        read_through(folder)


# --- files of torch.save itself


@quick
@given(shape=st.lists(st.integers(0, 6), min_size=1, max_size=3).map(tuple), step=st.integers(1, 8))
def test_a_contiguous_float32_tensor_of_torch_save_is_read(folder: Folder, shape: tuple[int, ...], step: int) -> None:
    values = numbers(shape)
    folder.write("beside", b"")  # makes the folder
    torch.save(torch.from_numpy(values.copy()), folder.path("U.pt"))
    file = TensorFile.open(folder, "U.pt")
    assert file.shape == shape
    assert same(joined(file, step), values)
    assert file.checksum() == hashlib.sha256(folder.read("U.pt")).hexdigest()


_square = torch.arange(36, dtype=torch.float32).reshape(6, 6)


@pytest.mark.parametrize("view", [
    _square[:4],
    _square.T[:, :1].reshape(1, 6),
    _square.T,
    _square[2:],
    _square[:, 1:3],
    _square[1],
    torch.ones(1).expand(6),
])  # fmt: skip
def test_a_view_of_torch_save_is_read_right_or_refused(folder: Folder, view: torch.Tensor) -> None:
    folder.write("beside", b"")
    torch.save(view, folder.path("U.pt"))
    try:
        read = read_through(folder)
    except ValueError:
        return
    assert same(read, np.ascontiguousarray(view.numpy()))


@pytest.mark.parametrize("saved", [
    _square.double(),
    _square.half(),
    _square.to(torch.int32),
    torch.nn.Parameter(_square),
    7,
    "text",
    {"U": _square},
    [_square],
])  # fmt: skip
def test_anything_else_of_torch_save_is_refused(folder: Folder, saved: Any) -> None:
    folder.write("beside", b"")
    torch.save(saved, folder.path("U.pt"))
    with pytest.raises(ValueError, match=r"U\.pt is not a tensor file"):
        TensorFile.open(folder, "U.pt")


def test_a_file_of_old_torch_is_refused(folder: Folder) -> None:
    folder.write("beside", b"")
    torch.save(_square, folder.path("U.pt"), _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r"U\.pt is not a tensor file"):
        TensorFile.open(folder, "U.pt")


def test_the_written_tensor_is_the_one_torch_would_save(folder: Folder) -> None:
    values = numbers((4, 3))
    write_tensor(folder, "ours.pt", (4, 3), [values])
    torch.save(torch.from_numpy(values.copy()), folder.path("theirs.pt"))
    assert same(load(folder, "ours.pt"), load(folder, "theirs.pt"))
    with zipfile.ZipFile(folder.path("ours.pt")) as ours, zipfile.ZipFile(folder.path("theirs.pt")) as theirs:
        for member in ("byteorder", "version", "data/0"):
            assert ours.read(f"ours/{member}") == theirs.read(f"theirs/{member}")


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
