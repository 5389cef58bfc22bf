"""Read leases on linked files: until the daemon has its copy, whoever wants to write to one waits in open().

The kernel grants a read lease (fcntl(2), F_SETLEASE) while nobody has the file open for writing. It lets a writer wait
until the lease is released, at most `/proc/sys/fs/lease-break-time` seconds, 45 by default; then it takes the lease
away, which `release` tells. Leases end with this process. They are held here and not in the child that copies, so that
they are taken at once while that copies a large file, and outlive its end.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import resource
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

log = logging.getLogger("trackiod.leases")

_STREAM = re.compile(r"[0-9A-Za-z_-]{1,64}")
_MAX_LEASES = 4096
_DESCRIPTORS_SHARE = 4
"""at most one of so many descriptors holds a lease"""
_LOOK_SECONDS = 0.1
_TIDY_SECONDS = 1.0
_NOBODY = 0


class Leases:
    """The leases on files in `incoming`, by their ids `stream/number`. Owns their descriptors."""

    def __init__(self, incoming: str, on_wanted: Callable[[], None] = lambda: None) -> None:
        """`on_wanted` is called in the thread when somebody began to wait for a file (`wanted`)."""
        self.wanted: frozenset[str] = frozenset()
        """files that somebody waits for with a write"""
        self._incoming = incoming
        self._on_wanted = on_wanted
        self._held: dict[str, int] = {}
        self._late: set[str] = set()
        """those of which nobody knows whether they were written to before"""
        self._wake = threading.Condition()
        self._asked: deque[tuple[str, Sequence[int], Callable[[list[int]], None]]] = deque()
        self._stopping = False

    def stop(self) -> None:
        """End the thread and release everything."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        for file in list(self._held):
            self.release(file)

    def ask(self, stream: str, numbers: Sequence[int], answer: Callable[[list[int]], None]) -> None:
        """Have the thread take leases on a stream's files; it gives `answer` the numbers of those that it holds."""
        with self._wake:
            self._asked.append((stream, numbers, answer))
            self._wake.notify()

    def take_late(self, file: str) -> None:
        """Have the thread take a lease on a file that was linked in another daemon's life, unless it holds one."""
        stream, _, number = file.partition("/")
        if not self.is_held(file):
            self._late.add(file)
            self.ask(stream, [int(number)], lambda _: None)

    def release(self, file: str) -> bool:
        """Let go of a file; True if nobody could write to it since it was handed over."""
        with self._wake:
            fd = self._held.pop(file, None)
            is_late = file in self._late
            self._late.discard(file)
        if fd is None:
            return False
        try:
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
            return not is_late
        except OSError:
            return False  # the kernel took it away for a writer that had waited long enough
        finally:
            os.close(fd)

    @property
    def held(self) -> list[str]:
        """Files with a lease, those that somebody waits for first."""
        return sorted(self._held, key=lambda file: file not in self.wanted)

    def is_held(self, file: str) -> bool:
        return file in self._held

    # -- the thread ----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """The thread's life."""
        tidy_at = 0.0
        while True:
            with self._wake:
                if not self._asked and not self._stopping:
                    self._wake.wait(_LOOK_SECONDS if self._held else None)
                if self._stopping:
                    return
                asked = list(self._asked)
                self._asked.clear()
            for stream, numbers, answer in asked:
                answer([number for number in numbers if self._take(stream, number)])
            self._look()
            if time.monotonic() >= tidy_at:
                tidy_at = time.monotonic() + _TIDY_SECONDS
                self._tidy()

    def _take(self, stream: str, number: int) -> bool:
        """Whether a lease on this file is held now."""
        file = f"{stream}/{number}"
        if file in self._held:
            return True
        most = min(_MAX_LEASES, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // _DESCRIPTORS_SHARE)
        if not _STREAM.fullmatch(stream) or number < 0 or len(self._held) >= most:
            return False
        try:
            fd = os.open(os.path.join(self._incoming, file), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return False
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise OSError("not a regular file")
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
            fcntl.fcntl(fd, fcntl.F_SETOWN, _NOBODY)  # `wanted` is looked at; a SIGIO would be of no use
        except OSError as error:
            log.debug("no lease on %s: %s", file, error)  # a writer has it open, or its file system has none
            os.close(fd)
            return False
        with self._wake:
            self._held[file] = fd
        return True

    def _look(self) -> None:
        """Find out for which files somebody waits."""
        wanted = set()
        with self._wake:
            for file, fd in self._held.items():
                if fcntl.fcntl(fd, fcntl.F_GETLEASE) != fcntl.F_RDLCK:
                    wanted.add(file)
        if wanted != self.wanted:
            self.wanted = frozenset(wanted)
            self._on_wanted()

    def _tidy(self) -> None:
        """Release what is in `incoming` no more: whoever asked did not wait, or died before it spoke of the file."""
        with self._wake:
            held = list(self._held.items())
        for file, fd in held:
            try:
                is_there = os.path.samestat(os.lstat(os.path.join(self._incoming, file)), os.fstat(fd))
            except FileNotFoundError:
                is_there = False
            except OSError:
                continue
            if not is_there:
                self.release(file)
