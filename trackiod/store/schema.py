"""Opening a project's database, making one, and telling a damaged one. Knows SQLite and nothing of streams' bytes."""

from __future__ import annotations

import logging
import os
import re
import sqlite3
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from urllib.parse import quote

from trackio.durability import sync_names
from trackio.lookup import is_there
from trackio.names import HOST, project_id
from trackiod.errors import StoreDamaged, StoreError, StoreTooNew, StoreTooOld
from trackiod.store import additions, migrations, wal
from trackiod.store.layout import IN_STREAMS, TABLES, VERSION

log = logging.getLogger("trackiod.schema")

SUFFIX = ".db"
SIDES = ("", "-wal", "-shm")
"""of a database's files"""
_ASIDE = re.compile(r"\.(damaged|later)-\d+")
_READ_TRIES, _READ_AGAIN_SECONDS = 2, 0.05
_HOST_FILE = "host" + SUFFIX
BUSY_SECONDS = 1.0
_DAMAGES = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_FORMAT, sqlite3.SQLITE_NOTADB}


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


def asides(path: str) -> list[str]:
    """A sentence for each database of a project that looked damaged and was set aside, with the runs in it."""
    folder, name = os.path.split(path)
    try:
        found = sorted(other for other in os.listdir(folder) if _ASIDE.fullmatch(other.removeprefix(name)))
    except OSError:
        return []
    return [
        f"{os.path.join(folder, other)} was set aside as damaged, with the runs in it; see: trackiod repair"
        for other in found
        if other.startswith(name)
    ]


def open_for_writing(path: str, project: str, store_id: str) -> sqlite3.Connection:
    """The one connection that writes, created with the database if need be; one of an earlier layout is brought to
    ours. Raises StoreError, or OSError or sqlite3.Error for what may pass: a full disk, no descriptor."""
    if not is_there(path):  # that it cannot be looked at is not an answer: another would take its place
        _create(path, project, store_id)
    leave_newer(path)
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=BUSY_SECONDS)
    try:
        with closed_if_it_fails(connection):
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute(f"PRAGMA journal_size_limit = {wal.MOST_BYTES}")
            try:
                check_version(connection, path)
            except StoreTooOld:
                log.info("%s is brought to layout %d", path, VERSION)
                migrations.migrate(connection)
            additions.fit(connection, path)
            project_of(connection, path)  # what says nothing to a reader must not be written on
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        if isinstance(error, sqlite3.Error) and not is_damage(error):
            raise
        raise named(error, path) from error
    return connection


def open_for_reading(path: str, *, is_alone: bool = False) -> sqlite3.Connection:
    """A connection that cannot write; also for a copy on a read-only medium. `is_alone`: without what other hosts have
    copied of the same project. Raises StoreError."""
    last: sqlite3.Error | UnicodeDecodeError | None = None
    can_write = os.access(os.path.dirname(path) or ".", os.W_OK)
    for is_immutable in (*[False] * _READ_TRIES, True):
        if is_immutable and (can_write or (os.path.exists(path + "-wal") and os.path.getsize(path + "-wal"))):
            break  # an immutable view would miss what the log holds, and mistake what is being written for damage
        try:
            connection = connect_for_reading(path, is_immutable=is_immutable)
            return connection if is_alone else _joined(connection, path)
        except (sqlite3.Error, UnicodeDecodeError) as error:
            last = error
            if can_write:
                time.sleep(_READ_AGAIN_SECONDS)  # a daemon that starts or stops just now may be in the way
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
    raise named(last, path) from last


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
        connection.execute("DROP VIEW IF EXISTS temp.streams")
        connection.execute(
            f"CREATE TEMP VIEW streams AS {additions.selection(connection, 'streams')} AND id IN"
            f" (SELECT substr(key, 8) FROM main.meta WHERE key GLOB 'stream *' AND value GLOB '{store}/*')"
        )
    return connection


def connect_for_reading(path: str, *, is_immutable: bool = False) -> sqlite3.Connection:
    """This file alone, which is not written. `is_immutable`: nor does anybody else. Raises StoreTooNew, StoreTooOld or
    sqlite3.Error."""
    leave_newer(path)
    options = "mode=ro&immutable=1" if is_immutable else "mode=ro"
    connection = sqlite3.connect(_uri(path, options), uri=True, isolation_level=None, timeout=10)
    with closed_if_it_fails(connection):
        check_version(connection, path)
        additions.stand_in(connection)
    return connection


def open_part(path: str) -> sqlite3.Connection:
    """A small database that nobody changes; one of an earlier layout as it would be in ours. Raises StoreError or
    sqlite3.Error."""
    try:
        return connect_for_reading(path, is_immutable=True)
    except StoreTooOld:
        migrated = sqlite3.connect(":memory:", isolation_level=None)
        with closed_if_it_fails(migrated):
            with closing(sqlite3.connect(_uri(path, "mode=ro&immutable=1"), uri=True)) as connection:
                connection.backup(migrated)
            migrations.migrate(migrated)
            additions.stand_in(migrated)
        return migrated


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
    connection.execute("ATTACH ? AS others", (_uri(others, "mode=ro"),))
    if connection.execute("PRAGMA others.user_version").fetchone() != (VERSION,):
        raise sqlite3.DatabaseError("of another layout")  # made anew, or named, by whoever takes in what was copied
    runs = f"{_RUNS.format('main', 'others', '<')} UNION ALL {_RUNS.format('others', 'main', '<=')}"
    ours = "NOT IN (SELECT id FROM main.streams)"  # a stream that is here too is read here
    conditions = {"streams": f"AND id {ours}", **dict.fromkeys(IN_STREAMS, f"AND stream {ours}")}
    conditions["definitions"] = "AND (run, name) NOT IN (SELECT run, name FROM main.definitions)"
    views = {"runs": runs}
    for table in ("streams", "definitions", *IN_STREAMS, *_ALIKE):
        here, there = (additions.selection(connection, table, schema) for schema in ("main", "others"))
        views[table] = f"{here} UNION ALL {there} {conditions.get(table, '')}"
    for table, both in views.items():
        connection.execute(f"DROP VIEW IF EXISTS temp.{table}")
        connection.execute(f"CREATE TEMP VIEW {table} AS {both}")


def project_of(connection: sqlite3.Connection, path: str) -> str:
    """The name of the project in a database. Raises StoreDamaged or sqlite3.Error."""
    row = connection.execute("SELECT value FROM meta WHERE key = 'project'").fetchone()
    if row is None:
        raise StoreDamaged(f"{path} is damaged (it does not say which project it is).")
    return str(row[0])


def name_in(path: str) -> str:
    """The name of the project in a file, whose layout may be an earlier one. Raises StoreError."""
    try:
        with closing(sqlite3.connect(_uri(path, "mode=ro"), uri=True, timeout=10)) as connection:
            with suppress(StoreTooOld):
                check_version(connection, path)
            return project_of(connection, path)
    except (sqlite3.Error, UnicodeDecodeError) as error:
        raise named(error, path) from error


def database_of(connection: sqlite3.Connection) -> str:
    """What tells a database from every other, also from one that was begun anew for the same project."""
    found = dict(connection.execute("SELECT key, value FROM meta WHERE key IN ('database', 'project')").fetchall())
    return str(found.get("database") or project_id(str(found.get("project"))))


def check_version(connection: sqlite3.Connection, path: str) -> None:
    """Raises StoreTooNew for a database of a later layout, StoreTooOld for one that can be brought to ours."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    _refuse_newer(version, path)
    if 0 < version < VERSION:
        if migrations.can_migrate(version):
            raise StoreTooOld(
                f"{path} is of layout {version}, this trackio reads {VERSION}: its daemon brings it there when it"
                " starts (trackiod start)."
            )
        raise StoreError(
            f"{path} was written by a trackio from before its first release (layout {version}); it cannot be read."
        )
    if version == 0:
        raise StoreDamaged(f"{path} is not a trackio store.")


def _refuse_newer(version: int, path: str) -> None:
    if version > VERSION:
        raise StoreTooNew(
            f"{path} was written by a newer trackio (layout {version}, this one knows {VERSION}): upgrade trackio."
        )


def leave_newer(path: str) -> None:
    """Raises StoreTooNew before SQLite opens and closes a file, which changes it and what lies beside it. A file that
    cannot be read is SQLite's to complain of.

    The header is asked of SQLite: who opens a database's file by itself loses, as he closes it, every lock that his
    process holds on it, also those of its other connections.
    """
    try:
        with closing(sqlite3.connect(_uri(path, "mode=ro&immutable=1"), uri=True)) as connection:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
    except sqlite3.Error:
        return
    _refuse_newer(version, path)


def _create(path: str, project: str, store_id: str) -> None:
    """Makes the database under another name first: a reader finds it whole or not at all."""
    new = f"{path}.new"
    remove(new)
    connection = sqlite3.connect(new, isolation_level=None)
    try:
        connection.execute("PRAGMA synchronous = OFF")  # it is synced at once, below
        connection.execute("PRAGMA page_size = 4096")
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript(f"BEGIN; {TABLES} PRAGMA user_version = {VERSION}; COMMIT;")
        additions.note_added(connection)
        facts = [("project", project), ("store", store_id), ("database", uuid.uuid4().hex)]
        connection.executemany("INSERT INTO meta (key, value) VALUES (?, ?)", facts)
    finally:
        connection.close()
    with open(new, "rb") as file:
        os.fsync(file.fileno())
    for side in SIDES[1:]:  # of a database that is gone: SQLite would take its log for ours
        if is_there(path + side):
            os.rename(path + side, f"{path}.stray-{time.time_ns()}{side}")
    os.rename(new, path)
    sync_names(path)  # what is committed into it is acked: a loss of power must leave its name


def remove(path: str) -> None:
    """Removes a database that nobody has open, if it is there. Raises OSError."""
    for side in SIDES:
        if is_there(path + side):
            os.unlink(path + side)


def is_damage(error: sqlite3.Error, connection: sqlite3.Connection | None = None) -> bool:
    """Whether SQLite's complaint is about the file's content, which lasts; a full disk or a lock may pass. That our
    own SQL cannot be run (SQLITE_ERROR) may be our fault, or exceed a limit of SQLite's: it is damage only if the
    database's own description of our tables is, which `connection` is asked for."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code != sqlite3.SQLITE_ERROR or connection is None:
        return code in _DAMAGES
    try:
        additions.check(connection, "")
    except (StoreDamaged, UnicodeDecodeError):
        return True
    except sqlite3.Error as found:
        return is_damage(found)
    return False


def named(error: sqlite3.Error | UnicodeDecodeError, path: str) -> StoreError:
    """SQLite's complaint as ours; one that cannot be decoded quotes what is damaged."""
    if isinstance(error, UnicodeDecodeError) or is_damage(error):
        return StoreDamaged(f"{path} is damaged ({error}).")
    return StoreError(f"{path} cannot be opened ({error}).")


def _uri(path: str, options: str) -> str:
    """A database's address, whatever bytes its path holds."""
    return f"file:{quote(os.fsencode(path))}?{options}"
