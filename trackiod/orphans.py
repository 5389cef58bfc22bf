"""Finding streams on this host that nobody told the daemon about: orphans of dead processes, and the living.

Sought in every candidate folder, since each environment may have chosen another one.
"""

from __future__ import annotations

import os
import stat
from typing import Any, NamedTuple

from trackio import folder
from trackio.places import OWNER, Places


class Found(NamedTuple):
    """A stream's folders on this host."""

    id: str
    meta: dict[str, Any]
    folders: tuple[str, ...]
    is_held: bool
    """whether a process holds one of its owner files"""


def find(places: Places) -> list[Found]:
    """All streams of this data folder that lie on this host, with all of their folders."""
    folders: dict[str, list[str]] = {}
    for parent in places.stream_folders:
        try:
            names = os.listdir(parent)
        except OSError:
            continue
        for name in names:
            path = os.path.join(parent, name)
            if _is_ours(path):
                folders.setdefault(name, []).append(path)
    found = []
    for name, paths in folders.items():
        meta = next((m for m in map(folder.read_meta, paths) if m is not None), None)
        if meta is not None and meta.get("stream") == name:
            found.append(Found(name, meta, tuple(paths), any(map(_is_held, paths))))
    return found


def _is_ours(path: str) -> bool:
    """Whether it is a folder of this user's; one that went while we looked is not."""
    try:
        info = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISDIR(info.st_mode) and info.st_uid == os.geteuid()


def _is_held(path: str) -> bool:
    """Whether a process holds the owner file; in doubt it does."""
    try:
        fd = os.open(os.path.join(path, OWNER), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        return folder.holder(fd) is not None
    except OSError:
        return True
    finally:
        os.close(fd)
