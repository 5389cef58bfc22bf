"""Looking for what may not be there. An I/O error is not an answer: only the absence of a path is one."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def unless_absent(look: Callable[[], T], path: str) -> T | None:
    """Return what `look` finds at `path`, or None if the path is not there. Raises any other OSError, with the path.

    A stale handle (ESTALE) and a parent that is not a folder (ENOTDIR) are looked up a second time: a file server
    gives both for what was replaced meanwhile. A parent that is not a folder holds nothing, if it is seen to be
    something else.
    """
    return _unless_absent(look, path, os.path.dirname(path))


def _unless_absent(look: Callable[[], T], path: str, folder: str) -> T | None:
    """The same; `folder` has to be one for anything to be there."""
    try:
        return _look(look, path)
    except OSError as error:
        if error.errno not in (errno.ESTALE, errno.ENOTDIR):
            raise
    try:
        return _look(look, path)
    except NotADirectoryError:
        if _is_folder(folder):
            raise
        return None


def _is_folder(path: str) -> bool:
    """Whether a path may be that of a folder; no if something else is seen there, or above it, or nothing is."""
    while True:
        try:
            return stat.S_ISDIR(os.stat(path or os.curdir).st_mode)
        except FileNotFoundError:
            return False
        except NotADirectoryError:
            if path == (path := os.path.dirname(path)):
                return True
        except OSError:
            return True


def _look(look: Callable[[], T], path: str) -> T | None:
    try:
        return named(look, path)
    except FileNotFoundError:
        return None


def list_folder(path: str) -> list[str]:
    """Return the names in a folder, none if it is not there. Raises OSError."""
    return _unless_absent(lambda: os.listdir(path), path, path) or []


def is_there(path: str) -> bool:
    """Return whether something lies at `path`, a dangling link included. Raises OSError."""
    return unless_absent(lambda: os.lstat(path), path) is not None


def named(act: Callable[[], T], path: str) -> T:
    """Return what `act` returns; an error of a descriptor is told with the path. Raises OSError."""
    try:
        return act()
    except OSError as error:
        if error.filename is None:
            error.filename = path
        raise


def name_of(error: OSError) -> str:
    """Return the name of an error's number, such as "EIO"."""
    return errno.errorcode.get(error.errno or 0, "an I/O error")


def sentence_of(error: OSError) -> str:
    """Return an error in words: the path, what the system says, and its name."""
    path = error.filename
    named = f"{os.fsdecode(path) if isinstance(path, bytes) else path}: " if path else ""
    return f"{named}{error.strerror or error} ({name_of(error)})"
