"""A segment: one file, or piece of anonymous memory, that holds a contiguous range of a stream.

    0        8       16                64
    | magic  | base  | reserved        | records from offset `base` on ...

The same layout serves the mapped segments of the spool and the plain files of the spill, so one reader
(`read_file`) recovers both.
"""

from __future__ import annotations

import mmap
import os
import struct
from typing import NamedTuple

MAGIC = b"trkseg\x00\x01"
HEADER_BYTES = 64
_BASE = struct.Struct("<Q")
_NOWHERE = (1 << 64) - 1
"""The base of a segment that holds nothing yet."""
PREFIX = "seg-"
_MADV_POPULATE_WRITE = 23


def header(base: int) -> bytes:
    """The header of a segment whose first record is at offset `base`."""
    return (MAGIC + _BASE.pack(base)).ljust(HEADER_BYTES, b"\0")


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
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                preallocate(fd, size)
                self.map = mmap.mmap(fd, size)
            except BaseException:
                os.unlink(path)
                raise
            finally:
                os.close(fd)
        else:
            self.map = mmap.mmap(-1, size)
        self._prefault()
        self.map[:HEADER_BYTES] = header(_NOWHERE)
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

    def is_linked(self) -> bool:
        """Whether its file still has a name."""
        if not self.path:
            return True
        try:
            return os.stat(self.path).st_size == HEADER_BYTES + self.capacity
        except OSError:
            return False

    def close(self, *, unlink: bool = True) -> None:
        """Unmaps it and, unless told otherwise, removes its file. Safe to call twice."""
        self.words.release()
        try:
            self.map.close()
        except BufferError:
            return  # somebody still looks at a view; the mapping goes with it
        if unlink and self.path:
            try:
                os.unlink(self.path)
            except OSError:
                pass


class Content(NamedTuple):
    """What a segment file holds: `data` begins at offset `base`; trailing bytes may be no records."""

    base: int
    data: bytes


def range_of(fd: int) -> tuple[int, int] | None:
    """The range [base, end) of the stream that the segment behind `fd` may hold, or None as `read_file` has it.
    Raises OSError."""
    base = _base_in(os.pread(fd, HEADER_BYTES, 0))
    return None if base is None else (base, base + os.fstat(fd).st_size - HEADER_BYTES)


def read_file(fd: int) -> Content | None:
    """The segment behind `fd`, by plain reads (a mapping of a file that others truncate is a SIGBUS).

    None if it is no segment, or one that never held a record. Raises OSError.
    """
    size = os.fstat(fd).st_size
    data = os.pread(fd, size, 0)
    while len(data) < size and (more := os.pread(fd, size - len(data), len(data))):
        data += more
    base = _base_in(data)
    return None if base is None else Content(base, data[HEADER_BYTES:])


def _base_in(data: bytes) -> int | None:
    """The base that the header at the beginning of `data` gives; None if there is no header, or none yet."""
    if len(data) < HEADER_BYTES or data[:8] != MAGIC:
        return None
    base: int = _BASE.unpack_from(data, 8)[0]
    return None if base == _NOWHERE else base
