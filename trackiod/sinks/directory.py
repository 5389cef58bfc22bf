"""The `dir://` sink: copies this host's runs, as plain files, into a folder that all hosts see.

    <shared>/<host>/<store>/alive, changed              touched every minute, and when something below has changed
    <shared>/<host>/<store>/<project>/<run>/000000.db   parts of a run: small databases in the layout of a project's
    <shared>/<host>/<store>/files/<project>/ab/abcd...  pictures and other files of its values, by content

A part is written under another name and renamed, and never changed but for the last one, which is replaced until its
columns are large enough; so whoever reads finds each whole, and needs no lock of SQLite's on a network. The last part
also holds what is not folded yet, and what is known of the run now. Each can be made again from this host's store, so
a part that is written twice, or a cursor that is lost, harms nothing.

Runs in a child (`python -m trackiod copy`): a file server that hangs costs nobody else anything.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sqlite3
import sys
from typing import Any, NamedTuple

from trackio import names, places, settings
from trackio.places import Places, make_private
from trackiod.store import removal, schema
from trackiod.store.reader import own_paths as paths

CHANGED, ALIVE, FILES = "changed", "alive", "files"
_CURSOR = "cursor"
_LOCK = "copy.lock"
_MEMO = "copied.json"
_MOST_FILE_BYTES = 64 << 20
"""a larger file of a value stays on its host"""
_PART_BYTES = 8 << 20
"""of columns, from which on a part is not written any more"""


class Cursor(NamedTuple):
    """How far a run is copied."""

    number: int = 0
    """of its last part"""
    after_axis: int = 0
    """what earlier parts hold up to"""
    token: str = ""
    """what the last part was made of"""


def main() -> int:
    """Copies what has changed. 0 when everything is there; else the reason stands in the last line of stderr."""
    ours, _ = settings.of_this_process()
    where = places.find(ours.data_dir, ours.spool_dir, ours.shared_dir)
    try:
        copy_out(where)
    except (OSError, sqlite3.Error) as error:
        sys.stderr.write(f"{where.shared} cannot be written: {getattr(error, 'strerror', None) or error}\n")
        return 1
    return 0


def copy_out(where: Places) -> int:
    """Copies every run that has changed; returns how many. One at a time: waits for another. Raises OSError or
    sqlite3.Error."""
    with open(os.path.join(where.live, _LOCK), "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _copy_out(where)


def _copy_out(where: Places) -> int:
    own = own_folder(where)
    make_private(own)
    copied = 0
    projects = set()
    before = _memo(where) if os.path.exists(os.path.join(own, CHANGED)) else {}
    now: dict[str, dict[str, str]] = {}
    for path in paths(where.projects):
        project = os.path.basename(path).removesuffix(schema.SUFFIX)
        projects.add(project)
        with _reading(path) as source:
            runs = now[project] = _tokens(source)
            if runs != before.get(project):
                _copy_files(source, os.path.join(where.blobs, project), os.path.join(own, FILES, project))
                folder = os.path.join(own, project)
                copied += _copy_project(source, runs, before.get(project, {}), folder, where.live)
    for name in set(_folders(own)) - projects - {FILES}:  # the project was deleted
        shutil.rmtree(os.path.join(own, FILES, name), ignore_errors=True)
        shutil.rmtree(os.path.join(own, name), ignore_errors=True)
        copied += 1
    if copied:
        _touch(os.path.join(own, CHANGED))
    _touch(os.path.join(own, ALIVE))
    _write(os.path.join(where.live, _MEMO), json.dumps([own, now]))
    return copied


def own_folder(where: Places) -> str:
    """This host's and store's folder among those of all hosts."""
    with open(os.path.join(where.live, "store.id"), encoding="utf-8") as file:
        store = file.read().strip()
    return os.path.join(where.shared, os.uname().nodename, store)


def _memo(where: Places) -> dict[str, dict[str, str]]:
    """What was copied the last time, so that what has not changed since costs the file server nothing."""
    try:
        with open(os.path.join(where.live, _MEMO), encoding="utf-8") as file:
            folder, tokens = json.load(file)
    except (OSError, ValueError):
        return {}
    return tokens if folder == own_folder(where) else {}


def _copy_files(source: sqlite3.Connection, blobs: str, folder: str) -> None:
    """Copies the files of values that are not too large, each once, and removes those that nothing speaks of."""
    rows = source.execute(
        "SELECT DISTINCT digest, suffix FROM files WHERE state = 'kept' AND artifact IS NULL AND size <= ?",
        (_MOST_FILE_BYTES,),
    )
    wanted = {os.path.join(digest[:2], digest + suffix) for digest, suffix in rows}
    there = {os.path.join(ab, name) for ab in _folders(folder) for name in os.listdir(os.path.join(folder, ab))}
    for name in sorted(wanted - there):
        if os.path.exists(os.path.join(blobs, name)):
            make_private(os.path.dirname(os.path.join(folder, name)))
            _place(os.path.join(blobs, name), os.path.join(folder, name))
    for name in there - wanted:
        os.unlink(os.path.join(folder, name))


def _copy_project(
    source: sqlite3.Connection, runs: dict[str, str], before: dict[str, str], folder: str, live: str
) -> int:
    known = {names.derived_id("run", run): run for run in runs}
    copied = 0
    for name in set(_folders(folder)) - known.keys():
        shutil.rmtree(os.path.join(folder, name), ignore_errors=True)  # the run was deleted
        copied += 1
    for name, run in known.items():
        if runs[run] != before.get(run):
            copied += _copy_run(source, run, runs[run], os.path.join(folder, name), live)
    return copied


def _tokens(source: sqlite3.Connection) -> dict[str, str]:
    """What changes whenever a run does, by run."""
    rows = source.execute(
        "SELECT s.run, r.name, r.run_group, count(*), sum(s.committed), count(s.state), max(coalesce(s.ended_ns, 0)),"
        " sum(s.refused_points), (SELECT count(*) FROM files f JOIN streams t ON t.id = f.stream"
        " WHERE t.run = s.run AND f.state IS NOT NULL) FROM streams s JOIN runs r ON r.id = s.run GROUP BY s.run"
    )
    return {run: json.dumps(facts) for run, *facts in rows}


def _copy_run(source: sqlite3.Connection, run: str, token: str, folder: str, live: str) -> int:
    cursor = _cursor(folder)
    if token == cursor.token:
        return 0
    made = os.path.join(live, f".part-{os.getpid()}")
    try:
        last, columns = _make_part(source, made, run, cursor.after_axis)
        make_private(folder)
        _place(made, os.path.join(folder, f"{cursor.number:06d}{schema.SUFFIX}"))
    finally:
        if os.path.exists(made):
            os.unlink(made)
    is_full = columns > _PART_BYTES
    # of a full part the columns stay there; what is not folded, and what is known of the run, goes into the next too
    following = Cursor(cursor.number + 1, last, "") if is_full else cursor._replace(token=token)
    _write(os.path.join(folder, _CURSOR), json.dumps(following))
    return 1 + (_copy_run(source, run, token, folder, live) if is_full else 0)


def _make_part(source: sqlite3.Connection, path: str, run: str, after_axis: int) -> tuple[int, int]:
    """Writes a run, with the columns behind `after_axis`, into a database of its own. Returns its last axis, and the
    bytes of its columns."""
    row = source.execute("SELECT value FROM meta WHERE key = 'project'").fetchone()
    target = schema.make_part(path, str(row[0]))
    try:
        with target:
            source.execute("BEGIN")
            removal.copy(source, target, [run], after_axis=after_axis)
            (last,) = source.execute(
                "SELECT coalesce(max(a.id), 0) FROM axes a JOIN streams s ON s.id = a.stream WHERE s.run = ?", (run,)
            ).fetchone()
            (columns,) = target.execute("SELECT coalesce(sum(length(data)), 0) FROM chunks").fetchone()
    finally:
        if source.in_transaction:
            source.execute("ROLLBACK")
        target.close()
    return max(after_axis, int(last)), int(columns)


class _reading:
    """A connection that only reads this host's own file."""

    def __init__(self, path: str) -> None:
        self._connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None, timeout=10)

    def __enter__(self) -> sqlite3.Connection:
        return self._connection

    def __exit__(self, *_: object) -> None:
        self._connection.close()


def _cursor(folder: str) -> Cursor:
    try:
        with open(os.path.join(folder, _CURSOR), encoding="utf-8") as file:
            number, after_axis, token = json.load(file)
            return Cursor(int(number), int(after_axis), str(token))
    except (OSError, ValueError, TypeError):
        return Cursor()


def _place(made: str, target: str) -> None:
    """Copies a file to where it is whole or not at all."""
    new = f"{target}.new"
    shutil.copyfile(made, new)
    with open(new, "rb+") as file:
        os.fsync(file.fileno())
    os.rename(new, target)


def _write(target: str, text: str) -> None:
    with open(f"{target}.new", "w", encoding="utf-8") as file:
        file.write(text)
    os.rename(f"{target}.new", target)


def _touch(path: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write("")
    os.utime(path)


def _folders(path: str) -> list[Any]:
    try:
        return [entry.name for entry in os.scandir(path) if entry.is_dir()]
    except OSError:
        return []
