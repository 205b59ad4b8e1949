"""The 512-byte headers of a tar and what they say; pure, no stream is touched here.

Formats: POSIX.1-2008 ustar and pax (https://pubs.opengroup.org/onlinepubs/9699919799/utilities/pax.html), GNU tar
(https://www.gnu.org/software/tar/manual/html_node/Standard.html) and the old v7 header.
"""

import re
import zlib
from dataclasses import dataclass, field

BLOCK = 512  # bytes; headers are this long and payloads are padded to a multiple of it
MAX_EXTENSION = 1 << 20  # bytes; a longer file name or pax header is damage or an attack
MAX_SIZE = 1 << 50  # bytes (1 PiB); a larger member is damage: no store holds such an object

FILES = frozenset(b"0\x007")
EXTENSIONS = frozenset(b"LKxXg")  # GNU long name and link; pax for one member (X: Solaris), pax for all that follow
BARE = frozenset(b"123456")  # links, devices, directories, FIFOs: no payload, whatever their size field says
REFUSED = {ord("S"): "a GNU sparse file", ord("M"): "the rest of a file that began in another volume"}
_DIRECTORY = ord("5")

_END = bytes(BLOCK)
_COMPRESSED = re.compile(
    rb"(?P<gzip>\x1f\x8b\x08)|(?P<bzip2>BZh[1-9](?:1AY&SY|\x17rE8P\x90))|(?P<xz>\xfd7zXZ\x00)|(?P<zstd>\x28\xb5\x2f\xfd)"
)
_DAMAGED = "the tar is damaged; fetch or pack the shard again."


class TarError(ValueError):
    """Damaged or refused archive; the message names the byte offset and both numbers, the caller adds the URL."""


def is_end(block: bytes) -> bool:
    """Return whether ``block`` is the block of zeros that ends an archive."""
    return block == _END


def refuse_other_formats(front: bytes) -> None:
    """Raise TarError where the first block of a stream shows that no plain tar follows."""
    if not front:
        raise TarError(f"The tar is empty: 0 bytes, where the shortest one has {BLOCK}; fetch or pack the shard again.")
    if found := _COMPRESSED.match(front):
        tool = found.lastgroup
        raise TarError(
            f"The stream is compressed with {tool} from byte 0 on, and only plain tars are read: unpack it first, with "
            f"`{tool} -d`."
        )


def check(block: bytes, offset: int) -> None:
    """Raise TarError where the header ``block``, found at byte ``offset``, does not add up to its checksum."""
    stored = _number(block[148:156])
    # The checksum counts its own field as blanks. Adler-32 started at 0 holds the sum of the bytes, exact up to 256 of
    # them, in its low half: seven times as fast as sum().
    low, high = zlib.adler32(block[:256], 0), zlib.adler32(block[256:], 0)
    total = (low & 0xFFFF) + (high & 0xFFFF) - sum(block[148:156]) + 8 * ord(" ")
    # Some old tars summed signed bytes.
    if stored != total and stored != total - 256 * sum(byte > 127 for byte in block[:148] + block[156:]):
        raise TarError(
            f"The header at byte {offset} gives its checksum as {stored}, but its bytes add up to {total}: {_DAMAGED}"
        )


def kind(block: bytes, name: str) -> int:
    """Return the type byte; a v7 tar tells a directory from a file by the slash at the end of its name only."""
    return _DIRECTORY if block[156] == 0 and name.endswith("/") else block[156]


def name(block: bytes) -> str:
    """Return the path that the header itself holds."""
    path = block[:100].partition(b"\0")[0]
    # Only POSIX ustar has a prefix; GNU tar ("ustar  ") keeps times there, v7 nothing.
    if block[345] and block[257:262] == b"ustar" and block[262] != ord(" "):
        path = block[345:500].partition(b"\0")[0] + b"/" + path
    return path.decode("utf-8", "surrogateescape")


def size(block: bytes, offset: int) -> int:
    """Return the payload in bytes that the header, found at byte ``offset``, declares."""
    count = _number(block[124:136])
    if count is None or not 0 <= count <= MAX_SIZE:
        raise _absurd(offset, repr(block[124:136]) if count is None else str(count))
    return count


@dataclass(slots=True)
class Extensions:
    """What extension headers say: ``once`` about the next member, ``always`` about all that follow."""

    once: dict[bytes, bytes] = field(default_factory=dict)
    always: dict[bytes, bytes] = field(default_factory=dict)
    start: int | None = None  # byte offset of the first header that belongs to the next member

    def add(self, kind: int, payload: bytes, offset: int) -> None:
        """Note what the extension header of type ``kind`` at byte ``offset`` says."""
        if kind == ord("g"):
            self.always |= _pax(payload, offset)
            return
        self.start = offset if self.start is None else self.start
        if kind == ord("L"):
            self.once[b"path"] = payload.partition(b"\0")[0]
        elif kind != ord("K"):  # where a link leads is of no use here
            self.once |= _pax(payload, offset)

    def claim(self, size: int, offset: int) -> tuple[str | None, int, int]:
        """Return name (None: as in the header), size and offset of the next member, and forget them."""
        if self.start is None and not self.always:
            return None, size, offset
        said = self.always | self.once
        offset = offset if self.start is None else self.start
        self.once, self.start = {}, None
        # An empty value means: as if the record had never been there.
        if digits := said.get(b"size"):
            size = _decimal(digits, offset)
        path = said.get(b"path")
        return path.decode("utf-8", "surrogateescape") if path else None, size, offset


def _pax(payload: bytes, offset: int) -> dict[bytes, bytes]:
    r"""Read the records ``LENGTH KEY=VALUE\n`` of the pax header at byte ``offset``."""
    records = {}
    at = 0
    while at < len(payload) and payload[at]:  # some writers pad with zeros
        digits = payload[at : at + 20].partition(b" ")[0]
        end = at + int(digits) if digits.isdigit() else at
        key, equals, value = payload[at + len(digits) + 1 : max(end - 1, 0)].partition(b"=")
        if not equals or payload[end - 1 : end] != b"\n":
            raise TarError(
                f"The pax header at byte {offset} has no valid record at byte {at} of its {len(payload)}: {_DAMAGED}"
            )
        if key.startswith(b"GNU.sparse."):
            raise TarError(f"The member at byte {offset} is a GNU sparse file, which is refused; pack the shard anew.")
        records[key] = value
        at = end
    return records


def _number(text: bytes) -> int | None:
    """Read a number field: octal text, or base 256 where the first bit is set; None where it is neither."""
    if text[0] & 0x80:
        bits = 8 * len(text) - 1  # two's complement in all bits but the first
        value = int.from_bytes(text, "big") & ~(1 << bits)
        return value - (1 << bits) if text[0] & 0x40 else value
    digits = text.partition(b"\0")[0].strip(b" ")
    if not digits:
        return 0
    try:
        return int(digits, 8) if digits.isdigit() else None
    except ValueError:  # an 8 or a 9
        return None


def _decimal(digits: bytes, offset: int) -> int:
    if not digits.isdigit() or len(digits) > len(str(MAX_SIZE)) or int(digits) > MAX_SIZE:
        raise _absurd(offset, repr(digits[:40]))
    return int(digits)


def _absurd(offset: int, declared: str) -> TarError:
    return TarError(
        f"The header at byte {offset} declares {declared} bytes, where 0 to {MAX_SIZE} are possible: {_DAMAGED}"
    )
