"""A store that shows an object when its upload ends, and a folder on each kind of store."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from tilecov.storage.objects import Folder

OLD, NEW = b"old" * 50_000, b"new!" * 50_000  # several upload parts of Bucket each


class _Upload(AbstractBufferedFile):  # type: ignore[misc]  # fsspec has no types
    """Uploads in parts; the object is there when the last part is, as on S3, GCS and Azure."""

    DEFAULT_BLOCK_SIZE = 1 << 16

    def _initiate_upload(self) -> None:
        self.parts: list[bytes] = []

    def _upload_chunk(self, final: bool = False) -> bool:
        self.parts.append(self.buffer.getvalue())
        if final:
            self.fs.objects[self.path] = b"".join(self.parts)
        return True

    def _fetch_range(self, start: int, end: int) -> bytes:
        return bytes(self.fs.objects[self.path][start:end])


class Bucket(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """A small object store: no folders, no rename."""

    protocol = "bucket"
    objects: ClassVar[dict[str, bytes]] = {}
    refusals: ClassVar[list[OSError]] = []

    def ls(self, path: str, detail: bool = True, **_options: Any) -> list[Any]:
        if self.refusals:
            raise self.refusals.pop()
        prefix = self._strip_protocol(path).rstrip("/") + "/"
        rests = {name[len(prefix) :].split("/")[0] for name in self.objects if name.startswith(prefix)}
        infos = [self._describe(prefix + rest) for rest in sorted(rests)]
        if not infos and path in self.objects:
            infos = [self._describe(path)]
        if not infos:
            raise FileNotFoundError(path)
        return infos if detail else [info["name"] for info in infos]

    def _describe(self, name: str) -> dict[str, Any]:
        kind = "file" if name in self.objects else "directory"
        return {"name": name, "size": len(self.objects.get(name, b"")), "type": kind}

    def _open(self, path: str, mode: str = "rb", **_options: Any) -> Any:
        if mode == "xb" and path in self.objects:
            raise FileExistsError(path)
        return _Upload(self, path, mode.replace("x", "w"), block_size=1 << 16)

    def rm_file(self, path: str) -> None:
        self.objects.pop(path, None)


@pytest.fixture(name="folder", params=["local", "memory", "bucket"])
def folder_anywhere(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Folder]:
    memory = fsspec.filesystem("memory")
    fsspec.register_implementation("bucket", Bucket, clobber=True)
    yield Folder(str(tmp_path / "root/folder") if request.param == "local" else f"{request.param}://root/folder")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]
    Bucket.objects.clear()
    Bucket.refusals.clear()
