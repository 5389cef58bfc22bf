"""Finding streams on this host that nobody told the daemon about: orphans of dead processes, and the living.

Sought in every candidate folder, since each environment may have chosen another one. What cannot be read is neither
there nor absent: it is told apart, since a stream of which only a part is found must not be drained.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Container, Iterable
from typing import Any, NamedTuple

from trackio import folder
from trackio.lookup import list_folder, named, unless_absent
from trackio.places import OWNER, STREAM_META, Places
from trackio.segment import PREFIX

MAX_ID_CHARS = 128
_REMNANTS = {OWNER, f"{STREAM_META}.new"}


class Found(NamedTuple):
    """A stream's folders on this host."""

    id: str
    meta: dict[str, Any]
    folders: tuple[str, ...]
    is_held: bool
    """whether a process holds one of its owner files"""


class Damaged(NamedTuple):
    """A stream's folders that say nothing that can be trusted, though they hold segments and nobody holds them."""

    id: str
    folders: tuple[str, ...]
    cause: str


class Scan(NamedTuple):
    """What lies on this host."""

    found: list[Found]
    damaged: list[Damaged]
    unreadable: dict[str, OSError]
    """why nothing can be said of a stream, or of all that lie in a folder"""
    nameless: set[str]
    """streams whose processes live, though what their folders say cannot be trusted"""
    remnants: dict[str, tuple[str, ...]]
    """folders without a word or a record: whoever made or removed them was killed in between"""


def find(places: Places) -> list[Found]:
    """All streams of this data folder that lie on this host and can be read, with all of their folders."""
    return scan(places).found


def scan(places: Places, but: Container[str] = ()) -> Scan:
    """Look for all streams of this data folder on this host, `but` these and those in such folders, of which nothing
    is read."""
    names: dict[str, None] = {}
    result = Scan([], [], {}, set(), {})
    try:
        parents = places.stream_folders
    except OSError as error:
        result.unreadable[error.filename or places.live] = error
        return result
    for parent in parents:
        if parent in but:
            continue
        try:
            names.update(dict.fromkeys(list_folder(parent)))
        except OSError as error:
            if not _is_foreign(parent):
                result.unreadable[parent] = error
    for name in names:
        if name in but or not is_id(name):
            continue
        try:
            _add(result, name, _folders_in(parents, name))
        except OSError as error:
            result.unreadable[name] = error
    return result


def folders_of(places: Places, stream: str) -> tuple[str, ...]:
    """The folders of one stream, and no other's are looked at. Raises OSError."""
    return _folders_in(places.stream_folders, stream)


def _folders_in(parents: tuple[str, ...], stream: str) -> tuple[str, ...]:
    paths = [os.path.join(parent, stream) for parent in parents] if is_id(stream) else []
    return tuple(path for path in paths if _is_ours(path))


def is_id(name: str) -> bool:
    """Whether a stream can be called so: its folders are, and a peer may say anything."""
    return 0 < len(name) <= MAX_ID_CHARS and name not in (".", "..") and "/" not in name and name.isprintable()


def _add(result: Scan, name: str, paths: tuple[str, ...]) -> None:
    """Adds a stream to what is found. Raises OSError."""
    meta, causes = None, []
    for path in paths:
        try:
            meta = meta or folder.read_meta(path)
        except folder.DamagedMeta as error:
            causes.append(str(error))
    if meta is not None and meta.get("stream") != name:
        causes.append(f"{STREAM_META} is that of another stream")
        meta = None
    is_held = is_any_held(paths)
    if meta is not None:
        result.found.append(Found(name, meta, paths, is_held))
    elif is_held:
        result.nameless.add(name)
    elif _has_segments(paths):
        result.damaged.append(Damaged(name, paths, "; ".join(causes) or f"{STREAM_META} is missing"))
    elif paths and not causes and all(set(list_folder(path)) <= _REMNANTS for path in paths):
        result.remnants[name] = paths


def is_any_held(paths: Iterable[str]) -> bool:
    """Whether a process holds the owner file of one of these folders. Raises OSError."""
    return any(map(_is_held, paths))


def _has_segments(paths: tuple[str, ...]) -> bool:
    return any(name.startswith(PREFIX) for path in paths for name in list_folder(path))


def _is_ours(path: str) -> bool:
    """Whether it is a folder of this user's; one that went while we looked is not. Raises OSError."""
    try:
        info = unless_absent(lambda: os.lstat(path), path)
    except PermissionError:
        if _is_foreign(path):
            return False
        raise
    return info is not None and stat.S_ISDIR(info.st_mode) and info.st_uid == os.geteuid()


def _is_foreign(path: str) -> bool:
    """Whether a path that cannot be looked at lies in a folder of another user's."""
    while path != (path := os.path.dirname(path)):
        try:
            return os.lstat(path).st_uid not in (0, os.geteuid())
        except OSError:
            continue
    return False


def _is_held(path: str) -> bool:
    """Whether a process holds the owner file. Raises OSError."""
    owner = os.path.join(path, OWNER)
    fd = unless_absent(lambda: os.open(owner, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW), owner)
    if fd is None:
        return False
    try:
        return named(lambda: folder.holder(fd) is not None, owner)
    finally:
        os.close(fd)
