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
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import quote

from trackio.places import Places, make_private
from trackiod.errors import StoreError
from trackiod.sinks.directory import ALIVE, CHANGED, FILES
from trackiod.store import removal, schema

_FIRST_ID = 1 << 40
"""of what comes from elsewhere: this host's own ids are below"""
_SILENT_SECONDS = 300.0
"""a host that copied nothing for so long is not there any more"""
_STATE = "state.json"
_PATIENCE_SECONDS = 5.0
_OF_STREAM = ("clocks", "configs", "summaries", "holes", "files", "alerts", "system", "batches")


class _Store(NamedTuple):
    """One host's store in the shared folder."""

    host: str
    path: str
    changed_ns: int
    alive_at: float


def refresh(where: Places) -> list[str]:
    """Takes in what other hosts have copied since the last time. Returns a sentence for what could not be."""
    if not where.shared or not os.path.isdir(where.shared):
        return []
    problems: list[str] = []
    folder = schema.elsewhere(where.projects)
    try:
        make_private(folder)
        with _alone(folder) as is_alone:
            if is_alone:
                _take_in(where, folder, problems)
    except (OSError, sqlite3.Error) as error:
        problems.append(f"What other hosts copied to {where.shared} cannot be taken in: {error}")
    return problems


def _take_in(where: Places, folder: str, problems: list[str]) -> None:
    state = _read_state(folder)
    own = _own_store(where)
    for store in _stores(where.shared):
        if os.path.basename(store.path) == own:
            continue
        is_silent = time.time() - store.alive_at > _SILENT_SECONDS
        before, known = state.get(store.path) or [0, False], [store.changed_ns, is_silent]
        if before == known:
            continue
        for project in sorted({*_folders(store.path), *_taken(folder)} - {FILES}):
            try:
                _take_project(folder, store, project, is_silent=is_silent, is_back=before[1] and not is_silent)
            except (sqlite3.Error, OSError, StoreError) as error:
                problems.append(f"A copy of {store.host}'s in {store.path} cannot be read: {error}")
                known = []
        state[store.path] = known
    _write_state(folder, state)


def _take_project(folder: str, store: _Store, project: str, *, is_silent: bool, is_back: bool) -> None:
    base, name = os.path.join(store.path, project), os.path.basename(store.path)
    target = _database(folder, project, "") if project in _taken(folder) else None
    is_empty = False
    try:
        runs = _folders(base)
        for run in runs:
            parts = sorted(part for part in os.listdir(os.path.join(base, run)) if part.endswith(schema.SUFFIX))
            for part in parts:
                path = os.path.join(base, run, part)
                with _reading(path) as source:
                    if target is None:
                        target = _database(folder, project, schema.project_of(source, path))
                    identity = "" if is_back else _identity(path)
                    with target:
                        _take_part(source, target, f"{name}/{run}", part, identity, is_last=part == parts[-1])
        if target is not None:
            _forget_deleted(target, name, runs)
            _link_files(os.path.join(store.path, FILES, project), os.path.join(folder, "blobs", project))
            if is_silent:
                _end_silent(target, store)
            is_empty = target.execute("SELECT 1 FROM runs LIMIT 1").fetchone() is None
    finally:
        if target is not None:
            target.close()
    if is_empty:
        os.unlink(os.path.join(folder, project + schema.SUFFIX))


def _take_part(
    source: sqlite3.Connection, target: sqlite3.Connection, run: str, part: str, identity: str, *, is_last: bool
) -> None:
    """Puts a part of a run in the place of what was taken from it before; what is as it was is not read again."""
    key = f"part {run}/{part}"
    row = target.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    before = json.loads(row[0]) if row else ["", 0, 0]
    if before[0] == identity != "":
        return
    _, low, high = before
    target.execute("DELETE FROM chunks WHERE axis > ? AND axis <= ?", (low, high))
    target.execute("DELETE FROM axes WHERE id > ? AND id <= ?", (low, high))
    streams = [row[0] for row in source.execute("SELECT id FROM streams")]
    series = {}
    for stream in streams:
        if is_last:
            _take_stream(source, target, stream)
            target.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (f"stream {stream}", run))
        series.update(_take_series(source, target, stream, is_newest=is_last))
    low = _next_id(target, "axes") - 1
    axes = {}
    for row in _rows(source, "SELECT * FROM axes ORDER BY id"):
        axes[row["id"]] = new = _next_id(target, "axes")
        _insert(target, "axes", {**row, "id": new})
    for row in _rows(source, "SELECT * FROM chunks"):
        place = {"id": _next_id(target, "chunks"), "series": series[row["series"]], "axis": axes[row["axis"]]}
        _insert(target, "chunks", {**row, **place})
    if is_last:
        for row in _rows(source, "SELECT * FROM runs"):
            _take_run(target, row)
        for row in _rows(source, "SELECT * FROM definitions"):
            _insert(target, "definitions", row)
    high = _next_id(target, "axes") - 1
    target.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, json.dumps([identity, low, high])))


def _take_stream(source: sqlite3.Connection, target: sqlite3.Connection, stream: str) -> None:
    for table in _OF_STREAM:
        target.execute(f"DELETE FROM {table} WHERE stream = ?", (stream,))
        for row in _rows(source, f"SELECT * FROM {table} WHERE stream = ?", stream):
            if table == "batches":
                row["id"] = _next_id(target, "batches")
            _insert(target, table, row)
    for row in _rows(source, "SELECT * FROM streams WHERE id = ?", stream):
        _insert(target, "streams", row)


def _take_series(
    source: sqlite3.Connection, target: sqlite3.Connection, stream: str, *, is_newest: bool
) -> dict[int, int]:
    """The new ids of a stream's series, by their ids in the part."""
    known = dict(target.execute("SELECT name, id FROM series WHERE stream = ?", (stream,)).fetchall())
    ids = {}
    for row in _rows(source, "SELECT * FROM series WHERE stream = ?", stream):
        new = known.get(row["name"]) or _next_id(target, "series")
        ids[row["id"]] = new
        if is_newest or row["name"] not in known:
            _insert(target, "series", {**row, "id": new})
    return ids


def _take_run(target: sqlite3.Connection, row: dict[str, Any]) -> None:
    """A run that ran on several hosts has the name that its lowest rank gave, and began when its first process did."""
    known = target.execute("SELECT name_rank, created_ns FROM runs WHERE id = ?", (row["id"],)).fetchone()
    if known is not None:
        created_ns = min(known[1], row["created_ns"])
        if known[0] < row["name_rank"]:
            target.execute("UPDATE runs SET created_ns = ? WHERE id = ?", (created_ns, row["id"]))
            return
        row["created_ns"] = created_ns
    _insert(target, "runs", row)


def _forget_deleted(target: sqlite3.Connection, store: str, runs: list[str]) -> None:
    """Removes the runs of a store that are not there any more."""
    with target:
        known = {row[0] for row in target.execute("SELECT DISTINCT value FROM meta WHERE key LIKE 'stream %'")}
        for run in (run for run in known if run.partition("/")[0] == store and run.partition("/")[2] not in runs):
            for stream in _streams_of(target, run):
                removal.delete_stream(target, stream)
            target.execute("DELETE FROM meta WHERE value = ? OR key LIKE ?", (run, f"part {run}/%"))
        target.execute("DELETE FROM runs WHERE NOT EXISTS (SELECT 1 FROM streams s WHERE s.run = runs.id)")


def _link_files(source: str, folder: str) -> None:
    """Leads to the files of another host's values; they are read where they lie."""
    for ab in _folders(source):
        make_private(os.path.join(folder, ab))
        for name in os.listdir(os.path.join(source, ab)):
            link = os.path.join(folder, ab, name)
            if not os.path.exists(link) and not name.endswith(".new"):
                if os.path.islink(link):
                    os.unlink(link)
                os.symlink(os.path.join(source, ab, name), link)


def _end_silent(target: sqlite3.Connection, store: _Store) -> None:
    """Nothing was heard of a host: what ran there is lost. If it comes back, its parts are taken in anew."""
    with target:
        target.execute(
            "UPDATE streams SET state = 'lost', cause = ?, ended_ns = coalesce(last_ns, started_ns) WHERE state IS NULL"
            " AND EXISTS (SELECT 1 FROM meta m WHERE m.key = 'stream ' || streams.id AND m.value LIKE ?)",
            (f"nothing was heard of {store.host} any more", f"{os.path.basename(store.path)}/%"),
        )


def _streams_of(target: sqlite3.Connection, run: str) -> list[str]:
    rows = target.execute("SELECT key FROM meta WHERE value = ? AND key LIKE 'stream %'", (run,))
    return [str(row[0]).removeprefix("stream ") for row in rows]


# -- files -----------------------------------------------------------------------------------------------------


def _stores(shared: str) -> Iterator[_Store]:
    for host in _folders(shared):
        for store in _folders(os.path.join(shared, host)):
            path = os.path.join(shared, host, store)
            try:
                changed = os.stat(os.path.join(path, CHANGED)).st_mtime_ns
                yield _Store(host, path, changed, os.stat(os.path.join(path, ALIVE)).st_mtime)
            except OSError:
                continue  # it is being made


def _taken(folder: str) -> set[str]:
    """The projects of which something was taken in."""
    return {name.removesuffix(schema.SUFFIX) for name in os.listdir(folder) if name.endswith(schema.SUFFIX)}


def _database(folder: str, project: str, name: str) -> sqlite3.Connection:
    """The database that a project's parts are put together in."""
    path = os.path.join(folder, project + schema.SUFFIX)
    if not os.path.exists(path):
        schema.make_part(f"{path}.new", name).close()
        os.rename(f"{path}.new", path)
    connection = sqlite3.connect(path, isolation_level="IMMEDIATE", timeout=_PATIENCE_SECONDS)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = OFF")  # it can be made anew
    return connection


@contextmanager
def _reading(path: str) -> Iterator[sqlite3.Connection]:
    """A part, which nobody changes."""
    connection = sqlite3.connect(f"file:{quote(path)}?mode=ro&immutable=1", uri=True, isolation_level=None)
    try:
        schema.check_version(connection, path)
        yield connection
    finally:
        connection.close()


@contextmanager
def _alone(folder: str) -> Iterator[bool]:
    """Whether nobody else takes anything in; waits for them a little, and then need not do it."""
    fd = os.open(os.path.join(folder, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        is_first = True
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                yield is_first
                return
            except BlockingIOError:
                is_first = False
                if time.monotonic() > deadline:
                    yield False
                    return
                time.sleep(0.02)
    finally:
        os.close(fd)


def _own_store(where: Places) -> str:
    try:
        with open(os.path.join(where.live, "store.id"), encoding="utf-8") as file:
            return file.read().strip()
    except OSError:
        return ""


def _identity(path: str) -> str:
    info = os.stat(path)
    return f"{info.st_mtime_ns} {info.st_size} {info.st_ino}"


def _folders(path: str) -> list[str]:
    try:
        return sorted(entry.name for entry in os.scandir(path) if entry.is_dir())
    except OSError:
        return []


def _read_state(folder: str) -> dict[str, Any]:
    try:
        with open(os.path.join(folder, _STATE), encoding="utf-8") as file:
            state = json.load(file)
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def _write_state(folder: str, state: dict[str, Any]) -> None:
    path = os.path.join(folder, _STATE)
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        json.dump(state, file)
    os.rename(f"{path}.new", path)


# -- rows ------------------------------------------------------------------------------------------------------


def _rows(source: sqlite3.Connection, sql: str, *values: Any) -> Iterator[dict[str, Any]]:
    cursor = source.execute(sql, values)
    columns = [column[0] for column in cursor.description]
    for row in cursor:
        yield dict(zip(columns, row, strict=True))


def _insert(target: sqlite3.Connection, table: str, row: dict[str, Any]) -> None:
    columns = ", ".join(f'"{column}"' for column in row)
    marks = ",".join("?" * len(row))
    target.execute(f"INSERT OR REPLACE INTO {table} ({columns}) VALUES ({marks})", tuple(row.values()))


def _next_id(target: sqlite3.Connection, table: str) -> int:
    (highest,) = target.execute(f"SELECT max(id) FROM {table}").fetchone()
    return max(_FIRST_ID, (highest or 0) + 1)
