"""What other hosts have copied into the shared folder (`trackiod.sinks.directory`), taken in on this one.

Their parts are put together in a database for each project beside this host's own store, in the same layout; readers
see both as one. It can be made anew from the parts at any time, and only what has changed is read again.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from typing import Any, NamedTuple

from trackio import places, settings
from trackio.places import Places, boot_id, make_private, private, replace
from trackiod import blobs
from trackiod.errors import StoreError, StoreTooNew, StoreTooOld
from trackiod.sinks import directory
from trackiod.store import additions, artifact_parts, merging, parts, schema
from trackiod.store.merging import Copy

_SILENT_SECONDS = 300.0
"""a host that copied nothing for so long is not there any more"""
_STATE, _BOOT = "state.json", "boot"
_PATIENCE_SECONDS = 5.0
_TRIES = 3
_MOST_NAMED = 3
"""runs of a database that cannot be taken in, in one sentence"""


class _Store(NamedTuple):
    """One host's store in the shared folder."""

    host: str
    path: str
    revision: str
    alive_at: float


def main() -> int:
    """Takes in what there is. 0 when that is everything."""
    ours, _ = settings.of_this_process()
    return 1 if refresh(places.of(ours)) else 0


def refresh(where: Places) -> list[str]:
    """Takes in what other hosts have copied since the last time. Returns a sentence for what could not be."""
    if not where.shared:
        return []
    folder = schema.elsewhere(where.projects)
    try:
        if not os.path.isdir(where.shared):
            return []
        make_private(folder)
        with _alone(folder) as is_alone:
            return _TakingIn(where, folder).take_all() if is_alone else []
    except (OSError, sqlite3.Error, StoreError) as error:
        return [f"What other hosts copied to {where.shared} cannot be taken in: {error}"]


def look(where: Places, seconds: float = 10.0) -> list[str]:
    """`refresh`, but a file server that hangs is not waited for any longer."""
    problems: list[str] = []
    thread = threading.Thread(target=lambda: problems.extend(refresh(where)), name="elsewhere", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        return [f"{where.shared} does not answer; of other hosts, what was taken in before is shown."]
    return problems


class _TakingIn:
    """One look at everything in the shared folder."""

    def __init__(self, where: Places, folder: str) -> None:
        self._places = where
        self._folder = folder
        self._problems: list[str] = []
        self._is_void = False
        self._newer: set[str] = set()
        """databases that a newer release has put together: they are left to it"""
        is_whole = self._are_readable()
        self._state = _read_state(folder) if is_whole else {}

    def take_all(self) -> list[str]:
        try:
            own = directory.store_id(self._places)
        except OSError:
            own = ""
        shared = self._places.shared
        stores = [store for store in _stores(shared, self._problems) if os.path.basename(store.path) != own]
        if not stores and self._state:
            return [*self._problems, f"{shared} shows no other host any more; what was taken in before is shown."]
        now = _server_time(shared) if stores else 0.0
        seen: dict[str, Any] = {}
        databases: set[str] = set()
        is_new = False
        for store in stores:
            is_silent = now - store.alive_at > _SILENT_SECONDS
            before, known = self._state.get(store.path), [store.revision, is_silent]
            if before is None or before[:2] != known:
                is_new = True
                known += [self._take_store(store, is_silent)]
                seen[store.path] = known if known[2] is not None else None
            else:
                seen[store.path] = before
            databases.update(seen[store.path][2] if seen[store.path] else _keys(store))
        kept = {path: before for path, before in self._state.items() if path not in seen and not _is_gone(path)}
        for before in kept.values():
            databases.update(before[2] if before else ())
        if is_new or kept.keys() | seen.keys() != self._state.keys():
            self._forget_all_but(databases)
        _write_state(self._folder, {} if self._is_void else seen | kept)
        return self._problems

    def _take_store(self, store: _Store, is_silent: bool) -> list[str] | None:
        """Returns the databases that it has; None if something could not be read: then it is looked at again."""
        keys = []
        is_whole = True
        for key in _keys(store):
            copy = Copy(store.host, key, os.path.join(store.path, key.rpartition("/")[2]))
            keys.append(key)
            try:
                is_whole &= self._take_database(copy, is_silent)
            except (StoreError, sqlite3.Error, OSError, ValueError) as error:
                is_whole = False
                self._problems.append(f"A copy of {store.host}'s in {copy.folder} cannot be read: {error}")
        return keys if is_whole else None

    def _take_database(self, copy: Copy, is_silent: bool) -> bool:
        """Returns whether all of it was taken in; False if it is left to a newer release."""
        for attempt in range(_TRIES):
            index = directory.read_index(copy.folder)
            if not index["project"]:
                return True  # it is being made
            path = schema.others_path(schema.path_of(self._places.projects, index["project"]))
            if path in self._newer:
                return False
            problems: list[str] = []
            try:
                with closing(parts.gathering(path, index["project"])) as target, target:
                    target.execute("BEGIN IMMEDIATE")
                    files = merging.take_runs(target, copy, index["runs"], problems)
                    merging.end_silent(target, copy, is_silent)
                self._link(files, copy, index["project"])
                name = index.get("artifacts", {}).get("name", "")
                with closing(parts.gathering(path, index["project"])) as target, target:
                    target.execute("BEGIN IMMEDIATE")  # what is wrong with these keeps no run
                    files = artifact_parts.take(target, copy.key, name, os.path.join(copy.folder, name))
                self._link(files, copy, index["project"])
                if problems:
                    raise StoreError("; ".join(problems[:_MOST_NAMED]))
                return True
            except sqlite3.Error as error:
                if not schema.is_damage(error):
                    raise
                schema.remove(path)
                self._is_void = True
                raise StoreError(f"{path} was damaged ({error}); it is made anew with the next command.") from error
            except (FileNotFoundError, StoreError):
                if attempt == _TRIES - 1 or directory.read_index(copy.folder) == index:
                    raise  # else it was copied again while it was read
        return False

    def _link(self, files: list[tuple[str, str]], copy: Copy, project: str) -> None:
        _link_files(files, copy, blobs.of_others(blobs.folder_of(self._places.blobs, project)))

    def _databases(self) -> list[str]:
        return [os.path.join(self._folder, name) for name in os.listdir(self._folder) if name.endswith(schema.SUFFIX)]

    def _are_readable(self) -> bool:
        """Whether everything that was taken in still is what the state says; what cannot be read is removed. After the
        machine has gone down, more may be written than is there."""
        is_whole = directory.read_text(os.path.join(self._folder, _BOOT)) == boot_id()
        for path in self._databases():
            try:
                with closing(sqlite3.connect(path, timeout=5)) as target:
                    schema.check_version(target, path)
                    additions.check(target, path)
                    if not {*additions.known().split()} <= {*parts.known_of(target).split()}:
                        raise StoreTooOld(f"{path} was made by a trackio that does not know all of what is copied")
            except StoreTooNew as error:
                self._newer.add(path)
                self._problems.append(f"{error} Until then, what other hosts copied of this project is not shown.")
            except StoreTooOld:
                schema.remove(path)
                is_whole = False
            except (sqlite3.DatabaseError, StoreError) as error:
                if isinstance(error, sqlite3.Error) and not schema.is_damage(error):
                    raise
                self._problems.append(f"{path} was damaged ({error}); it is made anew.")
                schema.remove(path)
                is_whole = False
        with open(os.path.join(self._folder, _BOOT), "w", encoding="utf-8", opener=private) as file:
            file.write(boot_id())
        return is_whole

    def _forget_all_but(self, databases: set[str]) -> None:
        """Removes what was taken in of databases that are not there any more."""
        for path in {*self._databases()} - self._newer:
            with closing(sqlite3.connect(path, isolation_level=None, timeout=5)) as target, target:
                target.execute("BEGIN IMMEDIATE")
                known = {row[0].rpartition("/")[0] for row in target.execute(merging.OWNERS)}
                for key in (known | artifact_parts.copies(target)) - databases:
                    merging.take_runs(target, Copy("", key, ""), {}, [])
                    artifact_parts.take(target, key, "", "")
                sql = "SELECT 1 FROM runs UNION ALL SELECT 1 FROM versions LIMIT 1"
                is_empty = target.execute(sql).fetchone() is None
            if is_empty:
                schema.remove(path)
                project = os.path.basename(path).removesuffix(schema.SUFFIX)
                shutil.rmtree(os.path.join(self._folder, "blobs", project), ignore_errors=True)


def _link_files(files: list[tuple[str, str]], copy: Copy, folder: str) -> None:
    """Leads to the files of another host's values; they are read where they lie."""
    for digest, suffix in files:
        link = blobs.path_in(folder, digest, suffix)
        there = blobs.path_in(os.path.join(copy.folder, directory.FILES), digest, suffix)
        if os.path.islink(link):
            if os.readlink(link) == there or os.path.exists(link):
                continue
            os.unlink(link)  # it led to a host that is gone
        make_private(os.path.dirname(link))
        os.symlink(there, link)


# -- the shared folder -------------------------------------------------------------------------------------------------


def _stores(shared: str, problems: list[str]) -> list[_Store]:
    """The stores of all hosts. Of one that lies under two names, because its host got another, that which lives."""
    newest: dict[str, _Store] = {}
    for host in _folders(shared):
        try:
            for name in _folders(os.path.join(shared, host)):
                path = os.path.join(shared, host, name)
                alive = os.path.join(path, directory.ALIVE)
                if not os.path.exists(alive):
                    continue  # it is being made
                store = _Store(host, path, directory.read_text(alive), os.stat(alive).st_mtime)
                if name not in newest or newest[name].alive_at < store.alive_at:
                    newest[name] = store
        except (OSError, ValueError) as error:
            problems.append(f"What {host} copied cannot be read: {error}")
    return list(newest.values())


def _keys(store: _Store) -> list[str]:
    """Of its databases."""
    return [f"{os.path.basename(store.path)}/{database}" for database in _folders(store.path)]


def _is_gone(path: str) -> bool:
    """Whether a store was removed; one that cannot be looked at was not."""
    try:
        os.stat(path)
    except FileNotFoundError:
        return True
    except OSError:
        pass
    return False


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
    replace(os.path.join(folder, _STATE), json.dumps(state).encode())
