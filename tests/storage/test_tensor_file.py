"""Reading tensor files: by rows, those of torch.save too, and nothing else is taken for one."""

import builtins
import hashlib
import io
import os
import pickle
import subprocess
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

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

in_memory = pytest.mark.parametrize("anywhere", ["memory"], indirect=True)  # thousands of files, so none is synced


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
