"""A store for tests of listing: it lies in this process, and counts what it is asked."""

from typing import Any, ClassVar

from fsspec.spec import AbstractFileSystem

TOKEN = {"token": "letmein"}


class Bucket(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """A store like S3: two spellings of its protocol, ETags, credentials; it counts its requests."""

    protocol = ("bucket", "bkt")
    objects: ClassVar[dict[str, int]] = {}
    requests: ClassVar[list[str]] = []
    listable: ClassVar[list[bool]] = [True]
    refusals: ClassVar[dict[str, OSError]] = {}

    def __init__(self, token: str = "", **options: Any) -> None:
        super().__init__(token=token, **options)
        if token != TOKEN["token"]:
            raise PermissionError("403 Forbidden")

    def ls(self, path: str, detail: bool = True, **_options: Any) -> list[Any]:
        self.requests.append(f"list {path}")
        if path in self.refusals:
            raise self.refusals.pop(path)
        prefix = self._strip_protocol(path).rstrip("/") + "/"
        names = sorted({prefix + name[len(prefix) :].split("/")[0] for name in self.objects if name.startswith(prefix)})
        if not (names and self.listable[0]):
            raise FileNotFoundError(path)
        return [self._describe(name) for name in names] if detail else names

    def info(self, path: str, **_options: Any) -> dict[str, Any]:
        self.requests.append(f"info {path}")
        path = self._strip_protocol(path)
        if path in self.objects or any(name.startswith(path + "/") for name in self.objects):
            return self._describe(path)
        raise FileNotFoundError(path)

    def _describe(self, name: str) -> dict[str, Any]:
        if name not in self.objects:
            return {"name": name, "size": 0, "type": "directory"}
        size = self.objects[name]
        return {"name": name, "size": size, "type": "file", "ETag": f'"{size:x}-etag"', "LastModified": "never"}
