"""Descriptors that are held for long in a process whose script may close them all, and open files of its own under
their numbers: daemonizing does, and so does `os.closerange`.

A number is used and closed only while it still is of what it was opened for. Numbers 0 to 2 are never kept: where a
process runs without them, the next `print()` writes to whatever was opened there.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat

_FIRST = 3
_RESERVED = 4
"""what it takes to begin a stream's folder on disk: its lock, its facts, its first file, and itself"""
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
    """Descriptors that are held to be given up: at the process's limit, what lies on disk can still be read, and data
    be moved there."""

    def __init__(self) -> None:
        self._held: list[Descriptor] = []

    def take(self) -> None:
        """Holds as many as it may, if they are to be had."""
        self._held = [descriptor for descriptor in self._held if descriptor.number >= 0]
        try:
            while len(self._held) < _RESERVED:
                self._held.append(Descriptor(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)))
        except OSError:
            return

    @property
    def is_short(self) -> bool:
        """Whether the process was at its limit when last tried."""
        return len(self._held) < _RESERVED

    def give_up(self) -> bool:
        """Whether there were any to give up."""
        held, self._held = self._held, []
        were_held = any(descriptor.number >= 0 for descriptor in held)
        for descriptor in held:
            descriptor.close()
        return were_held


reserve = _Reserve()


def open_briefly(path: str, flags: int) -> int:
    """Opens a file for a moment, at the process's descriptor limit in the place of the reserve. The caller closes it
    and calls `reserve.take`. Raises OSError."""
    try:
        return os.open(path, flags | os.O_CLOEXEC)
    except OSError as error:
        if error.errno not in AT_THE_LIMIT or not reserve.give_up():
            raise
    return os.open(path, flags | os.O_CLOEXEC)
