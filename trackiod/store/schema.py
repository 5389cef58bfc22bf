"""Opening a project's database, making one, and telling a damaged one. Knows SQLite and nothing of streams' bytes."""

from __future__ import annotations

import functools
import os
import re
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from urllib.parse import quote

from trackio.names import HOST, project_id
from trackiod.errors import StoreDamaged, StoreError, StoreTooNew
from trackiod.store.layout import IN_STREAMS, TABLES, VERSION

SUFFIX = ".db"
SIDES = ("", "-wal", "-shm")
"""of a database's files"""
_HOST_FILE = "host" + SUFFIX
_BUSY_SECONDS = 1.0
_DAMAGES = {sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_FORMAT, sqlite3.SQLITE_NOTADB}


def elsewhere(projects: str) -> str:
    """The folder of what other hosts have copied, taken in on this one (`trackiod.elsewhere`)."""
    return os.path.join(os.path.dirname(projects), "elsewhere")


def readable_path(projects: str, project: str) -> str:
    """The database file to read a project from: this host's, or what others copied if this one has none."""
    own = path_of(projects, project)
    others = others_path(own)
    return others if not os.path.exists(own) and os.path.exists(others) else own


def others_path(path: str) -> str:
    """What others copied of the same project, or of the samples of their nodes."""
    folder, name = os.path.split(path)
    return os.path.join(folder if name == _HOST_FILE else os.path.dirname(folder), "elsewhere", name)


def path_of(projects: str, project: str) -> str:
    """The database file of a project; of the node's samples, one beside the projects'."""
    if project == HOST:
        return os.path.join(os.path.dirname(projects), _HOST_FILE)
    return os.path.join(projects, project_id(project) + SUFFIX)


_MASTER = "SELECT CAST(name AS BLOB), CAST(coalesce(sql, '') AS BLOB) FROM sqlite_master ORDER BY 1"
_COMMENT = re.compile(rb"--[^\n]*")


def _tables_of(connection: sqlite3.Connection) -> list[tuple[bytes, list[bytes]]]:
    """What SQLite itself says of the tables, but for comments."""
    return [(name, _COMMENT.sub(b"", sql).split()) for name, sql in connection.execute(_MASTER).fetchall()]


@functools.cache
def _layout() -> list[tuple[bytes, list[bytes]]]:
    """What it says of ours."""
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(TABLES)
        return _tables_of(connection)


def open_for_writing(path: str, project: str, store_id: str) -> sqlite3.Connection:
    """The one connection that writes, created with the database if need be. Raises StoreError or
    sqlite3.Error (a full disk)."""
    if not os.path.exists(path):
        _create(path, project, store_id)
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=_BUSY_SECONDS)
    try:
        with closed_if_it_fails(connection):
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA journal_size_limit = 67108864")
            check_version(connection, path)
            project_of(connection, path)  # what says nothing to a reader must not be written on
            if _tables_of(connection) != _layout():
                raise StoreDamaged(f"{path} is damaged (its tables are not those of layout {VERSION}).")
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        raise _named(error, path) from error
    return connection


def open_for_reading(path: str, *, is_alone: bool = False) -> sqlite3.Connection:
    """A connection that cannot write; also for a copy on a read-only medium. `is_alone`: without what other hosts have
    copied of the same project. Raises StoreError."""
    last: sqlite3.Error | UnicodeDecodeError | None = None
    for is_immutable in (False, True):
        if is_immutable and os.path.exists(path + "-wal") and os.path.getsize(path + "-wal"):
            break  # an immutable view would miss what the log holds
        try:
            connection = connect_for_reading(path, is_immutable=is_immutable)
            return connection if is_alone else _joined(connection, path)
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


def others_stores(path: str) -> list[str]:
    """The stores of other hosts of which something of a project is taken in here."""
    others = others_path(path)
    if not os.path.exists(others) or os.path.abspath(others) == os.path.abspath(path):
        return []
    with closing(connect_for_reading(others)) as connection:
        keys = connection.execute("SELECT DISTINCT value FROM meta WHERE key GLOB 'stream *'").fetchall()
    stores = {str(key).partition("/")[0] for (key,) in keys}
    return sorted(store for store in stores if re.fullmatch(r"[0-9a-f]{12,64}", store))


def open_others(path: str, store: str) -> sqlite3.Connection:
    """What one of them stored of a project, as if there were nothing else. Raises StoreError."""
    connection = open_for_reading(others_path(path), is_alone=True)
    with closed_if_it_fails(connection):
        connection.execute(
            "CREATE TEMP VIEW streams AS SELECT * FROM main.streams WHERE id IN"
            f" (SELECT substr(key, 8) FROM main.meta WHERE key GLOB 'stream *' AND value GLOB '{store}/*')"
        )
    return connection


def connect_for_reading(path: str, *, is_immutable: bool = False) -> sqlite3.Connection:
    """This file alone, which is not written. `is_immutable`: nor does anybody else. Raises StoreTooNew or
    sqlite3.Error."""
    options = "mode=ro&immutable=1" if is_immutable else "mode=ro"
    connection = sqlite3.connect(f"file:{quote(path)}?{options}", uri=True, isolation_level=None, timeout=10)
    with closed_if_it_fails(connection):
        check_version(connection, path)
    return connection


@contextmanager
def closed_if_it_fails(connection: sqlite3.Connection) -> Iterator[None]:
    """For what must succeed before somebody owns a connection."""
    try:
        yield
    except BaseException:
        connection.close()
        raise


_ALIKE = "chunks versions aliases".split()
_BEGAN = "min(created_ns, coalesce((SELECT created_ns FROM {1}.runs b WHERE b.id = a.id), created_ns)) AS created_ns"
_RUNS = (
    f"SELECT id, name, name_rank, run_group, {_BEGAN}, resumes FROM {{0}}.runs a WHERE NOT EXISTS"
    " (SELECT 1 FROM {1}.runs b WHERE b.id = a.id AND b.name_rank {2} a.name_rank)"
)


def _joined(connection: sqlite3.Connection, path: str) -> sqlite3.Connection:
    """Where other hosts have copied runs of a project of ours, tables hold both. What was copied is made anew if it
    cannot be read (`trackiod.elsewhere`); this host's own does not wait for that."""
    others = others_path(path)
    if not os.path.exists(others) or os.path.samefile(others, path):
        return connection
    try:
        _join_others(connection, others)
    except sqlite3.Error:
        connection.close()
        connection = connect_for_reading(path)
    return connection


def _join_others(connection: sqlite3.Connection, others: str) -> None:
    """Temporary views over both take the tables' names. A run that ran on several hosts is one, and has the name that
    its lowest rank gave."""
    connection.execute("PRAGMA temp_store = MEMORY")
    connection.execute("ATTACH ? AS others", (f"file:{quote(others)}?mode=ro",))
    runs = f"{_RUNS.format('main', 'others', '<')} UNION ALL {_RUNS.format('others', 'main', '<=')}"
    connection.execute(f"CREATE TEMP VIEW runs AS {runs}")
    ours = "NOT IN (SELECT id FROM main.streams)"  # a stream that is here too is read here
    conditions = {"streams": f"WHERE id {ours}", **dict.fromkeys(IN_STREAMS, f"WHERE stream {ours}")}
    for table in ("streams", *IN_STREAMS, *_ALIKE):
        both = f"SELECT * FROM main.{table} UNION ALL SELECT * FROM others.{table} {conditions.get(table, '')}"
        connection.execute(f"CREATE TEMP VIEW {table} AS {both}")
    connection.execute(
        "CREATE TEMP VIEW definitions AS SELECT * FROM main.definitions UNION ALL SELECT * FROM others.definitions o"
        " WHERE NOT EXISTS (SELECT 1 FROM main.definitions d WHERE d.run = o.run AND d.name = o.name)"
    )


def project_of(connection: sqlite3.Connection, path: str) -> str:
    """The name of the project in a database. Raises StoreDamaged or sqlite3.Error."""
    row = connection.execute("SELECT value FROM meta WHERE key = 'project'").fetchone()
    if row is None:
        raise StoreDamaged(f"{path} is damaged (it does not say which project it is).")
    return str(row[0])


def database_of(connection: sqlite3.Connection) -> str:
    """What tells a database from every other, also from one that was begun anew for the same project."""
    found = dict(connection.execute("SELECT key, value FROM meta WHERE key IN ('database', 'project')").fetchall())
    return str(found.get("database") or project_id(str(found.get("project"))))


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
    remove(new)
    connection = sqlite3.connect(new, isolation_level=None)
    try:
        connection.execute("PRAGMA page_size = 4096")
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript(f"BEGIN; {TABLES} PRAGMA user_version = {VERSION}; COMMIT;")
        facts = [("project", project), ("store", store_id), ("database", uuid.uuid4().hex)]
        connection.executemany("INSERT INTO meta VALUES (?, ?)", facts)
    finally:
        connection.close()
    os.rename(new, path)


def remove(path: str) -> None:
    """Removes a database that nobody has open, if it is there. Raises OSError."""
    for side in SIDES:
        if os.path.exists(path + side):
            os.unlink(path + side)


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
