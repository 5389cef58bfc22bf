"""A segment: one file, or piece of anonymous memory, that holds a contiguous range of a stream.

    0        8       16         24                64
    | magic  | base  | capacity | reserved        | records from offset `base` on ...

The same layout serves the mapped segments of the spool and the plain files of the spill, so one reader
(`trackiod.recovery`) recovers both.
"""

from __future__ import annotations

import mmap
import os
import struct
from typing import NamedTuple

from trackio.descriptor import open_file, reserve
from trackio.mapping import map_file
from trackio.record import COMMITTED, HEADER, framed_bytes
from trackio.record import HEADER_BYTES as RECORD_BYTES

MAGIC = b"trkseg\x00\x01"
HEADER_BYTES = 64
_BASE = struct.Struct("<Q")
_FACTS = struct.Struct("<QQ")
_NOWHERE = (1 << 64) - 1
"""The base of a segment that holds nothing yet."""
PREFIX = "seg-"
_MADV_POPULATE_WRITE = 23


def header(base: int, capacity: int = 0) -> bytes:
    """The header of a segment whose first record is at offset `base`. `capacity`: what the file holds behind it, where
    it never grows."""
    return (MAGIC + _FACTS.pack(base, capacity)).ljust(HEADER_BYTES, b"\0")


def preallocate(fd: int, size: int) -> None:
    """Gives the file its bytes now, so that no later store into a mapping can fail. Raises OSError."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, 0, size)
    else:
        os.ftruncate(fd, size)


class Segment:
    """A mapped, prefaulted segment. `path` is empty for anonymous memory. Owns the mapping; `close` frees it."""

    __slots__ = ("base", "capacity", "end", "map", "path", "words")

    def __init__(self, path: str, capacity: int) -> None:
        """Creates and maps it; `capacity` is in bytes, a multiple of 8. Raises OSError and leaves no file."""
        size = HEADER_BYTES + capacity
        self.path = path
        self.capacity = capacity
        self.base: int = _NOWHERE
        self.end: int = _NOWHERE
        if path:
            fd = open_file(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
            try:
                preallocate(fd, size)
                self.map = map_file(fd, size)
            except BaseException:
                os.unlink(path)
                raise
            finally:
                os.close(fd)
                if reserve.is_low:
                    reserve.take()
        else:
            self.map = mmap.mmap(-1, size)
        self._prefault()
        self.map[:HEADER_BYTES] = header(_NOWHERE, capacity)
        self.words = memoryview(self.map).cast("Q")

    def _prefault(self) -> None:
        """Touches the pages now: a first touch in log() would cost ten times as much."""
        try:
            self.map.madvise(_MADV_POPULATE_WRITE)
        except (OSError, ValueError):
            pass  # a kernel before 5.14: each page is faulted in at its first touch

    def start_at(self, base: int) -> None:
        """Makes it the segment from offset `base` on; what an earlier lap left in it no longer counts."""
        self.words[1] = base
        self.base = self.end = base

    def view(self, start: int, end: int) -> memoryview:
        """The bytes of the range [start, end) of the stream, uncopied; release it soon."""
        shift = HEADER_BYTES - self.base
        return memoryview(self.map)[start + shift : end + shift]

    @property
    def is_linked(self) -> bool:
        """Whether its file still has a name, as far as can be told now."""
        if not self.path:
            return True
        try:
            os.stat(self.path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True
        return True

    @property
    def is_cut(self) -> bool:
        """Whether somebody shortened its file: whoever touches what is no longer there is killed by SIGBUS."""
        if not self.path:
            return False
        try:
            return os.stat(self.path).st_size < HEADER_BYTES + self.capacity
        except OSError:
            return False

    def close(self) -> None:
        """Unmaps it; its file stays. Safe to call twice."""
        self.words.release()
        try:
            self.map.close()
        except BufferError:
            return  # somebody still looks at a view; the mapping goes with it


class Content(NamedTuple):
    """What a segment file holds: `data` begins at offset `base`; trailing bytes may be no records."""

    base: int
    data: bytes


def is_cut(fd: int) -> bool:
    """Whether the file behind `fd` is shorter than it was made: a mapped segment never is. Raises OSError."""
    head, size = read_bytes(fd, HEADER_BYTES), os.fstat(fd).st_size
    return size < HEADER_BYTES or (head[:8] == MAGIC and size < HEADER_BYTES + _FACTS.unpack_from(head, 8)[1])


def bases_of(fd: int) -> list[int]:
    """Return the bases that the segment behind a descriptor may have; none if it holds nothing. Raises OSError.

    The header gives one, the commit word of the first record another. They differ in a segment that was taken anew and
    holds no record of its own yet, and where a bit of either was flipped: then the second record tells.
    """
    head = read_bytes(fd, HEADER_BYTES + RECORD_BYTES)
    bases: list[int] = []
    if len(head) >= HEADER_BYTES and head[:8] == MAGIC:
        bases = [base for base in _BASE.unpack_from(head, 8) if base != _NOWHERE and base % 8 == 0]
    if len(head) < HEADER_BYTES + RECORD_BYTES:
        return bases
    word, length, _ = HEADER.unpack_from(head, HEADER_BYTES)
    other = word - COMMITTED
    if other in bases or other % 8 or other >= 1 << 63:
        return bases
    second = framed_bytes(length)
    following = read_bytes(fd, _BASE.size, HEADER_BYTES + second)
    expected = [_BASE.pack((base + second | COMMITTED) & _NOWHERE) for base in bases]
    return bases if following in expected else [*bases, other]


def read_bytes(fd: int, size: int, start: int = 0) -> bytes:
    """Return `size` bytes of a file, fewer only where it ends, by plain reads (a mapping of a file that others truncate
    is a SIGBUS). Raises OSError."""
    data = os.pread(fd, size, start)
    while len(data) < size and (more := os.pread(fd, size - len(data), start + len(data))):
        data += more
    return data
