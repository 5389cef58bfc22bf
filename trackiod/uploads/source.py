"""Where a run's rows come from: a project's database here, alone or with what other hosts have copied."""

from __future__ import annotations

import secrets
import sqlite3
from typing import Any, NamedTuple

from trackio.places import Places
from trackiod import blobs
from trackiod.store import schema
from trackiod.store.reader import ProjectReader
from trackiod.uploads.target import Target


class Stream(NamedTuple):
    """All that one process logged in one attempt."""

    id: str
    rank: int
    attempt: str
    committed: int
    meta: dict[str, Any]


class Source(NamedTuple):
    """A project. `is_alone`: only what this host stored; `is_atomic`: whether its target takes changes as a whole;
    `other`: only what was copied of this store."""

    places: Places
    connection: sqlite3.Connection
    project: str
    target: Target
    store: str
    """in the names of its files: other hosts write beside them"""
    scratch: str
    is_alone: bool = True
    is_atomic: bool = True
    other: str = ""

    def new_tag(self) -> str:
        """What the names of a change have in them, where one may be taken in part, or late."""
        return "" if self.is_atomic else secrets.token_hex(4)

    def reader(self) -> ProjectReader:
        """For what readers are shown. Raises StoreError."""
        path_of = schema.path_of if self.is_alone or self.other else schema.readable_path
        path = path_of(self.places.projects, self.project)
        return ProjectReader(path, is_alone=self.is_alone, store=self.other)

    def blob(self, digest: str, suffix: str) -> str:
        """Where a kept file lies, if it does."""
        return blobs.kept_in(blobs.folder_of(self.places.blobs, self.project), digest, suffix)


def key_of(run: str, other: str) -> str:
    """What is remembered of a run, or an artifact, is called: several stores may have a part of it."""
    return f"{other} {run}" if other else run


def is_running(connection: sqlite3.Connection, run: str) -> bool:
    """Whether one of a run's processes on this host goes on."""
    sql = "SELECT 1 FROM streams WHERE run = ? AND state IS NULL LIMIT 1"
    return connection.execute(sql, (run,)).fetchone() is not None


def points_of(connection: sqlite3.Connection, run: str) -> int:
    """How many points of a run are stored; `Cursor.rows` of them are at the target."""
    sql = "SELECT coalesce(sum(points), 0) FROM streams WHERE run = ? AND role = 'rank'"
    return int(connection.execute(sql, (run,)).fetchone()[0])
