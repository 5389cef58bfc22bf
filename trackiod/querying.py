"""SQL over a project's rows, in the tables that an upload or an export has.

The rows are put into a database of its own, which is gone with the answer: of those tables and columns only that the
statement reads. Knows pyarrow and SQLite.
"""

from __future__ import annotations

import os
import re
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trackio.places import Places
from trackiod.errors import TrackiodError
from trackiod.exporting import Project
from trackiod.uploads import tables

_ROWS_AT_ONCE = 1 << 14
_JOINS = re.compile(r"\b(using|natural)\b", re.IGNORECASE)
_ALLOWED = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, 33}
"""33: SQLITE_RECURSIVE, which Python has no name for"""


class Answer(NamedTuple):
    """What a statement gives."""

    columns: list[str]
    rows: list[tuple[Any, ...]]
    problems: list[str]


def query(where: Places, project: str, run: str, sql: str, most: int) -> Answer:
    """Runs one SELECT. `run`: an id or a name, or empty for all; `most`: rows of the answer. Raises TrackiodError."""
    with tempfile.TemporaryDirectory(prefix="trackio-query-") as scratch, _empty(scratch) as database:
        used = _used(database, sql)
        with Project(where, project, run, scratch) as read:
            _fill(database, read, used)
        try:
            found = database.execute(sql)
            rows = found.fetchmany(most + 1)
        except sqlite3.Error as error:
            raise TrackiodError(f"The statement failed: {error}.") from error
        if len(rows) > most:
            raise TrackiodError(f"The answer has more than {most:,} rows: sum up, or say LIMIT.")
        return Answer([column[0] for column in found.description or ()], rows, read.problems)


@contextmanager
def _empty(folder: str) -> Iterator[sqlite3.Connection]:
    """A database with the tables, without rows."""
    with closing(sqlite3.connect(os.path.join(folder, "rows.db"), isolation_level=None)) as database:
        database.execute("PRAGMA journal_mode = OFF")
        for kind, columns in tables.SCHEMAS.items():
            names = ", ".join(f'"{field.name}" {_type(field.type)}' for field in columns)
            database.execute(f"CREATE TABLE {kind} ({names})")
        yield database


def _used(database: sqlite3.Connection, sql: str) -> dict[str, set[str]]:
    """The tables and columns that a statement reads. Raises TrackiodError for one that is no SELECT."""
    used: dict[str, set[str]] = {}
    refused: list[int] = []

    def authorize(action: int, first: str | None, second: str | None, *_: object) -> int:
        if action == sqlite3.SQLITE_READ and first in tables.SCHEMAS:
            used.setdefault(str(first), set()).update({second} if second else ())
        if action not in _ALLOWED or (action == sqlite3.SQLITE_FUNCTION and second == "load_extension"):
            refused.append(action)
            return sqlite3.SQLITE_DENY
        return sqlite3.SQLITE_OK

    database.set_authorizer(authorize)
    try:
        if database.execute(sql).description is None and not refused:
            raise TrackiodError("There is no statement.")
    except sqlite3.Error as error:
        if refused:
            raise TrackiodError("Only a SELECT can be asked.") from error
        known = ", ".join(f"{kind}({', '.join(columns.names)})" for kind, columns in tables.SCHEMAS.items())
        hint = f" There are: {known}." if "no such" in str(error) else ""
        raise TrackiodError(f"The statement cannot be understood: {str(error).rstrip('.')}.{hint}") from error
    finally:
        database.set_authorizer(None)
    if _JOINS.search(sql):  # the columns that they compare are not told
        return {kind: set(tables.SCHEMAS[kind].names) for kind in used}
    return used


def _fill(database: sqlite3.Connection, read: Project, used: dict[str, set[str]]) -> None:
    database.execute("BEGIN")
    for file in read.files(list(used)):
        names = [name for name in tables.SCHEMAS[file.kind].names if name in used[file.kind]] or ["run_id"]
        wanted = [*names, "value"] if "value_text" in names and "value" not in names else names
        into, marks = ", ".join(f'"{name}"' for name in names), ", ".join("?" * len(names))
        insert = f"INSERT INTO {file.kind} ({into}) VALUES ({marks})"
        with closing(pq.ParquetFile(file.path)) as rows:
            for batch in rows.iter_batches(_ROWS_AT_ONCE, columns=wanted):
                columns = [_column(batch, name) for name in names]
                database.executemany(insert, zip(*columns, strict=True))
        os.unlink(file.path)
    database.execute("COMMIT")


def _column(batch: pa.RecordBatch, name: str) -> list[Any]:
    """As SQLite takes it: times as ISO 8601; a NaN, which it has not, is NULL and the text `NaN`."""
    column = batch.column(name)
    if pa.types.is_timestamp(column.type):
        return list(pc.strftime(column, "%Y-%m-%dT%H:%M:%SZ").to_pylist())
    if name == "value_text":
        column = pc.if_else(pc.fill_null(pc.is_nan(batch.column("value")), False), "NaN", column)
    return list(column.to_pylist())


def _type(type_: pa.DataType) -> str:
    if pa.types.is_integer(type_):
        return "INTEGER"
    return "REAL" if pa.types.is_floating(type_) else "TEXT"
