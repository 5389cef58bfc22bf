"""The spill: ranges of a stream moved from the spool to disk, as segment files, until they are acked.

Read back in order. Each file holds one contiguous range in pieces that end at record borders.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from typing import Any

from trackio import growth, host
from trackio.folder import StreamFolder
from trackio.places import make_private
from trackio.segment import HEADER_BYTES, PREFIX, header

_FILE_BYTES = 4 << 20


class _File:
    """One file: where it lies, its range of the stream, how far the disk keeps it, the record borders in it."""

    __slots__ = ("base", "borders", "end", "path", "synced")

    def __init__(self, path: str, base: int) -> None:
        self.path = path
        self.base = self.end = self.synced = base
        self.borders: list[int] = []


class SpillError(Exception):
    """The disk cannot take more. The message says why."""


class Spill:
    """The spilled ranges of one stream. Owns its folder under the data folder, made at first use."""

    def __init__(self, path: str, meta: Callable[[], dict[str, Any]], limit_bytes: int) -> None:
        self._path = path
        self._meta = meta
        self._limit_bytes = limit_bytes
        self._folder: StreamFolder | None = None
        self._files: deque[_File] = deque()
        self._fd = -1
        """the last file's, while it grows"""
        self._inode = (0, 0)
        """what that is of: a script may close all descriptors and open files of its own, to which nothing is written"""

    @property
    def held_bytes(self) -> int:
        return sum(f.end - f.base for f in self._files)

    @property
    def oldest(self) -> int | None:
        """The first offset on disk, or None if nothing is."""
        return self._files[0].base if self._files else None

    @property
    def end(self) -> int | None:
        return self._files[-1].end if self._files else None

    @property
    def folder(self) -> StreamFolder | None:
        """The folder on disk, if there is one now."""
        return self._folder

    def append(self, start: int, piece: bytes | memoryview) -> None:
        """Adds a piece that begins at offset `start` and ends at a record border. Raises SpillError.

        What SpillError leaves behind in a file is overwritten by the next piece; it never counts. Beside a
        busy Python thread each system call waits for the GIL, so a piece costs two.
        """
        try:
            file = self._file_for(start)
            _write_at(self._fd, piece, HEADER_BYTES + start - file.base)
        except OSError as error:
            self._close_file()
            if self._files and self._files[-1].end == self._files[-1].base:
                _unlink(self._files.pop().path)  # it holds nothing, and the next one will have its name
            raise SpillError(f"{self._path}: {error.strerror or error}") from error
        file.end = start + len(piece)
        file.borders.append(file.end)

    def _file_for(self, start: int) -> _File:
        """The file that goes on at `start`, open for writing; every 4 MiB a new one."""
        last = self._files[-1] if self._files else None
        if last is not None and last.end == start and last.end - last.base < _FILE_BYTES and self._is_open():
            return last
        self._close_file()
        self._check_room(2 * _FILE_BYTES)
        if self._folder is None or not self._folder.is_linked():
            self._folder = StreamFolder(self._path, self._meta())
            self._files.clear()
        file = _File(os.path.join(self._path, f"{PREFIX}{start:020d}"), start)
        self._fd = os.open(file.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._inode = _inode_of(self._fd)
        _write_at(self._fd, header(start), 0)
        self._files.append(file)
        return file

    def sync(self) -> str:
        """Has the disk keep what was appended, also through a power loss. Returns why not, or ""."""
        for file in self._files:
            if file.synced == file.end:
                continue
            try:
                fd = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    os.fsync(fd)
                finally:
                    os.close(fd)
            except OSError as error:
                return f"{file.path}: {error.strerror or error}"
            file.synced = file.end
        return ""

    def _is_open(self) -> bool:
        return self._fd >= 0 and _inode_of(self._fd) == self._inode

    def _close_file(self) -> None:
        is_open, fd = self._is_open(), self._fd
        self._fd = -1
        if is_open:
            os.close(fd)

    def _check_room(self, size: int) -> None:
        parent = os.path.dirname(os.path.dirname(self._path))
        make_private(parent)
        total, free = host.disk(parent)
        if not growth.may_spill(
            size, held_bytes=self.held_bytes, limit_bytes=self._limit_bytes, disk_total=total, disk_free=free
        ):
            raise SpillError(f"{parent}: no room for unacked data (TRACKIO_SPILL_MIB, or the disk is nearly full)")

    def read(self, offset: int, limit_bytes: int) -> bytes:
        """The spilled bytes from `offset`, which is a border, up to about `limit_bytes`; b"" if not here."""
        file = next((f for f in self._files if f.base <= offset < f.end), None)
        if file is None:
            return b""
        ends = [b for b in file.borders if b > offset]
        end = next((b for b in reversed(ends) if b - offset <= limit_bytes), ends[0])
        data = self._read_file(file, offset, end - offset)
        if len(data) < end - offset:
            self._files.remove(file)  # somebody deleted or cut it: what it held is a hole
            return b""
        return data

    @staticmethod
    def _read_file(file: _File, offset: int, size: int) -> bytes:
        try:
            fd = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return b""
        try:
            return os.pread(fd, size, HEADER_BYTES + offset - file.base)
        except OSError:
            return b""
        finally:
            os.close(fd)

    def release(self, acked: int) -> None:
        """Removes the files that lie wholly below `acked`, and the folder with the last of them."""
        while self._files and self._files[0].end <= acked:
            if len(self._files) == 1:
                self._close_file()
            _unlink(self._files.popleft().path)
        if not self._files and self._folder is not None:
            self._folder.remove()
            self._folder = None

    def leave(self) -> None:
        """Lets go of the files and the lock: they are an orphan's now, for a daemon to find."""
        self._close_file()
        if self._folder is not None:
            self._folder.close()
            self._folder = None


def _inode_of(fd: int) -> tuple[int, int]:
    """What a descriptor is of; nothing if it is closed."""
    try:
        info = os.fstat(fd)
    except OSError:
        return 0, 0
    return info.st_dev, info.st_ino


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass  # gone already


def _write_at(fd: int, data: bytes | memoryview, position: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, position)
        view, position = view[written:], position + written
