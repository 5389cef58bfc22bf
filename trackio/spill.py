"""The spill: ranges of a stream moved from the spool to disk, as segment files, until they are acked.

Read back in order. Each file holds one contiguous range in pieces that end at record borders.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from trackio import durability, growth, host
from trackio.descriptor import Descriptor, open_file, reserve
from trackio.durability import Durable
from trackio.folder import StreamFolder, unlink
from trackio.lookup import sentence_of, unless_absent
from trackio.places import STREAM_META, make_private
from trackio.record import records
from trackio.segment import HEADER_BYTES, PREFIX, header

_FILE_BYTES = 4 << 20
_LOOK_SECONDS = 0.001


class _File(Durable):
    """One file: its range of the stream, and the record borders in it."""

    __slots__ = ("base", "borders")

    def __init__(self, path: str, base: int) -> None:
        super().__init__(path, base)
        self.base = base
        self.borders: list[int] = []

    @property
    def end(self) -> int:
        """The offset after the last record."""
        return self.written

    def add(self, end: int) -> None:
        """Notes a piece that was written up to `end`."""
        self.written = end
        self.borders.append(end)

    def cut(self, end: int) -> None:
        """Notes that somebody shortened it: no whole record lies behind `end` any more."""
        self.borders = [*(border for border in self.borders if border < end), end]
        self.written = end


class SpillError(Exception):
    """The disk cannot take more, or does not give back now what it has. The message says why."""


class Spill:
    """The spilled ranges of one stream. Owns its folder under the data folder, made at first use."""

    def __init__(self, path: str, meta: Callable[[], dict[str, Any]], limit_bytes: int) -> None:
        self._path = path
        self._meta = meta
        self._limit_bytes = limit_bytes
        self._folder: StreamFolder | None = None
        self._names: list[Durable] = []
        """what leads to the files: without these the disk keeps bytes that nobody finds"""
        self._files: deque[_File] = deque()
        self._fd: Descriptor | None = None
        """the last file's, while it grows"""
        self._left: list[str] = []
        """released files that could not be removed"""

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
            file, number = self._file_for(start)
            _write_at(number, piece, HEADER_BYTES + start - file.base)
        except OSError as error:
            self._close_file()
            if self._files and self._files[-1].end == self._files[-1].base:
                self._unlink(self._files.pop().path)  # it holds nothing, and the next one will have its name
            raise SpillError(f"{self._path}: {error.strerror or error}") from error
        file.add(start + len(piece))
        if reserve.is_low:
            self._close_file()  # the next piece opens it again
            reserve.take()

    def _file_for(self, start: int) -> tuple[_File, int]:
        """The file that goes on at `start`, and its descriptor; every 4 MiB a new one."""
        last = self._files[-1] if self._files else None
        if last is not None and last.end == start and last.end - last.base < _FILE_BYTES:
            number = -1 if self._fd is None else self._fd.number
            if number >= 0 or (number := self._reopen(last)) >= 0:
                return last, number
        self._close_file()
        return self._begin_file(start)

    def _reopen(self, file: _File) -> int:
        """The descriptor of a file that is to grow on, or -1 if it is not there any more. Raises OSError."""
        number = unless_absent(lambda: open_file(file.path, os.O_WRONLY), file.path)
        self._fd = None if number is None else Descriptor(number)
        return -1 if self._fd is None else self._fd.number

    def _begin_file(self, start: int) -> tuple[_File, int]:
        self._check_room(2 * _FILE_BYTES)
        if self._folder is None or not self._folder.hold():
            self._folder = StreamFolder(self._path, self._meta())
            self._names = [Durable(os.path.join(self._path, STREAM_META)), Durable(self._path)]
            self._names += durability.folders_above(self._path)
            self._names[0].written += 1
        file = _File(os.path.join(self._path, f"{PREFIX}{start:020d}"), start)
        self._fd = Descriptor(open_file(file.path, os.O_WRONLY | os.O_CREAT))
        _write_at(self._fd.number, header(start), 0)
        self._files.append(file)
        self._names[1].written += 1
        return file, self._fd.number

    # -- through a loss of power ---------------------------------------------------------------------------

    @property
    def is_kept(self) -> bool:
        """Whether a loss of power would cost nothing of it."""
        return not self._files or all(durable.is_kept for durable in (*self._files, *self._names))

    def keep(self) -> str:
        """Has the disk keep what was appended, and what leads to it; waits for nothing, so it is called again until
        `is_kept`. Returns why the disk did not, or ""."""
        problem = ""
        if self._files:
            for durable in (*self._files, *self._names):
                problem = durable.advance() or problem
        return problem

    def sync(self) -> str:
        """The same, and waits for the disk."""
        while not (problem := self.keep()) and not self.is_kept:
            time.sleep(_LOOK_SECONDS)
        return problem

    def _close_file(self) -> None:
        if self._fd is not None:
            self._fd.close()
            self._fd = None

    def _check_room(self, size: int) -> None:
        parent = os.path.dirname(os.path.dirname(self._path))
        make_private(parent)
        total, free = host.disk(parent)
        if not growth.may_spill(
            size, held_bytes=self.held_bytes, limit_bytes=self._limit_bytes, disk_total=total, disk_free=free
        ):
            raise SpillError(f"{parent}: no room for unacked data (TRACKIO_SPILL_MIB, or the disk is nearly full)")

    # -- giving back ---------------------------------------------------------------------------------------

    def read(self, offset: int, limit_bytes: int) -> bytes:
        """The spilled bytes from `offset`, which is a border, up to about `limit_bytes`; b"" if they are not here any
        more. Raises SpillError where the disk does not give them now."""
        file = next((f for f in self._files if f.base <= offset < f.end), None)
        if file is None:
            return b""
        ends = [b for b in file.borders if b > offset]
        end = next((b for b in reversed(ends) if b - offset <= limit_bytes), ends[0])
        data = self._read_file(file, offset, end - offset)
        if len(data) < end - offset:  # somebody deleted or cut it: what it held is a gap
            ends = [record.end for record in records(data, offset) if record.end <= offset + len(data)]
            if ends or offset > file.base:
                file.cut(ends[-1] if ends else offset)
            else:
                self._files.remove(file)
            data = data[: file.end - offset] if ends else b""
        return data

    def _read_file(self, file: _File, offset: int, size: int) -> bytes:
        """What is there of it. Only that there is no such file, or that it ends, means that it is not."""

        def read() -> bytes:
            fd = open_file(file.path, os.O_RDONLY)
            try:
                return os.pread(fd, size, HEADER_BYTES + offset - file.base)
            finally:
                os.close(fd)
                if reserve.is_low:
                    reserve.take()

        try:
            return unless_absent(read, file.path) or b""
        except OSError as error:
            raise SpillError(sentence_of(error)) from error

    def release(self, acked: int) -> None:
        """Removes the files that lie wholly below `acked`, and the folder with the last of them."""
        while self._files and self._files[0].end <= acked:
            if len(self._files) == 1:
                self._close_file()
            self._unlink(self._files.popleft().path)
        if not self._files and self._folder is not None:
            self._folder.remove()
            self._folder = None
            self._left.clear()

    def _unlink(self, path: str) -> None:
        if not unlink(path):
            self._left.append(path)

    def maintain(self) -> None:
        """Takes the lock again where a script closed it, and removes what could not be removed before."""
        if self._folder is not None:
            self._folder.hold()
        names = {file.path for file in self._files}
        self._left = [path for path in self._left if path not in names and not unlink(path)]

    def leave(self) -> None:
        """Lets go of the files and the lock: they are an orphan's now, for a daemon to find."""
        self._close_file()
        if self._folder is not None:
            self._folder.close()
            self._folder = None

    def abandon(self) -> None:
        """In a forked child: lets go of the parent's descriptors, touches none of its files."""
        for durable in (*self._files, *self._names):
            durable.abandon()
        self.leave()


def _write_at(fd: int, data: bytes | memoryview, position: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, position)
        view, position = view[written:], position + written
