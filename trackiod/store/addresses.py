"""The addresses of webhooks that alerts wait to be sent to: a file each, and in the database a reference only.

An address is a secret that is to be gone when its alert was sent. What was once in a database is not: SQLite leaves
copies in its log and in free parts of pages. A file that is removed leaves none.
"""

from __future__ import annotations

import hashlib
import os
import re
import time

from trackio.lookup import is_there, list_folder
from trackio.places import make_private

_REFERENCE = re.compile(r"kept:([0-9a-f]{32})\Z")
_MOST_SECONDS = 2 * 86400.0
"""Alerts are tried for an hour; a file that is older belongs to none."""


class Addresses:
    """The files below one folder, which is made at first use."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def keep(self, address: str | None, stream: str, start: int) -> str | None:
        """Write the address down, durably, that the alert at this place waits for; return what refers to it, the same
        whenever it is kept again. Raises OSError."""
        if address is None:
            return None
        make_private(self._folder)
        self._sweep()
        name = _name_of(stream, start)
        how = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(os.path.join(self._folder, name), how, 0o600)
        with open(fd, "wb") as file:
            file.write(address.encode("utf-8", "surrogatepass"))
            file.flush()
            os.fsync(fd)
        return f"kept:{name}"

    @property
    def is_empty(self) -> bool:
        """Whether no address is kept. Raises OSError."""
        return not list_folder(self._folder)

    def kept_for(self, stream: str, start: int) -> str | None:
        """Return what refers to the address of the alert at this place; None if it is not kept. Raises OSError."""
        name = _name_of(stream, start)
        return f"kept:{name}" if is_there(os.path.join(self._folder, name)) else None

    def address_of(self, kept: str) -> str:
        """Return the address behind a reference; an earlier release kept the address itself. Empty if it is gone."""
        path = self._path(kept)
        if path is None:
            return kept
        try:
            with open(path, "rb") as file:
                return file.read().decode("utf-8", "surrogatepass")
        except (FileNotFoundError, UnicodeDecodeError):
            return ""

    def forget(self, kept: str | None) -> None:
        """Remove the file behind a reference. Raises nothing: what is left is removed later."""
        path = None if kept is None else self._path(kept)
        if path is not None:
            _remove(path)

    def _path(self, kept: str) -> str | None:
        match = _REFERENCE.match(str(kept))  # a damaged row holds anything
        return None if match is None else os.path.join(self._folder, match[1])

    def _sweep(self) -> None:
        """Removes what no alert waits for any more: a run that was deleted, a process that ended between two steps."""
        with os.scandir(self._folder) as entries:
            old = [e.path for e in entries if time.time() - e.stat(follow_symlinks=False).st_mtime > _MOST_SECONDS]
        for path in old:
            _remove(path)


def _name_of(stream: str, start: int) -> str:
    return hashlib.blake2b(f"{stream} {start}".encode(), digest_size=16).hexdigest()


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass
