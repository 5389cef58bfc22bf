"""Why the file system refuses something, with path and errno: SQLite says "disk I/O error" for most of them."""

from __future__ import annotations

import errno
import os
import sqlite3

_PROBE_BYTES = 4096


def cause_of(error: sqlite3.Error | OSError, path: str) -> str:
    """Return an error about the file at `path` in words: SQLite's or the system's, and the errno."""
    name = _errno_name(error) if isinstance(error, OSError) else _sqlite_errno(error, path)
    text = error.strerror or str(error) if isinstance(error, OSError) else str(error)
    return f"{text} ({name}, {path})"


_REFUSALS = {
    sqlite3.SQLITE_ERROR, sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH,
    sqlite3.SQLITE_MISUSE, sqlite3.SQLITE_RANGE,
}  # fmt: skip


def is_refusal(error: sqlite3.Error) -> bool:
    """Return whether SQLite cannot do what it is asked for, whatever the disk: a value, a limit or SQL is at fault.
    What Python's module itself refuses has no code."""
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF in _REFUSALS


def _sqlite_errno(error: sqlite3.Error, path: str) -> str:
    """SQLite keeps the errno to itself but for a full disk; what it tried is tried again, small."""
    if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL:
        return "ENOSPC"
    refused = _refusal_of(os.path.dirname(path))
    return _errno_name(refused) if refused is not None else str(getattr(error, "sqlite_errorname", "SQLITE_ERROR"))


def _refusal_of(folder: str) -> OSError | None:
    """What the system says to a small file in a folder, which has no name and leaves nothing behind."""
    try:
        fd = os.open(folder, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    except OSError as error:
        return None if error.errno in (errno.EOPNOTSUPP, errno.EISDIR) else error
    try:
        os.write(fd, bytes(_PROBE_BYTES))
        os.fsync(fd)
    except OSError as error:
        return error
    finally:
        os.close(fd)
    return None


def _errno_name(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, type(error).__name__)
