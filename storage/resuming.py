"""A remote file as a byte stream that survives a broken connection."""

import errno
import io
from typing import Any, cast

from .redact import redact
from .retries import retry


class ResumingStream(io.RawIOBase):
    """Reads a remote file; after an error it is opened anew and read on from where it was.

    Parameters
    ----------
    fs : fsspec file system
    path : str
    size : int
        Bytes that the file was listed with; a file that has another size by then is an OSError.
    """

    def __init__(self, fs: Any, path: str, size: int) -> None:
        self._fs, self._path, self._size = fs, path, size
        self._position = 0
        self._stream: Any = None

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the place of the next byte."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to another byte."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise OSError(errno.EINVAL, f"byte {base + offset} of {redact(self._path)} is before its first")
        if base + offset != self._position:
            self._position = base + offset
            self._drop()
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        """Return up to ``size`` bytes, fewer only at the end."""
        wanted = max(0, self._size - self._position)
        if size is not None and size >= 0:
            wanted = min(wanted, size)
        data = retry(lambda: self._read(wanted)) if wanted else b""
        self._position += len(data)
        return data

    def _read(self, wanted: int) -> bytes:
        try:
            if self._stream is None:
                self._stream = self._fs.open(self._path, "rb")
                self._stream.seek(self._position)
            data = cast("bytes", self._stream.read(wanted))
        except Exception:
            self._drop()
            raise
        if len(data) < wanted:
            self._drop()
            found = self._position + len(data)
            raise ConnectionError(
                f"{redact(self._path)} gave {found} bytes and was listed with {self._size}: cut or replaced"
            )
        return data

    def _drop(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()

    def close(self) -> None:
        """Close the connection."""
        self._drop()
        super().close()
