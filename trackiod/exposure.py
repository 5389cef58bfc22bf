"""Which of our folders other users can write or exchange, each with what ends that. Reads, judges, changes nothing."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from collections.abc import Iterator
from typing import NamedTuple

from trackio import trust
from trackio.places import Places


class Exposed(NamedTuple):
    """A folder that other users can write, and what to do."""

    sentence: str
    fix: str


def look(where: Places, group: str = "") -> tuple[Exposed, ...]:
    """All of them. `group`: that which may read copies (TRACKIO_SHARED_GROUP). Never raises."""
    found = [
        *_of_folder("data folder", where.data),
        *(_of_folder("live store", where.live) if where.live != where.data else ()),
        *(each for root in where.roots for each in _of_root(root)),
        *(_of_shared(where.shared, group) if where.shared else ()),
    ]
    return tuple({each.sentence: each for each in found}.values())


def _of_folder(what: str, path: str) -> Iterator[Exposed]:
    """The folder itself, sticky or not: what directs processes lies in it. And each folder above it."""
    info = _look(path)
    if info is not None and not trust.is_trusted(info.st_uid):
        whose = trust.name_of(info.st_uid)
        yield Exposed(
            f"The {what} {path} belongs to {whose}, who can change what lies in it.", f"chown $(id -u) {path}"
        )
    if info is not None and _others_write(info):
        yield Exposed(f"Other users can write the {what} {path}.", f"chmod go-w {path}")
    yield from _above(what, path)


def _above(what: str, path: str) -> Iterator[Exposed]:
    folder = os.path.dirname(path)
    while True:
        info = _look(folder)
        if info is not None and _others_write(info) and not info.st_mode & stat.S_ISVTX:
            yield Exposed(f"Other users can exchange the {what} {path}: they can write {folder}.", f"chmod +t {folder}")
        if folder == os.path.dirname(folder):
            return
        folder = os.path.dirname(folder)


def _of_root(root: str) -> Iterator[Exposed]:
    """A runtime folder. What we chose and cannot use is left alone; what the user named is used."""
    first = os.path.dirname(root)
    yield from _above("runtime folder", first)
    info = _look(first)
    if info is None:
        return
    if info.st_uid != os.geteuid() or not stat.S_ISDIR(info.st_mode):
        whose = "is not a folder" if stat.S_ISLNK(info.st_mode) else f"belongs to {trust.name_of(info.st_uid)}"
        yield Exposed(f"{first} {whose}; another folder is used in its place.", f"Ask its owner to remove {first}")
    elif _others_write(info):
        yield Exposed(f"Other users can write the runtime folder {first}.", f"chmod 700 {first}")


def _of_shared(path: str, group: str) -> Iterator[Exposed]:
    """A team can write into its folder; nobody is to exchange what another one put there."""
    info = _look(path)
    if info is None or not _others_write(info) or info.st_mode & stat.S_ISVTX:
        return
    who = f"Members of {group}" if group and not info.st_mode & stat.S_IWOTH else "Other users"
    yield Exposed(f"{who} can remove or exchange others' copies in {path}.", f"chmod +t {path}")


def _look(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except OSError:
        return None


def _others_write(info: os.stat_result) -> bool:
    """Whether others can write a folder; a group of the user's own name, as many systems make one, is not others."""
    if not stat.S_ISDIR(info.st_mode) or info.st_mode & stat.S_IWOTH:
        return stat.S_ISDIR(info.st_mode)
    return bool(info.st_mode & stat.S_IWGRP) and not _is_private_group(info.st_gid)


def _is_private_group(gid: int) -> bool:
    try:
        entry = grp.getgrgid(gid)
        user = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return False
    return entry.gr_name == user and not {*entry.gr_mem} - {user}


def runtime_folders(where: Places) -> tuple[str, ...]:
    """Where processes look for a place for spools, best first, random names among them."""
    try:
        own = where.own_roots()
    except OSError:
        return where.roots
    return tuple(root for root in own if os.path.isdir(root) or root in where.roots) or where.roots
