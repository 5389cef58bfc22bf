"""SQL over a project's rows, in the tables that an upload or an export has.

The rows are put into a database of its own, which is gone with the answer: of those tables and columns only that the
statement reads. Knows pyarrow and SQLite.
"""

from __future__ import annotations

import errno
import os
import re
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trackio.places import Places
from trackiod.errors import TrackiodError
from trackiod.exporting import Project
from trackiod.uploads import tables

_MOST_CHARS = 256 << 20
"""of an answer"""
_NO_ROOM = "There is no room for the rows in {}; set TMPDIR to a folder that has more."
_NO_SELECT = "Only a SELECT can be asked, of these tables: metrics, system, runs and alerts."
_JOINS = re.compile(r"\b(using|natural)\b", re.IGNORECASE)
_STEPS = 100
"""of SQLite's own between two looks for a Ctrl-C: ten or so make a row, which may be of the largest values"""
_ALLOWED = {sqlite3.SQLITE_SELECT, 33}
"""what a statement may do beside reading our tables and calling functions; 33: SQLITE_RECURSIVE, which Python has no
name for"""
_TABLES = {*tables.SCHEMAS, "json_each", "json_tree"}
_FUNCTIONS = frozenset(
    (
        "-> ->> abs acos acosh asin asinh atan atan2 atanh avg ceil ceiling char coalesce concat concat_ws cos cosh "
        "count cume_dist current_date current_time current_timestamp date datetime degrees dense_rank exp first_value "
        "floor format glob group_concat hex if ifnull iif instr json json_array json_array_length json_each "
        "json_error_position json_extract json_group_array json_group_object json_insert json_object json_patch "
        "json_pretty json_quote json_remove json_replace json_set json_tree json_type json_valid julianday lag "
        "last_value lead length like likelihood likely ln log log10 log2 lower ltrim max median min mod nth_value "
        "ntile nullif octet_length percent_rank percentile percentile_cont percentile_disc pi pow power printf quote "
        "radians random randomblob rank replace round row_number rtrim sign sin sinh soundex sqlite_version sqrt "
        "strftime string_agg substr substring sum tan tanh time timediff total trim trunc typeof unhex unicode unistr "
        "unixepoch unlikely upper zeroblob"
    ).split()
)
"""what computes and does nothing else; others can load code, write files or reach into the database's pages"""
_LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: 16 << 20,
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 1 << 20,
    sqlite3.SQLITE_LIMIT_COLUMN: 256,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 100,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH: 0,
    sqlite3.SQLITE_LIMIT_WORKER_THREADS: 0,
}
"""of a statement: none makes a value, or a row of them, that fills the memory"""


class Answer(NamedTuple):
    """What a statement gives."""

    columns: list[str]
    rows: list[tuple[Any, ...]]
    problems: list[str]


def query(where: Places, project: str, run: str, sql: str, most: int) -> Answer:
    """Runs one SELECT. `run`: an id or a name, or empty for all; `most`: rows of the answer. Raises TrackiodError."""
    sql = sql.lstrip("; \t\r\n")
    scratch = tempfile.TemporaryDirectory(prefix="trackio-query-")
    with scratch as folder, _spoken(folder), _empty(folder) as database:
        used = _used(database, sql)
        with Project(where, project, run, folder) as read:
            _fill(database, read, used)
        _lock(database)
        found = database.execute(sql)
        rows: list[tuple[Any, ...]] = []
        size = 0
        for row in found:
            rows.append(row)
            size += sum(len(value) for value in row if isinstance(value, (str, bytes)))
            if len(rows) > most:
                raise TrackiodError(
                    f"The answer has more than {most:,} rows: sum up, say LIMIT, or use trackio export."
                )
            if size > _MOST_CHARS:
                raise TrackiodError(f"The answer has more than {_MOST_CHARS:,} characters: ask for less at once.")
        return Answer(_distinct(column[0] for column in found.description or ()), rows, read.problems)


@contextmanager
def _spoken(folder: str) -> Iterator[None]:
    """Errors as sentences; a Ctrl-C, which SQLite takes for an error, as what it is."""
    try:
        yield
    except sqlite3.Error as error:
        if "interrupted" in str(error):
            raise KeyboardInterrupt from error
        if "too big" in str(error):
            most = _LIMITS[sqlite3.SQLITE_LIMIT_LENGTH] >> 20
            raise TrackiodError(f"The statement failed: it makes a value of more than {most} MiB.") from error
        if "is full" in str(error):
            raise TrackiodError(_NO_ROOM.format(folder)) from error
        raise TrackiodError(f"The statement failed: {str(error).rstrip('.')}.") from error
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise TrackiodError(_NO_ROOM.format(folder)) from error


def _distinct(names: Iterable[str]) -> list[str]:
    """Columns that are called alike get numbers: `step`, `step_2`."""
    found: list[str] = []
    for name in names:
        new, number = name, 1
        while new in found:
            number += 1
            new = f"{name}_{number}"
        found.append(new)
    return found


@contextmanager
def _empty(folder: str) -> Iterator[sqlite3.Connection]:
    """A database with the tables, without rows. Its file has no name any more: nothing is left of it, whatever ends
    this process."""
    path = os.path.join(folder, "rows.db")
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("PRAGMA journal_mode = OFF")
        database.set_progress_handler(lambda: 0, _STEPS)  # else no Ctrl-C is heard while SQLite computes
        for kind, columns in tables.SCHEMAS.items():
            names = ", ".join(f'"{field.name}" {_type(field.type)}' for field in columns)
            database.execute(f"CREATE TABLE {kind} ({names})")
        database.execute("SELECT 1 FROM json_each('1'), json_tree('1')").fetchall()  # their first use makes tables
        os.unlink(path)
        yield database


def _used(database: sqlite3.Connection, sql: str) -> dict[str, set[str]]:
    """The tables and columns that a statement reads. Raises TrackiodError for one that is not a SELECT of them."""
    used: dict[str, set[str]] = {}
    refused: list[str] = []
    actions: set[int] = set()
    modules = _modules(database)

    def authorize(action: int, first: str | None, second: str | None, *_: object) -> int:
        is_allowed = _is_allowed(action, first, second, modules)
        actions.add(action)
        if not is_allowed:
            is_call = action == sqlite3.SQLITE_FUNCTION
            refused.append(f"The function {second}() cannot be used here." if is_call else _NO_SELECT)
        elif action == sqlite3.SQLITE_READ and first in tables.SCHEMAS:
            used.setdefault(first, set()).update({second} if second else ())
        return sqlite3.SQLITE_OK if is_allowed else sqlite3.SQLITE_DENY

    database.set_authorizer(authorize)
    try:
        database.execute(f"EXPLAIN {sql}")
    except (sqlite3.Error, sqlite3.Warning, UnicodeEncodeError) as error:
        if refused:
            raise TrackiodError(refused[0]) from error
        known = ", ".join(f"{kind}({', '.join(columns.names)})" for kind, columns in tables.SCHEMAS.items())
        hint = f" There are: {known}." if re.match("no such (table|column)", str(error)) else ""
        raise TrackiodError(f"The statement cannot be understood: {str(error).rstrip('.')}.{hint}") from error
    finally:
        database.set_authorizer(None)
    if sqlite3.SQLITE_SELECT not in actions:  # VACUUM INTO asks nobody before it runs
        raise TrackiodError(_NO_SELECT)
    if _JOINS.search(sql):  # what they compare is not told, and so perhaps not even the table
        named = [kind for kind in tables.SCHEMAS if re.search(rf"\b{kind}\b", sql, re.IGNORECASE)]
        return {kind: set(tables.SCHEMAS[kind].names) for kind in (*used, *named)}
    return used


def _modules(database: sqlite3.Connection) -> frozenset[str]:
    """What SQLite makes tables of without being asked to."""
    return frozenset(name for (name,) in database.execute("SELECT name FROM pragma_module_list")) - _TABLES


def _is_allowed(action: int, first: str | None, second: str | None, modules: frozenset[str]) -> bool:
    """Whether a statement may do what SQLite's authorizer asks. Whatever is not named here is denied: to write, attach
    and load, to read other tables, which SQLite can make of files and of its own pages, and every pragma."""
    if action == sqlite3.SQLITE_READ:
        if second == "":  # no column of it: it may be a name that the statement gives
            return first not in modules and not str(first).lower().startswith(("pragma_", "sqlite_"))
        return first in _TABLES
    if action == sqlite3.SQLITE_FUNCTION:
        return str(second).lower() in _FUNCTIONS
    return action in _ALLOWED


def _lock(database: sqlite3.Connection) -> None:
    """From now on nothing but a SELECT of our tables runs in it: SQLite asks whenever it prepares a statement, and
    would refuse to write even so."""
    modules = _modules(database)
    database.execute("PRAGMA trusted_schema = OFF")
    database.execute("PRAGMA query_only = ON")
    for limit, most in _LIMITS.items():
        database.setlimit(limit, most)

    def authorize(action: int, first: str | None, second: str | None, *_: object) -> int:
        return sqlite3.SQLITE_OK if _is_allowed(action, first, second, modules) else sqlite3.SQLITE_DENY

    database.set_authorizer(authorize)


def _fill(database: sqlite3.Connection, read: Project, used: dict[str, set[str]]) -> None:
    database.execute("BEGIN")
    for file in read.files(list(used)):
        names = [name for name in tables.SCHEMAS[file.kind].names if name in used[file.kind]] or ["run_id"]
        wanted = [*names, "value"] if "value_text" in names and "value" not in names else names
        into, marks = ", ".join(f'"{name}"' for name in names), ", ".join("?" * len(names))
        insert = f"INSERT INTO {file.kind} ({into}) VALUES ({marks})"
        with closing(pq.ParquetFile(file.path)) as rows:
            for batch in tables.batches(rows, wanted):
                columns = [_column(batch, name) for name in names]
                database.executemany(insert, zip(*columns, strict=True))
        os.unlink(file.path)
    database.execute("COMMIT")


def _column(batch: pa.RecordBatch, name: str) -> list[Any]:
    """As SQLite takes it: times as ISO 8601; a NaN, which it has not, is NULL and the text `NaN`."""
    column = batch.column(name)
    if pa.types.is_timestamp(column.type):
        column = tables.iso(column)
    if name == "value_text":
        column = pc.if_else(pc.fill_null(pc.is_nan(batch.column("value")), False), "NaN", column)
    return list(column.to_pylist())


def _type(type_: pa.DataType) -> str:
    if pa.types.is_integer(type_):
        return "INTEGER"
    return "REAL" if pa.types.is_floating(type_) else "TEXT"
