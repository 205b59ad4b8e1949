"""Tensor files (.pt) written and read slab by slab, so that no tensor is ever whole in memory.

The file is what ``torch.save`` writes: a stored (uncompressed) zip of ``data.pkl``, ``byteorder``, ``version`` and the
raw values ``data/0``. It loads with ``torch.load(path, weights_only=True)`` and with ``mmap=True``; its checksums hold.
"""

import hashlib
import io
import pickle
import posixpath
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch

from .objects import Folder, begin_flush

_ALIGNMENT = 64  # bytes; what torch.save aligns values to, so that a mapped file can be used in place
_LOCAL_HEADER = 30  # bytes, fixed part of a zip member's header
_ZIP64_EXTRA = 20  # bytes, the field zipfile adds to members opened with force_zip64
_PADDING_ID = 0x4246  # "FB", the extra field that torch.save pads with
_EPOCH = (1980, 1, 1, 0, 0, 0)  # one fixed time, so that equal tensors make equal files


class _Values:
    """Stands for the storage: pickled by reference to ``data/0``."""


@dataclass(frozen=True)
class _Tensor:
    """Stands for the tensor, pickled as the call that torch.load makes to rebuild it."""

    shape: tuple[int, ...]

    def strides(self) -> tuple[int, ...]:
        return tuple(int(np.prod(self.shape[axis + 1 :], dtype=np.int64)) for axis in range(len(self.shape)))

    def __reduce__(self) -> tuple[Any, ...]:
        hooks: OrderedDict[str, Any] = OrderedDict()
        return torch._utils._rebuild_tensor_v2, (_Values(), 0, self.shape, self.strides(), False, hooks)  # noqa: SLF001  (the name that weights_only loading allows)


class _Pickler(pickle.Pickler):
    def __init__(self, sink: BinaryIO, count: int) -> None:
        super().__init__(sink, protocol=2)
        self._count = count

    def persistent_id(self, item: Any) -> Any:
        return ("storage", torch.FloatStorage, "0", "cpu", self._count) if isinstance(item, _Values) else None


class _Hashing(io.RawIOBase):
    """Passes bytes on and keeps their SHA-256; not seekable, so the zip is written straight through."""

    def __init__(self, sink: BinaryIO) -> None:
        self._sink, self.digest, self.size = sink, hashlib.sha256(), 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._sink.write(data)
        self.digest.update(data)
        self.size += len(memoryview(data).cast("B"))
        return len(memoryview(data).cast("B"))


def write_tensor(
    folder: Folder, name: str, shape: tuple[int, ...], slabs: Iterable[npt.NDArray[np.float32]], *, flush: bool = True
) -> str:
    """Write ``slabs``, one after another, as one float32 tensor file.

    Parameters
    ----------
    folder, name
        Where.
    shape : tuple of int
        Of the tensor; the slabs are its values in C order.
    slabs : iterable of float32 arrays
    flush : bool
        Whether a local file is on the disk when this returns; see ``Folder.writing``.

    Returns
    -------
    str
        The SHA-256 of the file, in hex.

    Raises
    ------
    ValueError
        Where the slabs do not add up to the shape.
    """
    count = int(np.prod(shape, dtype=np.int64))
    stem = _stem(name)
    with folder.writing(name, flush=flush) as raw:
        sink = _Hashing(raw)
        with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
            pickled = io.BytesIO()
            _Pickler(pickled, count).dump(_Tensor(shape))
            archive.writestr(_info(f"{stem}/data.pkl"), pickled.getvalue())
            archive.writestr(_info(f"{stem}/byteorder"), b"little")
            info = _info(f"{stem}/data/0")
            info.extra = _padding(sink.size + _LOCAL_HEADER + len(info.filename.encode()) + _ZIP64_EXTRA)
            with archive.open(info, "w", force_zip64=True) as member:
                written = 0
                for slab in slabs:
                    written += member.write(_bytes(slab)) // 4
                    begin_flush(raw)
            archive.writestr(_info(f"{stem}/version"), b"3\n")
        if written != count:
            raise ValueError(f"{name} of shape {shape} needs {count} values, {written} were given")
    return sink.digest.hexdigest()


def _info(name: str) -> zipfile.ZipInfo:
    return zipfile.ZipInfo(name, _EPOCH)


def _padding(start: int) -> bytes:
    """Return an extra field that moves the values, which would begin at ``start``, to the next aligned byte."""
    length = -(start + 4) % _ALIGNMENT
    return struct.pack("<HH", _PADDING_ID, length) + b"Z" * length


def _bytes(slab: npt.NDArray[np.float32]) -> memoryview:
    return np.ascontiguousarray(slab, dtype="<f4").data.cast("B") if slab.size else memoryview(b"")


@dataclass(frozen=True)
class TensorFile:
    """A float32 tensor file, read by rows without loading it whole.

    Parameters
    ----------
    folder, name
        Where it lies.
    shape : tuple of int
    offset : int
        Byte of the file where the values begin.
    """

    folder: Folder
    name: str
    shape: tuple[int, ...]
    offset: int

    @classmethod
    def open(cls, folder: Folder, name: str) -> "TensorFile":
        """Open a tensor file that ``write_tensor`` wrote; FileNotFoundError or ValueError where it is none."""
        with folder.open(name) as stream:
            try:
                shape, info = _skeleton(stream, _stem(name))
                stream.seek(info.header_offset + _LOCAL_HEADER - 4)
                name_length, extra_length = struct.unpack("<HH", stream.read(4))
            except Exception as error:  # damaged zips and pickles raise a dozen kinds
                raise ValueError(f"{folder.path(name)} is not a tensor file of tilecov ({error!r})") from error
        return cls(folder, name, shape, info.header_offset + _LOCAL_HEADER + name_length + extra_length)

    def rows(self, step: int) -> Iterator[tuple[slice, npt.NDArray[np.float32]]]:
        """Yield ``step`` rows at a time as (their range, float32 values)."""
        width = int(np.prod(self.shape[1:], dtype=np.int64))
        with self.folder.open(self.name) as stream:
            stream.seek(self.offset)
            for start in range(0, self.shape[0], step):
                stop = min(start + step, self.shape[0])
                raw = stream.read((stop - start) * width * 4)
                if len(raw) != (stop - start) * width * 4:
                    raise ValueError(
                        f"{self.folder.path(self.name)} is cut: {len(raw)} bytes of rows {start} to {stop}"
                    )
                yield slice(start, stop), np.frombuffer(raw, "<f4").reshape(stop - start, *self.shape[1:])

    def checksum(self) -> str:
        """Return the SHA-256 of the file, in hex."""
        with self.folder.open(self.name) as stream:
            digest = hashlib.sha256()
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
            return digest.hexdigest()


def _stem(name: str) -> str:
    """Return the folder inside the zip: the file's name, as torch.save has it."""
    return posixpath.basename(name).removesuffix(".pt")


def _skeleton(stream: BinaryIO, stem: str) -> tuple[tuple[int, ...], zipfile.ZipInfo]:
    """Return the shape of the tensor in a file, and where its values are; any exception where it is none."""
    archive = zipfile.ZipFile(stream)
    tensor = _Unpickler(io.BytesIO(archive.read(f"{stem}/data.pkl"))).load()
    info = archive.getinfo(f"{stem}/data/0")
    if not isinstance(tensor, _Tensor) or info.compress_type != zipfile.ZIP_STORED:
        raise ValueError("it holds no plain float32 tensor")
    if info.file_size != 4 * int(np.prod(tensor.shape, dtype=object)):
        raise ValueError(f"its {info.file_size} bytes of values are not those of {tensor.shape}")
    return tensor.shape, info


class _Unpickler(pickle.Unpickler):
    """Reads a tensor's shape; knows no other class, so a hostile file can call nothing."""

    def persistent_load(self, reference: Any) -> Any:
        return reference

    def find_class(self, module: str, name: str) -> Any:
        known = {"_rebuild_tensor_v2": _rebuild, "FloatStorage": _Values, "OrderedDict": OrderedDict}
        if name in known and module in {"torch._utils", "torch", "collections"}:
            return known[name]
        raise pickle.UnpicklingError(f"{module}.{name} is not part of a float32 tensor")


def _rebuild(_values: Any, offset: int, shape: Any, strides: Any, *_rest: Any) -> _Tensor:
    """Return the tensor's shape; ValueError where its values are not all there in C order."""
    if not all(isinstance(length, int) and length >= 0 for length in shape):
        raise ValueError(f"{shape} is no shape")
    tensor = _Tensor(tuple(shape))
    moves = [(length, stride) for length, stride in zip(shape, strides, strict=True) if length != 1]
    plain = [(length, stride) for length, stride in zip(shape, tensor.strides(), strict=True) if length != 1]
    if offset or (moves != plain and 0 not in shape):
        raise ValueError(f"values with strides {strides} from {offset} on are a view, not a whole tensor")
    return tensor
