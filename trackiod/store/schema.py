"""The layout of a project's database, and opening one. Knows SQLite and nothing of streams' bytes.

Points arrive in `batches`, as the streams sent them; what is known of runs and series is derived from them as
they are committed, in the same transaction. Later they are folded: `axes` and `chunks` take the place of batches.
"""

from __future__ import annotations

import functools
import os
import sqlite3
from urllib.parse import quote

from trackio.names import derived_id
from trackiod.errors import StoreDamaged, StoreError, StoreTooNew

VERSION = 2
SUFFIX = ".db"
_BUSY_SECONDS = 1.0
_DAMAGES = {sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_FORMAT, sqlite3.SQLITE_NOTADB}

_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;

CREATE TABLE runs (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    name_rank INTEGER NOT NULL,  -- the rank whose name it is: the lowest that came
    run_group TEXT,
    created_ns INTEGER NOT NULL,
    resumes INTEGER NOT NULL     -- it asked to go on with the newest earlier run of its name
) WITHOUT ROWID;
CREATE INDEX runs_by_name ON runs (name, created_ns, id, resumes);
CREATE INDEX runs_by_time ON runs (created_ns, id);
CREATE INDEX runs_going_on ON runs (name) WHERE resumes;

CREATE TABLE streams (
    id TEXT PRIMARY KEY,
    run TEXT NOT NULL,
    role TEXT NOT NULL,          -- rank or worker
    rank INTEGER NOT NULL,
    attempt TEXT NOT NULL,       -- equal in the ranks of one start of the job
    process TEXT NOT NULL,       -- equal in the streams of one process
    started_ns INTEGER NOT NULL,
    world_size INTEGER NOT NULL,
    meta BLOB NOT NULL,          -- msgpack: all facts of HELLO
    committed INTEGER NOT NULL,  -- everything below this offset is stored
    records INTEGER NOT NULL DEFAULT 0,
    points INTEGER NOT NULL DEFAULT 0,
    refused_records INTEGER NOT NULL DEFAULT 0,
    refused_points INTEGER NOT NULL DEFAULT 0,
    last_ns INTEGER,             -- time of its last record
    state TEXT,                  -- null while it is open
    cause TEXT,
    ended_ns INTEGER,
    explicit INTEGER             -- 1: finish() was called, 0: the interpreter ended, null: neither
) WITHOUT ROWID;
CREATE INDEX streams_by_run ON streams (run, started_ns);
CREATE INDEX streams_open ON streams (run) WHERE state IS NULL;
CREATE INDEX streams_ended ON streams (ended_ns, run) WHERE state IS NOT NULL;

CREATE TABLE batches (
    id INTEGER PRIMARY KEY,
    stream TEXT NOT NULL,
    start INTEGER NOT NULL,
    end INTEGER NOT NULL,
    records INTEGER NOT NULL,
    data BLOB NOT NULL           -- records, as `trackio.record` lays them out
);
CREATE UNIQUE INDEX batches_by_stream ON batches (stream, start);

CREATE TABLE series (
    id INTEGER PRIMARY KEY,
    stream TEXT NOT NULL,
    name TEXT NOT NULL,
    points INTEGER NOT NULL,
    counted INTEGER NOT NULL,    -- of these, points whose step the process's counter gave
    first_step INTEGER NOT NULL,
    max_step INTEGER NOT NULL,
    last_step INTEGER NOT NULL,
    last_ns INTEGER NOT NULL,
    last BLOB NOT NULL,          -- msgpack: the last value logged
    ascending INTEGER NOT NULL,  -- 1: each step was higher than the one before, so all of its points show
    numbers INTEGER NOT NULL,    -- values that are numbers, NaN apart
    nans INTEGER NOT NULL,
    low,                         -- the least, greatest and total of the numbers
    high,
    total REAL
);
CREATE UNIQUE INDEX series_by_stream ON series (stream, name);

CREATE TABLE axes (
    id INTEGER PRIMARY KEY,      -- a stream's axes stand in the order of its offsets
    stream TEXT NOT NULL,
    start INTEGER NOT NULL,      -- offset of the first record
    count INTEGER NOT NULL,      -- records
    shown INTEGER NOT NULL,      -- of these, the last ones of their step
    first_step INTEGER NOT NULL, -- the lowest
    last_step INTEGER NOT NULL,  -- the highest
    first_ns INTEGER NOT NULL,   -- times of these two
    last_ns INTEGER NOT NULL,
    data BLOB NOT NULL,          -- offsets, steps, times, origins
    blocks BLOB                  -- first and last steps and times, counts; null if there is one block
);
CREATE INDEX axes_by_stream ON axes (stream, id);

CREATE TABLE chunks (
    id INTEGER PRIMARY KEY,
    series INTEGER NOT NULL,
    axis INTEGER NOT NULL,
    overlapped INTEGER NOT NULL, -- 1: a later chunk of the series hides some of its points, so its sums do not hold
    kind TEXT NOT NULL,          -- how the values are stored, see `codec`
    nans INTEGER,                -- sums over the points that show; null if they are no numbers
    low REAL,
    high REAL,
    total REAL,
    data BLOB NOT NULL,
    blocks BLOB                  -- the same sums, for each block
);
CREATE UNIQUE INDEX chunks_by_series ON chunks (series, axis);

CREATE TABLE clocks (
    stream TEXT NOT NULL,
    time_ns INTEGER NOT NULL,    -- wall clock and monotonic clock where the one jumped against the other
    monotonic_ns INTEGER NOT NULL
);

CREATE TABLE configs (
    stream TEXT NOT NULL,
    key TEXT NOT NULL,
    value BLOB NOT NULL,         -- msgpack
    PRIMARY KEY (stream, key)
) WITHOUT ROWID;

CREATE TABLE summaries (
    stream TEXT NOT NULL,
    key TEXT NOT NULL,
    value BLOB NOT NULL,         -- msgpack: what the user set
    PRIMARY KEY (stream, key)
) WITHOUT ROWID;

CREATE TABLE definitions (
    run TEXT NOT NULL,
    name TEXT NOT NULL,
    options BLOB NOT NULL,       -- msgpack: step_metric, reduce, summary, goal
    PRIMARY KEY (run, name)
) WITHOUT ROWID;

CREATE TABLE holes (
    stream TEXT NOT NULL,
    start INTEGER NOT NULL,
    end INTEGER NOT NULL,
    cause TEXT NOT NULL,
    at_ns INTEGER NOT NULL,
    PRIMARY KEY (stream, start)
) WITHOUT ROWID;
"""


def path_of(projects: str, project: str) -> str:
    """The database file of a project: named by an id, so any name is possible."""
    return os.path.join(projects, derived_id("project", project) + SUFFIX)


_MASTER = "SELECT CAST(name AS BLOB), CAST(sql AS BLOB) FROM sqlite_master ORDER BY 1"


@functools.cache
def _layout() -> list[tuple[bytes, bytes]]:
    """What SQLite itself says of our tables."""
    connection = sqlite3.connect(":memory:")
    connection.executescript(_TABLES)
    rows = connection.execute(_MASTER).fetchall()
    connection.close()
    return rows


def open_for_writing(path: str, project: str, store_id: str) -> sqlite3.Connection:
    """The one connection that writes, created with the database if need be. Raises StoreError or
    sqlite3.Error (a full disk)."""
    if not os.path.exists(path):
        _create(path, project, store_id)
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=_BUSY_SECONDS)
    try:
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA journal_size_limit = 67108864")
        check_version(connection, path)
        project_of(connection, path)  # what says nothing to a reader must not be written on
        if connection.execute(_MASTER).fetchall() != _layout():
            raise StoreDamaged(f"{path} is damaged (its tables are not those of layout {VERSION}).")
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        connection.close()
        raise _named(error, path) from error
    except StoreError:
        connection.close()
        raise
    return connection


def open_for_reading(path: str) -> sqlite3.Connection:
    """A connection that cannot write; also for a copy on a read-only medium. Raises StoreError."""
    last: sqlite3.Error | UnicodeDecodeError | None = None
    for options in ("mode=ro", "mode=ro&immutable=1"):
        if options != "mode=ro" and os.path.exists(path + "-wal") and os.path.getsize(path + "-wal"):
            break  # an immutable view would miss what the log holds
        try:
            connection = sqlite3.connect(f"file:{quote(path)}?{options}", uri=True, isolation_level=None, timeout=10)
            check_version(connection, path)
            return connection
        except (sqlite3.Error, UnicodeDecodeError) as error:
            last = error
    assert last is not None
    if (
        os.path.exists(path + "-wal")
        and not os.path.exists(path + "-shm")
        and not os.access(os.path.dirname(path), os.W_OK)
    ):
        raise StoreError(
            f"{path} was copied while it was written, and cannot be read without its -shm file where nothing can be"
            " written: copy all three files, or make the copy writable."
        ) from last
    raise _named(last, path) from last


def project_of(connection: sqlite3.Connection, path: str) -> str:
    """The name of the project in a database. Raises StoreDamaged or sqlite3.Error."""
    row = connection.execute("SELECT value FROM meta WHERE key = 'project'").fetchone()
    if row is None:
        raise StoreDamaged(f"{path} is damaged (it does not say which project it is).")
    return str(row[0])


def check_version(connection: sqlite3.Connection, path: str) -> None:
    """Raises StoreTooNew for a database of a later layout."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > VERSION:
        raise StoreTooNew(
            f"{path} was written by a newer trackio (layout {version}, this one knows {VERSION}): upgrade trackio."
        )
    if 0 < version < VERSION:
        raise StoreError(
            f"{path} was written by a trackio from before its first release (layout {version}); it cannot be read."
        )
    if version == 0:
        raise StoreDamaged(f"{path} is not a trackio store.")


def _create(path: str, project: str, store_id: str) -> None:
    """Makes the database under another name first: a reader finds it whole or not at all."""
    new = f"{path}.new"
    for leftover in (new, f"{new}-wal", f"{new}-shm"):
        if os.path.exists(leftover):
            os.unlink(leftover)
    connection = sqlite3.connect(new, isolation_level=None)
    try:
        connection.execute("PRAGMA page_size = 4096")
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript(f"BEGIN; {_TABLES} PRAGMA user_version = {VERSION}; COMMIT;")
        connection.executemany("INSERT INTO meta VALUES (?, ?)", [("project", project), ("store", store_id)])
    finally:
        connection.close()
    os.rename(new, path)


def is_damage(error: sqlite3.Error) -> bool:
    """Whether SQLite's complaint is about the file's content, which lasts; a full disk or a lock may pass. That our
    own SQL means nothing (SQLITE_ERROR) is so only where the description of the tables is damaged."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGES


def _named(error: sqlite3.Error | UnicodeDecodeError, path: str) -> Exception:
    """SQLite's complaint as ours where it is about the file's content; one that cannot be decoded quotes it."""
    text = str(error)
    if isinstance(error, UnicodeDecodeError) or is_damage(error):
        return StoreDamaged(f"{path} is damaged ({text}).")
    if "full" in text or "I/O" in text:
        return error
    return StoreError(f"{path} cannot be opened ({text}).")
