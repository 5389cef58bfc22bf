"""Deleting runs from a project's database, copying them to another's; deleting the oldest points. Inside the
transactions their callers opened."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgpack

from trackiod.store import additions
from trackiod.store.layout import FACTS, IN_STREAMS

_OF_RUNS = ("definitions",)


def is_running(connection: sqlite3.Connection, runs: Sequence[str] | None = None) -> bool:
    """Whether a stream of these runs, or of any, is open."""
    if runs is None:
        return connection.execute("SELECT 1 FROM streams WHERE state IS NULL LIMIT 1").fetchone() is not None
    sql = "SELECT 1 FROM streams WHERE state IS NULL AND run = ? LIMIT 1"
    return any(connection.execute(sql, (run,)).fetchone() for run in runs)


def rename(connection: sqlite3.Connection, runs: Sequence[str], name: str) -> None:
    """Gives these runs, which go on with one another, a name."""
    connection.executemany("UPDATE runs SET name = ? WHERE id = ?", [(name, run) for run in runs])


def delete(connection: sqlite3.Connection, runs: Sequence[str]) -> set[tuple[str, str]]:
    """Removes all of these runs but the artifacts they logged, which are the project's. Returns (digest, suffix) of
    files that nothing speaks of any more."""
    streams, each_run = _streams(connection, runs), [(run,) for run in runs]
    gone = set(_files(connection, streams))
    others = additions.foreign(connection)
    for stream in streams:
        delete_stream(connection, stream, others)
    for table in (*_OF_RUNS, *(table for table, owner in others.items() if owner == "run")):
        connection.executemany(f'DELETE FROM "{table}" WHERE run = ?', each_run)
    connection.executemany("DELETE FROM runs WHERE id = ?", each_run)
    return gone - spoken_of(connection)


def used_bytes(connection: sqlite3.Connection) -> int:
    """What the database holds, without what is free in its file."""
    pages, free, size = (
        connection.execute(f"PRAGMA {what}").fetchone()[0] for what in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * size)


def drop_oldest(connection: sqlite3.Connection, axes: int) -> int:
    """Removes the points that were folded first: so many axes, with all that stands on them. Returns how many there
    were."""
    ids = [row[0] for row in connection.execute("SELECT id FROM axes ORDER BY id LIMIT ?", (axes,))]
    last = ids[-1] if ids else -1
    streams = [row[0] for row in connection.execute("SELECT DISTINCT stream FROM axes WHERE id <= ?", (last,))]
    for stream in streams:
        of_stream = "series IN (SELECT id FROM series WHERE stream = ?)"
        connection.execute(f"DELETE FROM chunks WHERE {of_stream} AND axis <= ?", (stream, last))
    connection.execute("DELETE FROM axes WHERE id <= ?", (last,))
    empty = [
        row[0]
        for row in connection.execute(
            "SELECT id FROM streams s WHERE state IS NOT NULL AND NOT EXISTS (SELECT 1 FROM axes WHERE stream = s.id)"
            " AND NOT EXISTS (SELECT 1 FROM batches WHERE stream = s.id)"
        )
    ]
    for stream in empty if streams else ():
        delete_stream(connection, stream)
    return len(ids)


def delete_stream(connection: sqlite3.Connection, stream: str, others: Mapping[str, str] | None = None) -> None:
    """Removes a stream and all that was stored of it, also in the tables that only other releases know (`others`)."""
    others = additions.foreign(connection) if others is None else others
    connection.execute("DELETE FROM chunks WHERE series IN (SELECT id FROM series WHERE stream = ?)", (stream,))
    for table in (*IN_STREAMS, *(table for table, owner in others.items() if owner == "stream")):
        connection.execute(f'DELETE FROM "{table}" WHERE stream = ?', (stream,))
    connection.execute("DELETE FROM streams WHERE id = ?", (stream,))


def spoken_of(connection: sqlite3.Connection) -> set[tuple[str, str]]:
    """(digest, suffix) of every file that a value or an artifact needs."""
    needed = set(connection.execute("SELECT digest, suffix FROM files WHERE digest IS NOT NULL"))
    for (manifest,) in connection.execute("SELECT manifest FROM versions"):
        entries = msgpack.unpackb(manifest, strict_map_key=False)
        needed |= {(entry.get("digest"), entry.get("suffix", "")) for entry in entries if "ref" not in entry}
    return needed


def copy(source: sqlite3.Connection, target: sqlite3.Connection, runs: Sequence[str]) -> list[tuple[str, str]]:
    """Copies all of these runs but their artifacts; what is there already stays, and what only other releases know
    goes along. Returns (digest, suffix) of the files that the copies need."""
    streams = _streams(source, runs)
    others = additions.carry(source, target)
    _insert(target, "runs", _rows(source, "runs", "id", runs))
    for table in _OF_RUNS:
        _insert(target, table, _rows(source, table, "run", runs))
    is_known = "SELECT 1 FROM streams WHERE id = ?"
    new = [stream for stream in streams if not target.execute(is_known, (stream,)).fetchone()]
    _insert(target, "streams", _rows(source, "streams", "id", new))
    for table in ("batches", *FACTS):
        if table != "artifacts":
            rows = _rows(source, table, "stream", new)
            _insert(target, table, [{k: v for k, v in row.items() if (table, k) != ("batches", "id")} for row in rows])
    for table, owner in others.items():
        numbers = additions.row_number(source, table)
        rows = _rows(source, table, owner, new if owner == "stream" else runs)
        _insert(target, table, [{k: v for k, v in row.items() if k != numbers} for row in rows])
    series = _renumbered(target, "series", _rows(source, "series", "stream", new))
    axes = _renumbered(target, "axes", _rows(source, "axes", "stream", new))
    for row in _rows(source, "chunks", "series", list(series)):
        _insert(target, "chunks", [row | {"id": None, "series": series[row["series"]], "axis": axes[row["axis"]]}])
    return [*dict.fromkeys(_files(source, streams))]


def _streams(connection: sqlite3.Connection, runs: Sequence[str]) -> list[str]:
    return [row[0] for run in runs for row in connection.execute("SELECT id FROM streams WHERE run = ?", (run,))]


def _files(connection: sqlite3.Connection, streams: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(digest, suffix) of the files that are kept of these streams."""
    for stream in streams:
        yield from connection.execute(
            "SELECT digest, suffix FROM files WHERE digest IS NOT NULL AND stream = ?", (stream,)
        )


def _rows(connection: sqlite3.Connection, table: str, column: str, values: Sequence[Any]) -> list[dict[str, Any]]:
    """Rows with all of their columns, by name: also those that only other releases know."""
    names = additions.all_names(connection, table)
    order = "id" if "id" in names else column
    sql = f'SELECT {additions.listed(names)} FROM "{table}" WHERE {column} = ? ORDER BY {order}'
    found = (row for value in values for row in connection.execute(sql, (value,)).fetchall())
    return [dict(zip(names, row, strict=True)) for row in found]


def _insert(connection: sqlite3.Connection, table: str, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        names = ", ".join(f'"{name}"' for name in row)
        sql = f'INSERT OR IGNORE INTO "{table}" ({names}) VALUES ({_marks(row)})'
        connection.execute(sql, tuple(row.values()))


def _renumbered(connection: sqlite3.Connection, table: str, rows: list[dict[str, Any]]) -> dict[int, int]:
    """Inserts rows under new ids; returns old to new."""
    new: dict[int, int] = {}
    for row in sorted(rows, key=lambda row: int(row["id"])):  # the axes of a stream stand in the order of their ids
        names = [name for name in row if name != "id"]
        listed = ", ".join(f'"{name}"' for name in names)
        sql = f"INSERT INTO {table} ({listed}) VALUES ({_marks(names)})"
        new[int(row["id"])] = int(connection.execute(sql, [row[name] for name in names]).lastrowid or 0)
    return new


def _marks(values: Any) -> str:
    return ",".join("?" * len(values))
