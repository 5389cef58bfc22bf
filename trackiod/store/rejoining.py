"""Putting what a later database holds of a project into the one from which it went on: a store that was set aside and
is whole. Inside the caller's transaction. What is in both is taken once: the offsets of streams tell what is.
"""

from __future__ import annotations

import sqlite3
from typing import Any

from trackiod.errors import StoreError
from trackiod.store import additions, removal
from trackiod.store.batch import read
from trackiod.store.digest import digest_of
from trackiod.store.project import SERIES, ProjectStore

_SAID_LAST = ("configs", "summaries")
_OTHER_FACTS = ("files", "alerts", "system")


def rejoin(later: sqlite3.Connection, store: ProjectStore) -> None:
    """Add all of a later database to the earlier one. Raises StoreError, sqlite3.Error."""
    earlier = store.connection
    known = {row[0]: row[1] for row in earlier.execute("SELECT id, committed FROM streams")}
    runs = [row[0] for row in later.execute("SELECT id FROM runs")]
    removal.copy(later, earlier, runs)
    for stream in _rows(later, "streams"):
        if stream["id"] in known:
            _go_on(later, store, stream, known[stream["id"]])
    _take_artifacts(later, earlier)


def _go_on(later: sqlite3.Connection, store: ProjectStore, stream: dict[str, Any], committed: int) -> None:
    """A stream that is in both: what lies behind its committed offset is added."""
    id_ = stream["id"]
    sql = "SELECT min(start) FROM (SELECT start FROM batches WHERE stream = ? UNION ALL"
    (first,) = later.execute(f"{sql} SELECT start FROM axes WHERE stream = ?)", (id_, id_)).fetchone()
    if first is not None and stream["committed"] > committed:
        if first > committed:
            store.add_hole(id_, committed, first, "it was lost between two databases", stream["started_ns"])
            store.skip_to(id_, first)
        if first < committed:
            _add_batches(later, store, id_, committed)
        else:
            _fold_raw(store, id_)
            _add_columns(later, store.connection, id_)
            _add_counts(store.connection, stream)
        store.skip_to(id_, max(committed, stream["committed"]))
    _add_facts(later, store.connection, id_)
    store.set_refused(id_, stream["refused_records"], stream["refused_points"])
    if stream["state"] is not None:
        end = (stream["state"], stream["cause"], stream["ended_ns"], stream["explicit"], id_)
        store.connection.execute(
            "UPDATE streams SET state = ?, cause = ?, ended_ns = ?, explicit = ? WHERE id = ?", end
        )


def _add_batches(later: sqlite3.Connection, store: ProjectStore, stream: str, committed: int) -> None:
    """Of raw batches, some of which are here: what is behind the committed offset, as if it came now."""
    if later.execute("SELECT 1 FROM axes WHERE stream = ? AND start < ? LIMIT 1", (stream, committed)).fetchone():
        raise StoreError(f"Stream {stream} is in both, and what is in both cannot be told apart.")
    for start, data in later.execute("SELECT start, data FROM batches WHERE stream = ? ORDER BY start", (stream,)):
        if start + len(data) > committed:
            rest, offset = data[max(0, committed - start) :], max(committed, start)
            store.append(stream, offset, rest, digest_of(read(rest, offset)))
            committed = offset + len(rest)


def _fold_raw(store: ProjectStore, stream: str) -> None:
    """Columns stand before raw batches: those that are here become columns before others follow."""
    sql = "SELECT start, data FROM batches WHERE stream = ? ORDER BY start"
    raw = store.connection.execute(sql, (stream,)).fetchall()
    if raw:
        from trackiod.store.fold import at_once, fold  # numpy

        folded = list(at_once(fold(read(data, start) for start, data in raw)))
        store.replace_raw(stream, raw[-1][0], folded, batches=len(raw))


def _add_columns(later: sqlite3.Connection, earlier: sqlite3.Connection, stream: str) -> None:
    """All of its series, axes, chunks and raw batches, which are none of those here."""
    series = {}
    for row in _rows(later, "series", "WHERE stream = ?", stream):
        earlier.execute(SERIES.upsert, tuple(row[name] for name in SERIES.names))
        (id_, ascending) = earlier.execute(
            "SELECT id, ascending FROM series WHERE stream = ? AND name = ?", (stream, row["name"])
        ).fetchone()
        series[row["id"]] = id_
        if not ascending:
            earlier.execute("UPDATE chunks SET overlapped = 1 WHERE series = ?", (id_,))
    axes = {}
    for row in _rows(later, "axes", "WHERE stream = ? ORDER BY id", stream):
        axes[row["id"]] = _insert(earlier, "axes", {k: v for k, v in row.items() if k != "id"})
    for old, new in series.items():
        for row in _rows(later, "chunks", "WHERE series = ? ORDER BY id", old):
            places = {"series": new, "axis": axes[row["axis"]]}
            _insert(earlier, "chunks", {k: v for k, v in (row | places).items() if k != "id"})
    for row in _rows(later, "clocks", "WHERE stream = ?", stream):
        _insert(earlier, "clocks", row)
    for row in _rows(later, "batches", "WHERE stream = ? ORDER BY id", stream):
        _insert(earlier, "batches", {k: v for k, v in row.items() if k != "id"})


def _add_counts(earlier: sqlite3.Connection, stream: dict[str, Any]) -> None:
    earlier.execute(
        "UPDATE streams SET records = records + ?, points = points + ?, last_ns = coalesce(?, last_ns) WHERE id = ?",
        (stream["records"], stream["points"], stream["last_ns"], stream["id"]),
    )


def _add_facts(later: sqlite3.Connection, earlier: sqlite3.Connection, stream: str) -> None:
    for table in (*_SAID_LAST, *_OTHER_FACTS):
        how = "INSERT OR REPLACE" if table in _SAID_LAST else "INSERT OR IGNORE"
        for row in _rows(later, table, "WHERE stream = ?", stream):
            _insert(earlier, table, row, how)
    for row in _rows(later, "holes", "WHERE stream = ? AND start > 0", stream):
        _insert(earlier, "holes", row, "INSERT OR IGNORE")  # the first is what the earlier database holds


def _take_artifacts(later: sqlite3.Connection, earlier: sqlite3.Connection) -> None:
    """Versions of the later database are numbered on from those of the earlier; equal content is one version."""
    numbers: dict[tuple[str, int], int] = {}
    for row in _rows(later, "versions", "ORDER BY name, version"):
        highest, same = earlier.execute(
            "SELECT coalesce(max(version), -1), max(CASE WHEN digest = ? THEN version END) FROM versions"
            " WHERE name = ?", (row["digest"], row["name"]),
        ).fetchone()  # fmt: skip
        numbers[row["name"], row["version"]] = number = highest + 1 if same is None else same
        if same is None:
            _insert(earlier, "versions", row | {"version": number})
    for row in _rows(later, "artifacts"):
        version = row["version"] if row["version"] is None else numbers.get((row["name"], row["version"]))
        _insert(earlier, "artifacts", row | {"version": version}, "INSERT OR IGNORE")
    for row in _rows(later, "aliases"):
        if (number := numbers.get((row["name"], row["version"]))) is not None:
            _insert(earlier, "aliases", row | {"version": number}, "INSERT OR REPLACE")


def _rows(connection: sqlite3.Connection, table: str, condition: str = "", *values: Any) -> list[dict[str, Any]]:
    """Rows with all of their columns, by name: also those that only other releases know."""
    names = additions.all_names(connection, table)
    rows = connection.execute(f'SELECT {additions.listed(names)} FROM "{table}" {condition}', values)
    return [dict(zip(names, row, strict=True)) for row in rows]


def _insert(connection: sqlite3.Connection, table: str, row: dict[str, Any], how: str = "INSERT") -> int:
    names = ", ".join(f'"{name}"' for name in row)
    marks = ",".join("?" * len(row))
    return int(connection.execute(f"{how} INTO {table} ({names}) VALUES ({marks})", tuple(row.values())).lastrowid or 0)
