"""What is blocked or was set aside in a data folder, and putting it right (`trackiod repair`)."""

from __future__ import annotations

import os
import re
import sqlite3
import time
from contextlib import closing
from typing import Any, NamedTuple

from trackio import inquiry, wire
from trackio.lookup import is_there, list_folder
from trackio.places import Places
from trackiod import control, suspects
from trackiod.databases import Databases
from trackiod.errors import StoreError, TrackiodError
from trackiod.lock import FolderLock
from trackiod.store import rejoining, schema
from trackiod.store.project import ProjectStore
from trackiod.suspects import Verdict

_ANSWER_SECONDS = 60.0
_ASIDE = re.compile(r"(.+\.db)\.(damaged|later)-(\d+)")
_LATER = "later"


class Aside(NamedTuple):
    """A project's database that was set aside."""

    path: str
    target: str
    """where it was"""
    is_later: bool
    """whether it went on from the one that is there now, and is to be added to it"""
    project: str
    is_whole: bool
    sentence: str


class Findings(NamedTuple):
    """What is not as it should be."""

    blocked: list[dict[str, Any]]
    """streams that cannot be stored now, as the daemon says"""
    databases: list[Aside]
    spools: list[str]
    """folders of streams that were set aside"""

    def lines(self) -> list[str]:
        """A sentence for each, and what to do."""
        lines = [
            f"Blocked: stream {one['stream'] or one['path']}: {one['sentence']}."
            f" Move it out of the way: trackiod repair --set-aside {one['stream']}"
            for one in self.blocked
        ]
        lines += [
            f"Set aside: the database of project {one.project!r}, {one.path}, which is whole."
            if one.is_whole
            else f"Set aside: {one.path}, which is not whole: {one.sentence}"
            for one in self.databases
        ]
        return lines + [f"Set aside: what a process left, in {path}" for path in self.spools]


def look(where: Places) -> Findings:
    """Return what is blocked or was set aside. Reads all of the databases that were; changes nothing."""
    report = control.status(where)
    folders = [os.path.join(parent, "damaged") for parent in (where.live, *where.roots)]
    spools = [os.path.join(folder, name) for folder in folders for name in sorted(list_folder(folder))]
    return Findings((report.daemon.get("blocked") or []) if report else [], _asides(where), spools)


def _asides(where: Places) -> list[Aside]:
    """The databases that were set aside, in the order in which they are put back: the last one first."""
    names = [
        (folder, _ASIDE.fullmatch(name)) for folder in (where.projects, where.live) for name in list_folder(folder)
    ]
    found = [(match, os.path.join(folder, match[0]), folder) for folder, match in names if match]
    found.sort(key=lambda one: (one[0][2] != _LATER, -int(one[0][3])))
    return [_aside(path, os.path.join(folder, match[1]), match[2]) for match, path, folder in found]


def _aside(path: str, target: str, kind: str) -> Aside:
    verdict, sentence = suspects.examine(path)
    project = schema.name_in(path) if verdict is Verdict.WHOLE else ""
    return Aside(path, target, kind == _LATER, project, verdict is Verdict.WHOLE, sentence)


def put_back(where: Places) -> list[str]:
    """Put back the databases that were set aside and are whole, while no daemon runs; return a sentence for each. What
    was stored in their place meanwhile is added to them. Raises TrackiodError."""
    if not any(one.is_whole for one in _asides(where)):
        return []
    was_running = control.stop(where, "trackiod repair")
    lock = FolderLock(where)
    try:
        return [_put_back(where, one) for one in _asides(where) if one.is_whole]
    finally:
        lock.release()
        if was_running:
            control.start(where)


def _put_back(where: Places, one: Aside) -> str:
    """Each step leaves what the next call goes on from."""
    try:
        later = one.path
        if not one.is_later:
            _settle(one.path)
            if is_there(one.target):
                _settle(one.target)
                later = f"{one.target}.{_LATER}-{time.time_ns()}"
                os.rename(one.target, later)
            os.rename(one.path, one.target)
        if later == one.path and not one.is_later:
            return f"Put back: the database of project {one.project!r}."
        _rejoin(where, one.project, later)
        return f"Put back: the database of project {one.project!r}, with what was stored since."
    except (StoreError, sqlite3.Error, OSError) as error:
        return f"The database of project {one.project!r} cannot be put back whole: {error}"


def _settle(path: str) -> None:
    """Have the file alone hold everything. Raises sqlite3.Error, StoreError."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    if is_there(f"{path}-wal") and os.path.getsize(f"{path}-wal"):
        raise StoreError(f"{path} is in use.")


def _rejoin(where: Places, project: str, later: str) -> None:
    store = ProjectStore(where.projects, project, "")
    with closing(store), closing(sqlite3.connect(later, isolation_level=None)) as connection:
        with store.transaction():
            rejoining.rejoin(connection, store)
        if (database := schema.database_of(connection)) != schema.database_of(store.connection):
            Databases(where.projects, "").note_deleted(database)  # its copies are to go too
    schema.remove(later)


def set_aside(where: Places, stream: str) -> str:
    """Have the daemon move a stream's folders out of the way; start one for that if none runs. Return the sentence that
    says where they are. Raises TrackiodError."""
    is_ours = control.start(where).is_new
    try:
        answer = inquiry.ask(where, wire.SetAside(stream), _ANSWER_SECONDS)
    finally:
        if is_ours:
            control.stop(where, "trackiod repair")
    if not isinstance(answer, wire.Edited):
        raise TrackiodError("trackiod does not answer; look at: trackiod logs")
    if not answer.done:
        raise TrackiodError(answer.sentence)
    return answer.sentence
