"""Random folder names for where another user has taken ours, recorded before they are used.

    <record>/1, 2, ...      one name each, written once, on the disk before anybody makes a folder of that name

A name that nobody knows beforehand cannot be taken. All processes of a data folder read the same record, so what one
of them leaves behind is found by the others; of many that need a new name at once the first one wins. After a restart
of the host others may know a name from before it, and take that: the next one is recorded then.
"""

from __future__ import annotations

import errno
import os
import time

from trackio import trust

MOST = 64
"""names in one record; that many were taken by others one after the other"""
_BYTES = 4
_NO_HARD_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK, errno.EACCES)
_TRIES, _TRY_AGAIN_SECONDS = 20, 0.01


def read(record: str) -> list[str]:
    """Return the names in a record, oldest first; "" for one that cannot be read or is not ours. Raises OSError where
    it is not known whether there is a record."""
    names: list[str] = []
    for slot in range(1, MOST + 1):
        try:
            names.append(_read_slot(os.path.join(record, str(slot))))
        except (FileNotFoundError, NotADirectoryError):
            break
        except trust.NotTrusted:
            names.append("")
    return names


def add(record: str, known: int) -> str:
    """Record one name more than the `known` first ones; return it, or what another process recorded meanwhile.

    The folder `record` exists and is ours alone. Raises OSError if nothing can be recorded.
    """
    if known >= MOST:
        raise OSError(errno.ENOSPC, f"{MOST} names were taken by other users; remove {record}")
    path, name = os.path.join(record, str(known + 1)), os.urandom(_BYTES).hex()
    new = f"{path}.{name}.new"
    try:
        _write_new(new, name)
        try:
            os.link(new, path)
        except FileExistsError:
            name = _await_slot(path)
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            name = _write_in_place(path, name)
    finally:
        try:
            os.unlink(new)
        except FileNotFoundError:
            pass
    _sync_folder(record)
    return name


def _write_new(path: str, name: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, f"{name}\n".encode())
        os.fsync(fd)
    finally:
        os.close(fd)


def _write_in_place(path: str, name: str) -> str:
    """On a file system without hard links: whoever creates the file wins, and the others see it empty for a moment."""
    try:
        _write_new(path, name)
    except FileExistsError:
        return _await_slot(path)
    return name


def _read_slot(path: str) -> str:
    """Return the name in a slot; "" if it holds none, or none yet. Raises OSError."""
    name = trust.read_file(path).decode(errors="replace").strip()
    is_name = len(name) == 2 * _BYTES and all(digit in "0123456789abcdef" for digit in name)
    return name if is_name else ""


def _await_slot(path: str) -> str:
    """Return the name that another process is writing in place. Raises OSError."""
    for _ in range(_TRIES):
        if name := _read_slot(path):
            return name
        time.sleep(_TRY_AGAIN_SECONDS)
    raise OSError(errno.EIO, f"{path} holds no name")


def _sync_folder(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):  # a file system that cannot
            raise
    finally:
        os.close(fd)
