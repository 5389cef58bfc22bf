"""What another user copied into a folder that several share: it is shown as that user's, and changes nobody else's.

Such a part is hostile input. It may hold one run's own rows only; a run or stream that is already another user's stays
that user's; whose a stream is says its `meta`, under `owner`, which is written here whatever the part says.
"""

from __future__ import annotations

import os
import sqlite3
import stat
from contextlib import closing
from typing import TYPE_CHECKING

import msgpack

from trackio import trust
from trackiod.errors import StoreError
from trackiod.store import parts
from trackiod.store.layout import FACTS
from trackiod.streams import problem_in

if TYPE_CHECKING:
    from trackiod.store.merging import Copy

OWNER = "owner"
_MOST_PART_BYTES = 1 << 30
_OF_STREAMS = ("axes", "series", *FACTS)


def check(target: sqlite3.Connection, copy: Copy, run: str, names: list[str]) -> None:
    """Raise StoreError unless these parts of another user's copy are that run's and no more, and the run is not
    somebody else's here. Raises FileNotFoundError."""
    if run in copy.own_runs:
        raise StoreError(f"{copy.folder} claims run {run}, which is yours; it is left out.")
    rows = target.execute("SELECT id FROM streams WHERE run = ?", (run,)).fetchall()
    if any(owner_of(target, row[0]) != copy.owner for row in rows):
        raise StoreError(f"{copy.folder} claims run {run}, which is another user's; it is left out.")
    paths = [os.path.join(copy.folder, name) for name in names]
    for path in paths:
        info = os.lstat(path)
        if not stat.S_ISREG(info.st_mode) or info.st_uid not in (copy.owner, 0) or info.st_size > _MOST_PART_BYTES:
            raise StoreError(f"{path} is a link, too large, or not that user's; its run is left out.")
    try:
        with closing(parts.opened(paths[-1])) as last:
            streams = {*parts.streams_of(last)}
        for path in paths:
            with closing(parts.opened(path)) as part:
                if problem := _problem_in(part, run, streams):
                    raise StoreError(f"{path} {problem}; its run is left out.")
    except sqlite3.Error as error:
        raise StoreError(f"A part of run {run} in {copy.folder} cannot be read ({error}).") from error


def _problem_in(part: sqlite3.Connection, run: str, streams: set[str]) -> str:
    """Say what a part holds that it may not; "" if nothing. Raises sqlite3.Error."""
    master = "SELECT name FROM sqlite_master WHERE type IN ('view', 'trigger') OR sql LIKE 'CREATE VIRTUAL%'"
    if part.execute(master).fetchone() is not None:
        return "holds more than tables"
    of_runs = "SELECT id FROM runs UNION SELECT run FROM streams UNION SELECT run FROM definitions"
    if {row[0] for row in part.execute(of_runs)} - {run}:
        return "holds what is another run's"
    for id_, meta in part.execute("SELECT id, meta FROM streams"):
        try:
            facts = msgpack.unpackb(meta)
            problem = problem_in(facts) if isinstance(facts, dict) else "it is not a map"
        except (ValueError, TypeError, RecursionError) as error:
            problem = type(error).__name__
        if problem:
            return f"says of stream {id_!r} what cannot be ({problem})"
    for table in _OF_STREAMS:
        if {row[0] for row in part.execute(f"SELECT DISTINCT stream FROM {table}")} - streams:
            return "holds what is another stream's"
    return ""


def owner_of(target: sqlite3.Connection, stream: str) -> int | None:
    """The other user whose a stream is; None for this user's."""
    row = target.execute("SELECT meta FROM streams WHERE id = ?", (stream,)).fetchone()
    return in_meta(msgpack.unpackb(row[0])) if row else None


def in_meta(meta: object) -> int | None:
    """The other user in a stream's facts; None for this user's."""
    owner = meta.get(OWNER) if isinstance(meta, dict) else None
    return owner if isinstance(owner, int) else None


def mark(target: sqlite3.Connection, streams: list[str], owner: int | None) -> None:
    """Write down whose streams are."""
    for stream in streams:
        row = target.execute("SELECT meta FROM streams WHERE id = ?", (stream,)).fetchone()
        meta = msgpack.unpackb(row[0]) if row else None
        if isinstance(meta, dict) and meta.get(OWNER) != owner:
            meta = {name: value for name, value in meta.items() if name != OWNER}
            packed = msgpack.packb(meta if owner is None else {**meta, OWNER: owner})
            target.execute("UPDATE streams SET meta = ? WHERE id = ?", (packed, stream))


def owner_name(uid: int | None) -> str:
    """That user's name; "" for this user. May ask a directory service."""
    if uid is None:
        return ""
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return trust.name_of(uid)
