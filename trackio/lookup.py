"""Looking for what may not be there. An I/O error is not an answer: only the absence of a path is one."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def unless_absent(look: Callable[[], T], path: str) -> T | None:
    """Return what `look` finds at `path`, or None if the path is not there. Raises any other OSError, with the path.

    A stale handle (ESTALE) and a parent that is not a folder (ENOTDIR) are looked up a second time: a file server
    gives both for what was replaced meanwhile. A parent that is still not a folder holds nothing.
    """
    try:
        return _look(look, path)
    except OSError as error:
        if error.errno not in (errno.ESTALE, errno.ENOTDIR):
            raise
    try:
        return _look(look, path)
    except NotADirectoryError:
        return None


def _look(look: Callable[[], T], path: str) -> T | None:
    try:
        return look()
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.filename is None:
            error.filename = path
        raise


def list_folder(path: str) -> list[str]:
    """Return the names in a folder, none if it is not there. Raises OSError."""
    return unless_absent(lambda: os.listdir(path), path) or []


def is_there(path: str) -> bool:
    """Return whether something lies at `path`, a dangling link included. Raises OSError."""
    return unless_absent(lambda: os.lstat(path), path) is not None


def name_of(error: OSError) -> str:
    """Return the name of an error's number, such as "EIO"."""
    return errno.errorcode.get(error.errno or 0, "an I/O error")


def sentence_of(error: OSError) -> str:
    """Return an error in words: the path, what the system says, and its name."""
    path = error.filename
    named = f"{os.fsdecode(path) if isinstance(path, bytes) else path}: " if path else ""
    return f"{named}{error.strerror or error} ({name_of(error)})"
