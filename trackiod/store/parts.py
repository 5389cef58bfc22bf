"""A run in parts: small databases in the layout of a project's, each closed once it is written, that are put together
again on another host. Knows SQLite; where the files lie is its callers' business.

Each part holds columns; the last of a run also what is known of the run now, and, in columns too, what its streams'
raw batches hold: records as they came may name a webhook, which is a secret. Row ids of what comes from elsewhere begin
at 2^40, this host's own are below, so the two never meet.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import sqlite3
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from trackio.places import create
from trackiod.errors import StoreDamaged
from trackiod.store import additions, batch, removal, schema
from trackiod.store.layout import FACTS, TABLES, VERSION

FULL_BYTES = 8 << 20
"""of columns, from which on a part is not written again"""
_FIRST_ID = 1 << 40
FULL_LABEL = "v.version || '-' || substr(v.digest, 1, 8)"
"""what a version is called on every host (`views.versions`)"""
_COPIED = {
    ("alerts", "webhook"): "NULL",  # a secret
    ("artifacts", "version"): f"(SELECT {FULL_LABEL} FROM versions v WHERE v.name = artifacts.name"
                              " AND v.version = artifacts.version AND role = 'output')",
}  # fmt: skip
"""columns that are not copied as they are"""
_KNOWN = "known"
_NO_END = (1 << 63) - 1


class Place(NamedTuple):
    """An axis by what it is, not by its number: a restored database counts anew."""

    axis: int
    stream: str
    start: int


# -- here: from this host's store into a part -----------------------------------------------------------------------


def tokens(source: sqlite3.Connection) -> dict[str, str]:
    """What changes whenever a run does, by run."""
    rows = source.execute(
        "SELECT s.run, r.name, r.run_group, r.created_ns, count(*), sum(s.committed), count(s.state),"
        " max(coalesce(s.ended_ns, 0)), group_concat(s.state), sum(s.refused_points + s.refused_records),"
        " sum(length(s.meta)), sum(s.world_size),"
        " (SELECT count(*) FROM files f JOIN streams t ON t.id = f.stream WHERE t.run = s.run AND f.state IS NOT NULL),"
        " (SELECT count(*) FROM alerts f JOIN streams t ON t.id = f.stream WHERE t.run = s.run AND f.sent IS NOT NULL)"
        " FROM streams s JOIN runs r ON r.id = s.run GROUP BY s.run"
    )
    added = [known] if (known := additions.known()) else []
    return {run: json.dumps(facts + added) for run, *facts in rows}


def _end_of_next(source: sqlite3.Connection, run: str, after: int) -> int:
    """The last axis of the next part of what a run has behind an axis; `_NO_END` if that is all."""
    sizes = source.execute(
        "SELECT axis, sum(length(c.data)) FROM chunks c JOIN series m ON m.id = c.series JOIN streams s"
        " ON s.id = m.stream WHERE s.run = ? AND axis > ? GROUP BY axis ORDER BY axis", (run, after),
    )  # fmt: skip
    size = 0
    for axis, more in sizes:
        size += more
        if size > FULL_BYTES:
            return int(axis)
    return _NO_END


def place_of(source: sqlite3.Connection, axis: int) -> Place | None:
    """What an axis is; None if there is none of that number."""
    row = source.execute("SELECT id, stream, start FROM axes WHERE id = ?", (axis,)).fetchone()
    return Place(*row) if row else None


def write(source: sqlite3.Connection, path: str, run: str, after: int) -> Place | None:
    """Writes the next part of what a run has behind an axis into a new file. Returns the axis it ends with; None if it
    is the last part, which also holds what is known of the run. Raises sqlite3.Error or OSError."""
    with new_part(path, source) as target:
        upto = _end_of_next(source, run, after)
        _write(source, target, run, after, upto)
        return None if upto == _NO_END else place_of(source, upto)


@contextmanager
def new_part(path: str, source: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """A new file, and one view of the source: what is folded or dropped meanwhile is neither missed nor seen twice."""
    if os.path.exists(path):
        os.unlink(path)
    target = sqlite3.connect(path, isolation_level=None)
    try:
        target.execute("PRAGMA journal_mode = OFF")
        target.execute("PRAGMA synchronous = OFF")  # a part counts once it is copied and named
        target.executescript(f"BEGIN; {TABLES} PRAGMA user_version = {VERSION};")
        source.execute("BEGIN")
        yield target
        target.execute("COMMIT")
    finally:
        if source.in_transaction:
            source.execute("ROLLBACK")
        target.close()


def _write(source: sqlite3.Connection, target: sqlite3.Connection, run: str, after: int, upto: int) -> None:
    is_last = upto == _NO_END
    for (stream,) in source.execute("SELECT id FROM streams WHERE run = ?", (run,)).fetchall():
        _copy(source, target, "series", "stream = ?", stream)
        _copy(source, target, "axes", f"stream = ? AND id > {after} AND id <= {upto}", stream)
        for (series,) in source.execute("SELECT id FROM series WHERE stream = ?", (stream,)).fetchall():
            _copy(source, target, "chunks", f"series = ? AND axis > {after} AND axis <= {upto}", series)
        if is_last:
            _copy(source, target, "streams", "id = ?", stream)
            for table in FACTS:
                _copy(
                    source, target, table, "stream = ?" + (" AND artifact IS NULL" if table == "files" else ""), stream
                )
            _write_raw(source, target, stream)
    if is_last:
        _copy(source, target, "runs", "id = ?", run)
        _copy(source, target, "definitions", "run = ?", run)


def _copy(source: sqlite3.Connection, target: sqlite3.Connection, table: str, condition: str, value: Any) -> None:
    """What only other releases know is not copied: it may hold what must not leave this host."""
    columns = ", ".join(_COPIED.get((table, name), f'"{name}"') for name in additions.names(table))
    rows = source.execute(f"SELECT {columns} FROM {table} WHERE {condition}", (value,))
    target.executemany(insertion(table), rows)


def insertion(table: str, how: str = "INSERT") -> str:
    """What adds a row with all of our columns."""
    names = additions.names(table)
    return f"{how} INTO {table} ({additions.listed(names)}) VALUES ({', '.join('?' * len(names))})"


def _write_raw(source: sqlite3.Connection, target: sqlite3.Connection, stream: str) -> None:
    """What a stream's raw batches hold, in columns."""
    raw = source.execute("SELECT start, data FROM batches WHERE stream = ? ORDER BY start", (stream,)).fetchall()
    if not raw:
        return
    from trackiod.store.fold import at_once, fold  # numpy

    series = dict(source.execute("SELECT name, id FROM series WHERE stream = ?", (stream,)).fetchall())
    for axis, chunks in at_once(fold(batch.read(data, start) for start, data in raw)):
        target.execute(
            "INSERT INTO axes (id, stream, start, count, shown, first_step, last_step, first_ns, last_ns, data, blocks)"
            " SELECT coalesce(max(id), 0) + 1, ?, ?, ?, ?, ?, ?, ?, ?, ?, ? FROM axes", (stream, *axis),
        )  # fmt: skip
        (id_,) = target.execute("SELECT max(id) FROM axes").fetchone()
        target.executemany(
            "INSERT INTO chunks (series, axis, overlapped, kind, nans, low, high, total, data, blocks)"
            " VALUES (?, ?, 0, ?, ?, ?, ?, ?, ?, ?)",
            [(series[chunk.name], id_, *chunk[1:]) for chunk in chunks],
        )


# -- there: parts put together again ---------------------------------------------------------------------------------


def opened(path: str) -> sqlite3.Connection:
    """A part, which nobody changes. Raises StoreError or OSError."""
    if not os.path.exists(path):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    try:
        return schema.open_part(path)
    except sqlite3.Error as error:
        raise StoreDamaged(f"{path} is damaged ({error}).") from error


def gathering(path: str, project: str) -> sqlite3.Connection:
    """The database that a project's parts are put together in. It can be made anew, so it need not survive a crash.
    Raises StoreTooNew or sqlite3.Error."""
    if os.path.exists(path):
        schema.leave_newer(path)
    else:
        schema.remove(f"{path}.new")
        os.close(create(f"{path}.new"))  # SQLite gives the files beside it the same mode
        made = sqlite3.connect(f"{path}.new", isolation_level=None)
        made.executescript(f"PRAGMA journal_mode = WAL; BEGIN; {TABLES} PRAGMA user_version = {VERSION};")
        made.execute("INSERT INTO meta (key, value) VALUES ('project', ?)", (project,))
        made.execute("COMMIT")
        made.close()
        os.rename(f"{path}.new", path)
    connection = sqlite3.connect(path, isolation_level=None, timeout=5)
    with schema.closed_if_it_fails(connection):
        connection.execute("PRAGMA synchronous = OFF")
        if known_of(connection) != additions.known():
            note = "INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)"
            connection.execute(note, (_KNOWN, additions.known()))
    return connection


def known_of(gathered: sqlite3.Connection) -> str:
    """What was ever added to the layout, as far as whoever put parts together last knows (`additions.known`)."""
    row = gathered.execute("SELECT value FROM meta WHERE key = ?", (_KNOWN,)).fetchone()
    return str(row[0]) if row else ""


def take_columns(part: sqlite3.Connection, target: sqlite3.Connection, but: Collection[str]) -> tuple[int, int]:
    """Adds a part's columns, `but` those of these streams; returns the numbers of the axes they got: above the first,
    up to the second."""
    series = _take_series(part, target, but)
    low = high = _next_id(target, "axes") - 1
    axes = {}
    for row in _named(part, "axes", "ORDER BY id"):
        if row["stream"] not in but:
            high += 1
            axes[row["id"]] = high
            target.execute(insertion("axes"), tuple((row | {"id": high}).values()))
    ids = itertools.count(_next_id(target, "chunks"))
    chunks = (row for row in _named(part, "chunks", "ORDER BY id") if row["series"] in series)
    renumbered = (row | {"id": next(ids), "series": series[row["series"]], "axis": axes[row["axis"]]} for row in chunks)
    target.executemany(insertion("chunks"), (tuple(row.values()) for row in renumbered))
    _mark_overlapped(target, series.values())
    return low, high


def drop_columns(target: sqlite3.Connection, low: int, high: int) -> None:
    """Removes what `take_columns` added."""
    for (stream,) in target.execute(
        "SELECT DISTINCT stream FROM axes WHERE id > ? AND id <= ?", (low, high)
    ).fetchall():
        of_stream = "series IN (SELECT id FROM series WHERE stream = ?)"
        target.execute(f"DELETE FROM chunks WHERE {of_stream} AND axis > ? AND axis <= ?", (stream, low, high))
    target.execute("DELETE FROM axes WHERE id > ? AND id <= ?", (low, high))


def streams_of(part: sqlite3.Connection) -> dict[str, int]:
    """A run's streams and how much of each is stored, as its last part says."""
    return {row["id"]: row["committed"] for row in _named(part, "streams")}


def take_facts(part: sqlite3.Connection, target: sqlite3.Connection, but: Collection[str]) -> list[tuple[str, str]]:
    """Takes what a run's last part says of it, in the place of what was known, `but` of these streams. Returns (digest,
    suffix) of the files of its values."""
    for stream in streams_of(part).keys() - {*but}:
        for table in FACTS:
            target.execute(f"DELETE FROM {table} WHERE stream = ?", (stream,))
    for table in ("streams", *FACTS, "definitions"):
        names = additions.names(table)
        place = None if table == "definitions" else names.index("id" if table == "streams" else "stream")
        rows = (row for row in read(part, table) if place is None or row[place] not in but)
        target.executemany(insertion(table, "INSERT OR REPLACE"), rows)
    for run in _named(part, "runs"):
        _take_run(target, run)
    kept = _named(part, "files", "WHERE state = 'kept'")
    return [*dict.fromkeys((file["digest"], file["suffix"]) for file in kept)]


def drop_streams(target: sqlite3.Connection, streams: Sequence[str]) -> None:
    """Removes streams, and runs that have none left."""
    for stream in streams:
        removal.delete_stream(target, stream)
    if streams:
        target.execute("DELETE FROM runs WHERE NOT EXISTS (SELECT 1 FROM streams s WHERE s.run = runs.id)")
        target.execute("DELETE FROM definitions WHERE run NOT IN (SELECT id FROM runs)")


def _take_series(part: sqlite3.Connection, target: sqlite3.Connection, but: Collection[str]) -> dict[int, int]:
    """The new numbers of a part's series, by their numbers in it. Parts are taken in their order, so the last to speak
    of a series knows most of it."""
    ids = {}
    for row in _named(part, "series"):
        if row["stream"] in but:
            continue
        of_it = (row["stream"], row["name"])
        held = target.execute("SELECT id FROM series WHERE stream = ? AND name = ?", of_it).fetchone()
        ids[row["id"]] = row["id"] = held[0] if held else _next_id(target, "series")
        target.execute(insertion("series", "INSERT OR REPLACE"), tuple(row.values()))
    return ids


def _mark_overlapped(target: sqlite3.Connection, series: Collection[int]) -> None:
    """What a later chunk hides of one in an earlier part is not known here: such series' sums are not used."""
    for id_ in series:
        target.execute(
            "UPDATE chunks SET overlapped = 1 WHERE series = ? AND overlapped = 0"
            " AND (SELECT ascending FROM series WHERE id = ?) = 0", (id_, id_),
        )  # fmt: skip


def _take_run(target: sqlite3.Connection, row: dict[str, Any]) -> None:
    """A run that ran on several hosts has the name that its lowest rank gave, and began when its first process did."""
    known = target.execute("SELECT name_rank, created_ns FROM runs WHERE id = ?", (row["id"],)).fetchone()
    if known is not None:
        row["created_ns"] = min(known[1], row["created_ns"])
        if known[0] < row["name_rank"]:
            target.execute("UPDATE runs SET created_ns = ? WHERE id = ?", (row["created_ns"], row["id"]))
            return
    target.execute(insertion("runs", "INSERT OR REPLACE"), tuple(row.values()))


def read(part: sqlite3.Connection, table: str, condition: str = "") -> Iterator[tuple[Any, ...]]:
    """Rows of a part, in our columns; what is wrong with it is not to be taken for a fault of the database it is added
    to."""
    try:
        yield from part.execute(f"SELECT {additions.listed(additions.names(table))} FROM {table} {condition}")
    except sqlite3.Error as error:
        raise StoreDamaged(str(error)) from error


def _named(part: sqlite3.Connection, table: str, condition: str = "") -> Iterator[dict[str, Any]]:
    """The same, each row by its columns' names."""
    names = additions.names(table)
    return (dict(zip(names, row, strict=True)) for row in read(part, table, condition))


def _next_id(target: sqlite3.Connection, table: str) -> int:
    (highest,) = target.execute(f"SELECT max(id) FROM {table}").fetchone()
    return max(_FIRST_ID, (highest or 0) + 1)
