"""What other hosts have copied into the shared folder (`trackiod.sinks.directory`), taken in on this one.

Their parts are put together in a database for each project beside this host's own store, in the same layout; readers
see both as one. It can be made anew from the parts at any time, and only what has changed is read again.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import sqlite3
import stat
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from typing import Any, NamedTuple

from trackio import places, settings, trust
from trackio.names import HOST
from trackio.places import Places, boot_id, make_private, private, replace
from trackio.staging import clean_suffix
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
_MOST_DATABASES = 10_000
"""of one store: one for each project"""
_MOST_NAMED = 3
"""runs of a database that cannot be taken in, in one sentence"""


class _Store(NamedTuple):
    """One host's store in the shared folder."""

    host: str
    path: str
    revision: str
    alive_at: float
    uid: int = -1
    """whose it is"""
    owner: int | None = None
    """the same, if it is another user's"""


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
        found = _stores(shared, _own_uids(self._places), self._state, self._problems)
        stores = [store for store in found if os.path.basename(store.path) != own]
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
            copy = Copy(store.host, key, os.path.join(store.path, key.rpartition("/")[2]), store.owner)
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
            index = directory.read_index(copy.folder, copy.owner)
            if not index["project"]:
                return True  # it is being made
            if copy.owner is not None:
                if index["project"] == HOST:
                    return True  # samples of hosts are joined to runs by what they say; another user's are not
                copy = copy._replace(own_runs=self._own_runs(index["project"]))
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
                # another user's artifacts are not taken: `model:latest` must not come to be somebody else's file
                name = index.get("artifacts", {}).get("name", "") if copy.owner is None else ""
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
                if attempt == _TRIES - 1 or directory.read_index(copy.folder, copy.owner) == index:
                    raise  # else it was copied again while it was read
        return False

    def _own_runs(self, project: str) -> frozenset[str]:
        """The runs of a project that this user logged on this host. Raises sqlite3.Error or StoreError."""
        path = schema.path_of(self._places.projects, project)
        if not os.path.exists(path):
            return frozenset()
        with closing(schema.connect_for_reading(path)) as own:
            return frozenset(row[0] for row in own.execute("SELECT id FROM runs"))

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
        if not {*digest} <= {*"0123456789abcdef"} or suffix != clean_suffix(suffix):
            continue  # it would lead elsewhere
        link = blobs.path_in(folder, digest, suffix)
        there = blobs.path_in(os.path.join(copy.folder, directory.FILES), digest, suffix)
        if copy.owner is not None and not _is_plain(there, copy.owner):
            continue
        if os.path.islink(link):
            if os.readlink(link) == there or os.path.exists(link):
                continue
            os.unlink(link)  # it led to a host that is gone
        make_private(os.path.dirname(link))
        os.symlink(there, link)


# -- the shared folder -------------------------------------------------------------------------------------------------


def _is_plain(path: str, uid: int) -> bool:
    """Whether a file is no link and that user's."""
    try:
        info = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISREG(info.st_mode) and info.st_uid in (uid, 0)


def _own_uids(where: Places) -> frozenset[int]:
    """Under which numbers this user's files lie in the shared folder: a file server may have one of its own."""
    try:
        return frozenset((os.geteuid(), os.lstat(directory.own_folder(where)).st_uid))
    except OSError:
        return frozenset((os.geteuid(),))


def _stores(shared: str, ours: frozenset[int], state: dict[str, Any], problems: list[str]) -> list[_Store]:
    """The stores of all hosts and users. Of one that lies under two names, because its host got another, that which
    lives; of one that several users say is theirs, this user's, else that which was taken in before, else none."""
    newest: dict[str, _Store] = {}
    claims: dict[str, set[int]] = {}
    for host in _folders(shared):
        try:
            names = _folders(os.path.join(shared, host))
        except OSError as error:
            if not _is_private(os.path.join(shared, host), ours):
                problems.append(f"What {host} copied cannot be read: {error}")
            continue
        for name in names:
            try:
                store = _store(host, os.path.join(shared, host, name), ours)
            except (OSError, ValueError) as error:
                problems.append(f"What {host} copied cannot be read: {error}")
                continue
            if store is not None:
                claims.setdefault(name, set()).add(store.uid)
                before = newest.get(name)
                if before is None or _rank(store, state) > _rank(before, state):
                    newest[name] = store
    for name, uids in claims.items():
        store = newest[name]
        if len(uids) > 1 and store.owner is not None and store.path not in state:
            problems.append(f"Several users say that the copy {name} is theirs ({store.path}); none is taken in.")
            del newest[name]
    return list(newest.values())


def _store(host: str, path: str, ours: frozenset[int]) -> _Store | None:
    """What lies in a folder that may be a store's; None if it is being made, or is another user's and not for us.
    Raises OSError or ValueError."""
    info = os.lstat(path)
    owner = None if info.st_uid in ours else info.st_uid
    name, alive = os.path.basename(path), os.path.join(path, directory.ALIVE)
    if owner is not None and not (name.isascii() and name.isalnum()):
        return None  # it is part of a pattern in what is remembered of copies
    try:
        text = directory.read_text(alive, owner)
        return _Store(host.partition(directory.OF_USER)[0], path, text, os.lstat(alive).st_mtime, info.st_uid, owner)
    except FileNotFoundError:
        return None
    except PermissionError as error:
        if owner is None or error.errno != errno.EACCES:
            raise
        return None


def _rank(store: _Store, state: dict[str, Any]) -> tuple[bool, bool, float]:
    return store.owner is None, store.path in state, store.alive_at


def _is_private(path: str, ours: frozenset[int]) -> bool:
    """Whether a folder is another user's who lets nobody look into it."""
    try:
        return os.lstat(path).st_uid not in ours and not os.access(path, os.R_OK | os.X_OK)
    except OSError:
        return False


def _keys(store: _Store) -> list[str]:
    """Of its databases."""
    names = [name for name in _folders(store.path) if store.owner is None or (name.isascii() and name.isalnum())]
    return [f"{os.path.basename(store.path)}/{name}" for name in names[:_MOST_DATABASES]]


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
    for name in ("clock", f"clock{directory.OF_USER}{os.geteuid()}"):  # the first one may be another user's
        try:
            fd = trust.open_file(os.path.join(shared, name), os.O_WRONLY | os.O_CREAT)
        except OSError:
            continue
        try:
            os.utime(fd)
            return os.fstat(fd).st_mtime
        except OSError:
            continue
        finally:
            os.close(fd)
    return time.time()


def _folders(path: str) -> Iterable[str]:
    """The folders in a folder, sorted. Raises OSError: what cannot be listed is not empty."""
    return sorted(entry.name for entry in os.scandir(path) if entry.is_dir(follow_symlinks=False))


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
