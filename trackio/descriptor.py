"""Descriptors that are held for long in a process whose script may close them all, and open files of its own under
their numbers: daemonizing does, and so does `os.closerange`.

A number is used and closed only while it still is of what it was opened for. Numbers 0 to 2 are never kept: where a
process runs without them, the next `print()` writes to whatever was opened there.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_FIRST = 3
_RESERVED = 6
"""beside one for each stream, whose lock on disk stays: a connection, and what is open for a moment in each thread"""
_FEW = 4
AT_THE_LIMIT = (errno.EMFILE, errno.ENFILE)


class Descriptor:
    """One descriptor of ours. Owns it for as long as the number is of the same inode; `close` ends it."""

    __slots__ = ("_identity", "_number")

    def __init__(self, number: int) -> None:
        """Takes over `number`, which is closed if this fails. Raises OSError."""
        try:
            if number < _FIRST:
                number, low = fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, _FIRST), number
                os.close(low)
            self._number, self._identity = number, _identity_of(number)
        except BaseException:
            os.close(number)
            raise

    @property
    def number(self) -> int:
        """The number, or -1 if it was closed, whoever closed it."""
        if self._number < 0:
            return -1
        try:
            is_ours = _identity_of(self._number) == self._identity
        except OSError:
            is_ours = False
        if not is_ours:
            self._number = -1
        return self._number

    def close(self) -> None:
        """Closes it, unless somebody else did. Safe to call twice."""
        number, self._number = self.number, -1
        if number >= 0:
            os.close(number)


def _identity_of(number: int) -> tuple[int, int, int]:
    """What a descriptor is of. Raises OSError if it is closed."""
    info = os.fstat(number)
    return info.st_dev, info.st_ino, stat.S_IFMT(info.st_mode)


class _Reserve:
    """Descriptors that are held to be given up: at the process's limit the daemon can still be reached, data be moved
    to disk, and what lies there be read. Each is of an inode of its own, so that none of the script's is taken for it.
    """

    def __init__(self) -> None:
        self._held: list[Descriptor] = []
        self._streams = 0
        """where there are none, nothing is held"""

    def take(self, streams: int = 0) -> None:
        """Holds as many as it may, if they are to be had. `streams`: how many there are, if that has changed."""
        self._streams = streams or self._streams
        self._held[:] = [descriptor for descriptor in self._held if descriptor.number >= 0]
        most = _RESERVED + self._streams if self._streams else 0
        try:
            while len(self._held) < most:
                self._held.append(Descriptor(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).detach()))
        except OSError:
            return

    @property
    def is_low(self) -> bool:
        """Whether the process is at its limit, and others of ours may need what is left."""
        return self._streams > 0 and len(self._held) < _FEW

    def give_up(self) -> bool:
        """Gives up one, the lowest: a limit that was lowered leaves only low numbers. False if there is none."""
        while self._held:
            descriptor = min(self._held, key=lambda held: held.number)
            self._held.remove(descriptor)
            if descriptor.number >= 0:
                descriptor.close()
                return True
        return False


reserve = _Reserve()


def with_reserve(get: Callable[[], T]) -> T:
    """Return what `get` opens, at the process's descriptor limit in the place of the reserve. Another thread may be
    faster, so it is tried as long as there is any. Raises OSError."""
    while True:
        try:
            got = get()
        except OSError as error:
            if error.errno in AT_THE_LIMIT and reserve.give_up():
                continue
            reserve.take()
            raise
        if reserve.is_low:
            reserve.take()
        return got


def open_file(path: str, flags: int, mode: int = 0o600) -> int:
    """Opens a file as `with_reserve` does, its descriptor for this process alone. Raises OSError."""
    return with_reserve(lambda: os.open(path, flags | os.O_CLOEXEC, mode))
