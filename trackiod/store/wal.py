"""SQLite's write-ahead log of a database: how long it is, and which processes keep it from beginning anew.

It begins anew once all in it is in the database and nobody reads from it. A reader that stays in one transaction holds
that up, and the log grows for as long; nothing else waits. Reads `/proc`, and writes nothing.
"""

from __future__ import annotations

import os
from typing import NamedTuple

MOST_BYTES = 64 << 20
"""beyond which it is cut as soon as nobody reads from it"""
LONG_BYTES = MOST_BYTES * 3 // 2
"""from which on somebody is named"""
_READERS = {"123", "124", "125", "126", "127"}
_WRITER = "120"
"""bytes of the `-shm` file that readers lock, and whoever writes, as SQLite's file format has them"""


class LongLog(NamedTuple):
    """A log that could not begin anew for long, and who reads from it now: `pid (program)` of what can be seen."""

    project: str
    path: str
    bytes: int
    readers: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """For a user, who can end them."""
        size = f"The log of project '{self.project}' has grown to {self.bytes >> 20:,} MiB ({self.path})"
        if not self.readers:
            return f"{size}. It is cut with the next commits, unless a process that cannot be seen here reads from it."
        which = " and ".join(f"pid {reader}" for reader in self.readers)
        return f"{size}, because one long transaction reads from it: {which}. It is cut when that ends."


def size_of(database: str) -> int:
    """Bytes of a database's log."""
    try:
        return os.stat(f"{database}-wal").st_size
    except OSError:
        return 0


def find_long(database: str, project: str) -> LongLog | None:
    """A database's log, if it is long."""
    size = size_of(database)
    return LongLog(project, f"{database}-wal", size, readers(database)) if size > LONG_BYTES else None


def readers(database: str) -> tuple[str, ...]:
    """The processes that read from a database's log now, as the kernel lists their locks; but for the one that writes,
    which reads in its transaction too."""
    try:
        inode = str(os.stat(f"{database}-shm").st_ino)
        with open("/proc/locks", encoding="ascii", errors="replace") as file:
            locks = [line.split() for line in file]
    except OSError:
        return ()
    # 1: POSIX ADVISORY READ 4711 fd:01:5678 124 124
    ours = [lock for lock in locks if len(lock) == 8 and lock[5].rpartition(":")[2] == inode]
    reading = {int(lock[4]) for lock in ours if lock[3] == "READ" and lock[6] in _READERS}
    writing = {int(lock[4]) for lock in ours if lock[3] == "WRITE" and lock[6] == _WRITER}
    return tuple(f"{pid} ({_program(pid)})" for pid in sorted(reading - writing) if pid > 0)


def _program(pid: int) -> str:
    """What a process calls itself; names are its user's to choose."""
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            name = file.read().strip()
    except OSError:
        return "ended"
    return "".join(character for character in name if character.isprintable())
