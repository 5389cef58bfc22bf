"""What other hosts have copied into the shared folder (`trackiod.sinks.directory`), taken in on this one.

Their parts are put together in a database for each project beside this host's own store, in the same layout; readers
see both as one. It can be made anew from the parts at any time, and only what has changed is read again.
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from typing import Any, NamedTuple

from trackio.places import Places, make_private
from trackiod.errors import StoreError
from trackiod.keeper import blob_path
from trackiod.sinks import directory
from trackiod.store import parts, schema

_SILENT_SECONDS = 300.0
"""a host that copied nothing for so long is not there any more"""
_STATE = "state.json"
_PATIENCE_SECONDS = 5.0
_TRIES = 3


class _Copy(NamedTuple):
    """One database of one host's, as it lies in the shared folder."""

    host: str
    key: str
    """store/database"""
    folder: str


class _Store(NamedTuple):
    """One host's store in the shared folder."""

    host: str
    path: str
    revision: str
    alive_at: float


def refresh(where: Places) -> list[str]:
    """Takes in what other hosts have copied since the last time. Returns a sentence for what could not be."""
    if not where.shared or not os.path.isdir(where.shared):
        return []
    folder = schema.elsewhere(where.projects)
    try:
        make_private(folder)
        with _alone(folder) as is_alone:
            return _TakingIn(where, folder).take_all() if is_alone else []
    except OSError as error:
        return [f"What other hosts copied to {where.shared} cannot be taken in: {error}"]


class _TakingIn:
    """One look at everything in the shared folder."""

    def __init__(self, where: Places, folder: str) -> None:
        self._places = where
        self._folder = folder
        self._state = _read_state(folder)
        self._problems: list[str] = []
        self._is_void = False

    def take_all(self) -> list[str]:
        try:
            own = directory.store_id(self._places)
        except OSError:
            own = ""
        stores = [store for store in _stores(self._places.shared) if os.path.basename(store.path) != own]
        now = _server_time(self._places.shared) if stores else 0.0
        seen: dict[str, Any] = {}
        for store in stores:
            is_silent = now - store.alive_at > _SILENT_SECONDS
            before, known = self._state.get(store.path), [store.revision, is_silent]
            seen[store.path] = known if before == known or self._take_store(store, is_silent) else None
        gone = {path for path in self._state if path not in seen and not os.path.exists(path)}
        for path in gone:
            self._forget(os.path.basename(path), [])
        _write_state(self._folder, {} if self._is_void else seen)
        return self._problems

    def _take_store(self, store: _Store, is_silent: bool) -> bool:
        """False if something could not be read: then it is looked at again the next time."""
        name, databases = os.path.basename(store.path), []
        is_whole = True
        for database in _folders(store.path):
            copy = _Copy(store.host, f"{name}/{database}", os.path.join(store.path, database))
            databases.append(copy.key)
            try:
                self._take_database(copy, is_silent)
            except (StoreError, OSError, ValueError, TypeError, KeyError) as error:
                is_whole = False
                self._problems.append(f"A copy of {store.host}'s in {copy.folder} cannot be read: {error}")
        self._forget(name, databases)
        return is_whole

    def _take_database(self, copy: _Copy, is_silent: bool) -> None:
        for attempt in range(_TRIES):
            index = directory.read_index(copy.folder)
            if not index["project"]:
                return  # it is being made
            try:
                with self._target(index["project"]) as target:
                    _take_runs(target, copy, index["runs"])
                    _link_files(target, copy, self._folder, schema.project_id(index["project"]))
                    _end_silent(target, copy, is_silent)
                return
            except (FileNotFoundError, StoreError):
                if attempt == _TRIES - 1 or directory.read_index(copy.folder) == index:
                    raise  # else it was copied again while it was read

    @contextmanager
    def _target(self, project: str) -> Iterator[sqlite3.Connection]:
        """The database that a project's parts are put together in, in a transaction; made anew if it is damaged."""
        path = schema.others_path(schema.path_of(self._places.projects, project))
        try:
            with closing(parts.gathering(path, project)) as target, target:
                target.execute("BEGIN IMMEDIATE")
                yield target
        except sqlite3.Error as error:
            if not schema.is_damage(error):
                raise StoreError(str(error)) from error
            for suffix in ("", "-wal", "-shm"):
                if os.path.exists(path + suffix):
                    os.unlink(path + suffix)
            self._is_void = True  # all is to be taken in anew
            raise StoreError(f"{path} was damaged; it is made anew with the next command.") from error

    def _forget(self, store: str, databases: list[str]) -> None:
        """Removes what was taken in of databases of a store that are not there any more."""
        for name in os.listdir(self._folder):
            if not name.endswith(schema.SUFFIX):
                continue
            path = os.path.join(self._folder, name)
            with closing(sqlite3.connect(path, isolation_level=None, timeout=5)) as target, target:
                target.execute("BEGIN IMMEDIATE")
                known = {row[0] for row in target.execute("SELECT value FROM meta WHERE key LIKE 'stream %'")}
                gone = {key.rpartition("/")[0] for key in known if key.startswith(f"{store}/")} - {*databases}
                for key in gone:
                    _take_runs(target, _Copy("", key, ""), {})
                is_empty = target.execute("SELECT 1 FROM runs LIMIT 1").fetchone() is None
            if is_empty:
                for suffix in ("", "-wal", "-shm"):
                    if os.path.exists(path + suffix):
                        os.unlink(path + suffix)


def _take_runs(target: sqlite3.Connection, copy: _Copy, runs: dict[str, Any]) -> None:
    """Makes what is held of a copy what its index says. `meta` remembers which axes came with which part, and which
    streams with which run."""
    prefix = f"part {copy.key}/"
    held = {
        key.removeprefix(prefix): json.loads(value)
        for key, value in target.execute("SELECT key, value FROM meta WHERE key LIKE ?", (prefix + "%",))
    }
    named = {part["name"] for run in runs.values() for part in run["parts"]}
    for name in held.keys() - named:
        parts.drop_columns(target, *held[name])
        target.execute("DELETE FROM meta WHERE key = ?", (prefix + name,))
    streams: list[str] = []
    for run, entry in runs.items():
        for part in entry["parts"]:
            if part["name"] in held:
                continue
            with closing(parts.opened(os.path.join(copy.folder, part["name"]))) as source:
                axes = parts.take_columns(source, target)
                target.execute("INSERT INTO meta VALUES (?, ?)", (prefix + part["name"], json.dumps(axes)))
                if part["upto"] is None:
                    streams, _ = parts.take_facts(source, target)
                    _own_streams(target, f"{copy.key}/{run}", streams)
    for key in {row[0] for row in target.execute("SELECT value FROM meta WHERE key LIKE ?", ("stream %",))}:
        database, _, run = key.rpartition("/")
        if database == copy.key and run not in runs:
            _own_streams(target, key, [])


def _own_streams(target: sqlite3.Connection, key: str, streams: list[str]) -> None:
    """Notes which streams came with a run, and removes those that it has no more."""
    rows = target.execute("SELECT key FROM meta WHERE value = ? AND key LIKE 'stream %'", (key,)).fetchall()
    before = {str(row[0]).removeprefix("stream ") for row in rows}
    gone = sorted(before - {*streams})
    target.executemany("DELETE FROM meta WHERE key = ?", [(f"stream {stream}",) for stream in gone])
    target.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", [(f"stream {stream}", key) for stream in streams])
    parts.drop_streams(target, gone)


def _of_copy(copy: _Copy) -> tuple[str, str]:
    """SQL that is true of the streams of a copy, and its value."""
    return "EXISTS (SELECT 1 FROM meta m WHERE m.key = 'stream ' || s.id AND m.value LIKE ?)", f"{copy.key}/%"


def _link_files(target: sqlite3.Connection, copy: _Copy, folder: str, project: str) -> None:
    """Leads to the files of another host's values; they are read where they lie."""
    condition, value = _of_copy(copy)
    rows = target.execute(
        "SELECT DISTINCT f.digest, f.suffix FROM files f JOIN streams s ON s.id = f.stream"
        f" WHERE f.state = 'kept' AND {condition}", (value,),
    ).fetchall()  # fmt: skip
    for digest, suffix in rows:
        link = blob_path(os.path.join(folder, "blobs"), project, digest, suffix)
        if not os.path.lexists(link):
            make_private(os.path.dirname(link))
        elif os.path.exists(link):
            continue
        else:
            os.unlink(link)  # it led to a host that is gone
        os.symlink(os.path.join(copy.folder, directory.FILES, digest[:2], digest + suffix), link)


def _end_silent(target: sqlite3.Connection, copy: _Copy, is_silent: bool) -> None:
    """If nothing was heard of a host, what ran there is lost, until it copies again."""
    cause = f"nothing was heard of {copy.host} any more"
    condition, value = _of_copy(copy)
    if is_silent:
        target.execute(
            "UPDATE streams AS s SET state = 'lost', cause = ?, ended_ns = coalesce(last_ns, started_ns)"
            f" WHERE state IS NULL AND {condition}", (cause, value),
        )  # fmt: skip
    else:
        target.execute(
            f"UPDATE streams AS s SET state = NULL, cause = '', ended_ns = NULL WHERE cause = ? AND {condition}",
            (cause, value),
        )


# -- the shared folder -------------------------------------------------------------------------------------------------


def _stores(shared: str) -> list[_Store]:
    """The stores of all hosts. Of one that lies under two names, because its host got another, that which lives."""
    newest: dict[str, _Store] = {}
    for host in _folders(shared):
        for name in _folders(os.path.join(shared, host)):
            path = os.path.join(shared, host, name)
            alive = os.path.join(path, directory.ALIVE)
            try:
                store = _Store(host, path, directory.read_text(alive), os.stat(alive).st_mtime)
            except FileNotFoundError:
                continue  # it is being made
            if name not in newest or newest[name].alive_at < store.alive_at:
                newest[name] = store
    return list(newest.values())


def _server_time(shared: str) -> float:
    """What time it is where the files' times come from; this host's where nothing can be written there."""
    path = os.path.join(shared, "clock")
    try:
        with open(path, "ab"):
            os.utime(path)
        return os.stat(path).st_mtime
    except OSError:
        return time.time()


def _folders(path: str) -> Iterable[str]:
    """The folders in a folder, sorted. Raises OSError: what cannot be listed is not empty."""
    return sorted(entry.name for entry in os.scandir(path) if entry.is_dir())


# -- this host's folder ------------------------------------------------------------------------------------------------


@contextmanager
def _alone(folder: str) -> Iterator[bool]:
    """Whether nobody else takes anything in; waits for them a little, and then need not do it."""
    fd = os.open(os.path.join(folder, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield _lock(fd)
    finally:
        os.close(fd)


def _lock(fd: int) -> bool:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    is_first = True
    while time.monotonic() < deadline:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return is_first
        except BlockingIOError:
            is_first = False
            time.sleep(0.02)
    return False


def _read_state(folder: str) -> dict[str, Any]:
    """What was taken in: the revision of each store, and whether it was silent."""
    try:
        state = json.loads(directory.read_text(os.path.join(folder, _STATE)))
    except ValueError:
        return {}
    return state if isinstance(state, dict) else {}


def _write_state(folder: str, state: dict[str, Any]) -> None:
    path = os.path.join(folder, _STATE)
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        json.dump(state, file)
    os.rename(f"{path}.new", path)
