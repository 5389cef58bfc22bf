"""What a database has of the layout, and what was added to one of them by a release that the other does not know.

Releases of one layout number share databases (decision 15). A writer adds what its layout has and the file lacks; a
reader, which cannot, has temporary views in the place of tables that lack something: what is not there is empty or its
default. What the layout does not know stays, and nobody asks for it. Knows SQLite and the tables, not what they mean.
"""

from __future__ import annotations

import functools
import re
import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing
from typing import NamedTuple

from trackiod.errors import StoreDamaged
from trackiod.store.layout import FIRST, TABLES, VERSION

_MASTER = "SELECT CAST(name AS BLOB), CAST(coalesce(sql, '') AS BLOB) FROM sqlite_master ORDER BY 1"
_COMMENT = re.compile(rb"--[^\n]*")
_ADDED = "added"
"""the row of `meta` that names what was added to a database: it cannot be missing later"""
_OWNERS = ("stream", "run")
"""columns that tell whose a row is, also in tables that only other releases know"""

Words = dict[bytes, list[bytes]]
"""what SQLite itself says of each table and index, but for comments"""


class Column(NamedTuple):
    """A column as SQLite understands it."""

    name: str
    type: str
    is_required: bool
    default: str | None
    key: int
    """its place in the primary key; 0: it is not part of it"""

    @property
    def definition(self) -> str:
        """As `ALTER TABLE` takes it, for a table that has rows."""
        default = "" if self.default is None else f" DEFAULT {self.default}"
        return f"{_quoted(self.name)} {self.type}{' NOT NULL' if self.is_required and default else ''}{default}"


class _Layout(NamedTuple):
    """Ours."""

    words: Words
    sql: dict[str, str]
    """what makes each table and index"""
    tables: dict[str, dict[str, Column]]
    added: frozenset[str]
    """`table` and `table.column` of what the first release of this layout number did not have"""


@functools.cache
def _layout() -> _Layout:
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(TABLES)
        sql = dict(connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall())
        names = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()]
        tables = {name: _columns(connection, name) for name in names}
        return _Layout(_words(connection), sql, tables, frozenset(_names_in(tables) - _FIRST))


def _names_in(tables: Mapping[str, Iterable[str]]) -> set[str]:
    """`table` and `table.column` of them all."""
    return {name for table, columns in tables.items() for name in (table, *(f"{table}.{each}" for each in columns))}


_FIRST = _names_in({table: columns.split() for table, columns in FIRST.items()})


def names(table: str) -> tuple[str, ...]:
    """The columns of one of our tables."""
    return tuple(_layout().tables[table])


def listed(columns: Iterable[str]) -> str:
    """Columns as SQL names them."""
    return ", ".join(map(_quoted, columns))


def known() -> str:
    """What this release knows of what was ever added; empty for the first release of a layout number."""
    return " ".join(sorted(_layout().added))


# -- writing -----------------------------------------------------------------------------------------------------------


def fit(connection: sqlite3.Connection, path: str) -> None:
    """Adds what the layout has and this database lacks. Raises StoreDamaged if it lacks what it had, or has something
    of ours that is not as the layout says; or sqlite3.Error."""
    if _words(connection) == _layout().words:
        return
    statements = _missing(connection, path)
    if not statements:
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        for statement in statements:
            connection.execute(statement)
        note_added(connection)
        connection.execute("COMMIT")
    except sqlite3.IntegrityError as error:  # rows that an index of ours cannot be made of
        raise StoreDamaged(f"{path} is damaged ({error}).") from error
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def check(connection: sqlite3.Connection, path: str) -> None:
    """Raises StoreDamaged where `fit` would, and changes nothing."""
    if _words(connection) != _layout().words:
        _missing(connection, path)


def note_added(connection: sqlite3.Connection) -> None:
    """Notes that a database has all that this release knows."""
    if added := _layout().added | _noted(connection):
        values = (_ADDED, " ".join(sorted(added)))
        connection.execute("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)", values)


def _missing(connection: sqlite3.Connection, path: str) -> list[str]:
    """The statements that add what this database lacks."""
    try:
        return _statements(connection, path)
    except sqlite3.OperationalError as error:
        if str(error).startswith("Could not decode"):  # names that are no text; Python gives it no code
            raise StoreDamaged(f"{path} is damaged ({error}).") from error
        raise


def _statements(connection: sqlite3.Connection, path: str) -> list[str]:
    ours, theirs = _layout(), _words(connection)
    tables = {table: _columns(connection, table) for table in ours.tables}
    had = _FIRST | (_noted(connection) if {"key", "value"} <= tables["meta"].keys() else set())
    statements = []
    for table, columns in ours.tables.items():
        if not tables[table]:
            if table in had or table.encode() in theirs:
                raise StoreDamaged(f"{path} is damaged (it has no table {table}).")
            statements.append(ours.sql[table])
            continue
        for name, column in columns.items():
            found = tables[table].get(name)
            if found is None and f"{table}.{name}" in had:
                raise StoreDamaged(f"{path} is damaged (table {table} has no column {name}).")
            if found is None:
                statements.append(f"ALTER TABLE {table} ADD COLUMN {column.definition}")
            elif found != column:
                raise StoreDamaged(f"{path} is damaged (column {table}.{name} is not that of layout {VERSION}).")
    for name, sql in ours.sql.items():
        if name in ours.tables:
            continue
        is_listed = name.encode() in theirs
        if not is_listed and connection.execute(f"PRAGMA main.index_info({name})").fetchone():
            raise StoreDamaged(f"{path} is damaged (index {name} is listed under another name).")
        if not is_listed:
            statements.append(sql)
        elif theirs[name.encode()] != ours.words[name.encode()]:
            raise StoreDamaged(f"{path} is damaged (index {name} is not that of layout {VERSION}).")
    return statements


def _noted(connection: sqlite3.Connection) -> set[str]:
    row = connection.execute("SELECT value FROM meta WHERE key = ?", (_ADDED,)).fetchone()
    return set(str(row[0]).split()) if row else set()


# -- reading -----------------------------------------------------------------------------------------------------------


def stand_in(connection: sqlite3.Connection) -> None:
    """Has temporary views take the names of tables that lack something which was added."""
    for table in sorted({name.partition(".")[0] for name in _layout().added}):
        if _layout().tables[table].keys() - _columns(connection, table).keys():
            connection.execute("PRAGMA temp_store = MEMORY")
            connection.execute(f"CREATE TEMP VIEW {table} AS {selection(connection, table)}")


def selection(connection: sqlite3.Connection, table: str, schema: str = "main") -> str:
    """What selects all rows of one of our tables, in our columns; with a WHERE clause, more can be said."""
    columns, added = _layout().tables[table], _layout().added
    if not any(f"{table}.{name}" in added for name in columns):
        return f"SELECT {listed(columns)} FROM {schema}.{table} WHERE 1"
    there = _columns(connection, table, schema)
    expressions = ", ".join(
        _quoted(name) if name in there or f"{table}.{name}" not in added
        else f"{column.default or 'NULL'} AS {_quoted(name)}" for name, column in columns.items()
    )  # fmt: skip
    return f"SELECT {expressions} FROM {schema}.{table} WHERE 1" if there else f"SELECT {expressions} WHERE 0"


# -- what only other releases know -------------------------------------------------------------------------------------


def foreign(connection: sqlite3.Connection) -> dict[str, str]:
    """Tables that are not ours, with the column that tells whose a row is: a stream's or a run's."""
    marks = ", ".join("?" * len(_layout().tables))
    rows = connection.execute(
        "SELECT m.name, c.name FROM main.sqlite_master m JOIN pragma_table_info(m.name) c WHERE m.type = 'table'"
        f" AND m.sql LIKE 'CREATE TABLE%' AND m.name NOT IN ({marks})",
        tuple(_layout().tables),
    ).fetchall()
    return {table: owner for owner in reversed(_OWNERS) for table, column in rows if column == owner}


def all_names(connection: sqlite3.Connection, table: str) -> tuple[str, ...]:
    """A table's columns, ours and others'."""
    return tuple(_columns(connection, table))


def carry(source: sqlite3.Connection, target: sqlite3.Connection) -> dict[str, str]:
    """Makes room in another database of this data folder for what only other releases know. Returns `foreign`."""
    tables = foreign(source)
    for table in tables:
        if not _columns(target, table):
            (sql,) = source.execute("SELECT sql FROM main.sqlite_master WHERE name = ?", (table,)).fetchone()
            target.execute(sql)
    for table in (*_layout().tables, *tables):
        there = _columns(target, table)
        for name, column in _columns(source, table).items():
            if name not in there:
                target.execute(f"ALTER TABLE {_quoted(table)} ADD COLUMN {column.definition}")
    return tables


def row_number(connection: sqlite3.Connection, table: str) -> str:
    """The column that is a row's number in its database, and another in another one; empty if a table has none."""
    keys = [column for column in _columns(connection, table).values() if column.key]
    return keys[0].name if len(keys) == 1 and keys[0].type.upper() == "INTEGER" else ""


# -- SQLite ------------------------------------------------------------------------------------------------------------


def _words(connection: sqlite3.Connection) -> Words:
    return {name: _COMMENT.sub(b"", sql).split() for name, sql in connection.execute(_MASTER).fetchall()}


def _columns(connection: sqlite3.Connection, table: str, schema: str = "main") -> dict[str, Column]:
    """A table's columns; none if there is no such table."""
    rows = connection.execute(f"PRAGMA {schema}.table_info({_quoted(table)})").fetchall()
    return {name: Column(name, type_, bool(required), default, key) for _, name, type_, required, default, key in rows}


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
