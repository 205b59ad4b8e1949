"""A checksum of our own for what is read: no store that was tried refuses bytes which do not fit theirs."""

import io
from typing import BinaryIO

from imagecodecs import deflate_crc32 as crc32  # libdeflate's, ten times as fast as zlib's

_REST_BYTES = 1 << 20  # one read of what lies behind the end of the archive


class Checksummed:
    """A stream that is read from its start, with the CRC-32 of its bytes.

    Parameters
    ----------
    stream : binary file
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._crc, self._whole = stream, 0, True

    def read(self, count: int = -1) -> bytes:
        """Read, and count what was read."""
        data = self._stream.read(count)
        self._crc = crc32(data, self._crc)
        return data

    def seekable(self) -> bool:
        """Return whether the stream can seek."""
        return self._stream.seekable()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Seek; there is no checksum any more."""
        at = self._stream.seek(offset, whence)
        self._whole = False
        return at

    def tell(self) -> int:
        """Return where the stream is."""
        return self._stream.tell()

    def crc32(self) -> int | None:
        """Read to the end; return the checksum of all bytes, or None where some were passed over unread."""
        while self._whole and self.read(_REST_BYTES):
            pass
        return self._crc if self._whole else None
