"""Reading one project's database, read-only; needs no daemon and no numpy. Each question is one bounded transaction.

What is damaged is left out and named in `problems`; the rest is read.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import msgpack

from trackio.lookup import list_folder, sentence_of
from trackio.names import HOST
from trackio.record import salvage
from trackiod.errors import StoreDamaged, StoreError
from trackiod.store import schema
from trackiod.store.digest import log_records
from trackiod.store.shelf_reader import ShelfReader
from trackiod.views.attempts import Start, Stream, start_of
from trackiod.views.lineage import RunRow

_RUN = "id, name, run_group, created_ns, resumes"
_ROOTS = (
    "SELECT id, name, run_group, created_ns, resumes FROM runs r WHERE (resumes = 0 OR NOT EXISTS (SELECT 1 FROM runs e"
    " WHERE e.name = r.name AND (e.created_ns, e.id) < (r.created_ns, r.id)))"
)
_AT_ONCE = 500
"""of SQLite's 999 host parameters"""


class SeriesRow(NamedTuple):
    """What the store knows of one series without reading its points."""

    id: int
    stream: str
    name: str
    points: int
    counted: int
    first_step: int
    max_step: int
    last_step: int
    last_ns: int
    ascending: bool
    numbers: int
    nans: int
    low: float | None
    high: float | None
    total: float | None
    last: Any


class HoleRow(NamedTuple):
    """A range of a stream that is lost or unreadable."""

    stream: str
    start: int
    end: int
    cause: str


class ProjectReader(ShelfReader):
    """One project's database. Owns the connection; use as a context manager."""

    def __init__(self, path: str, *, is_alone: bool = False, store: str = "") -> None:
        """`is_alone`: without what other hosts have copied of the project; `store`: only what was copied of this one.
        Raises StoreError."""
        self.path = path
        self.problems: list[str] = []
        """a sentence for each part that could not be read"""
        self._connection = (
            schema.open_others(path, store) if store else schema.open_for_reading(path, is_alone=is_alone)
        )
        try:
            with schema.closed_if_it_fails(self._connection):
                self.project = schema.project_of(self._connection, path)
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise schema.named(error, path) from error

    def __enter__(self) -> ProjectReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    # -- runs ------------------------------------------------------------------------------------------------

    def roots(self, most: int, before: RunRow | None = None) -> list[RunRow]:
        """The newest runs that do not go on with another, newest first; those older than `before`."""
        if before is None:
            rows = self._all(f"{_ROOTS} ORDER BY created_ns DESC, id DESC LIMIT ?", most)
        else:
            rows = self._all(
                f"{_ROOTS} AND (created_ns, id) < (?, ?) ORDER BY created_ns DESC, id DESC LIMIT ?",
                before.created_ns, before.id, most,
            )  # fmt: skip
        return [RunRow._make(row) for row in rows]

    def count_runs(self) -> int:
        """How many runs there are, those that go on with another apart."""
        return int(self._all(f"SELECT count(*) FROM ({_ROOTS})")[0][0])

    def root_of(self, run: str) -> RunRow | None:
        """The run of that id, or the one it goes on with; None if there is none."""
        rows = self._all(f"SELECT {_RUN} FROM runs WHERE id = ?", run)
        return self._root(RunRow._make(rows[0])) if rows else None

    def newest_named(self, name: str) -> RunRow | None:
        """The newest run of that name; None if there is none."""
        rows = self._all(f"SELECT {_RUN} FROM runs WHERE name = ? ORDER BY created_ns DESC, id DESC LIMIT 1", name)
        return self._root(RunRow._make(rows[0])) if rows else None

    def _root(self, row: RunRow) -> RunRow:
        """The newest run of this name, up to this one, that asked for no other; else the oldest (see `lineage`)."""
        if not row.resumes:
            return row
        for condition in ("AND resumes = 0 ORDER BY created_ns DESC, id DESC", "ORDER BY created_ns, id"):
            rows = self._all(
                f"SELECT {_RUN} FROM runs WHERE name = ? AND (created_ns, id) <= (?, ?) {condition} LIMIT 1",
                row.name, row.created_ns, row.id,
            )  # fmt: skip
            if rows:
                return RunRow._make(rows[0])
        return row

    def members(self, root: RunRow) -> list[RunRow]:
        """A run and those that go on with it, oldest first."""
        rows = self._all(
            f"SELECT {_RUN} FROM runs WHERE name = ? AND resumes AND (created_ns, id) > (?, ?) AND NOT EXISTS ("
            " SELECT 1 FROM runs e WHERE e.name = ? AND e.resumes = 0 AND (e.created_ns, e.id) > (?, ?)"
            " AND (e.created_ns, e.id) < (runs.created_ns, runs.id)) ORDER BY created_ns, id",
            *2 * (root.name, root.created_ns, root.id),
        )  # fmt: skip
        return [root, *map(RunRow._make, rows)]

    def names_that_go_on(self, names: Collection[str]) -> set[str]:
        """Of these names, those of which a run may go on with another."""
        rows = self._each("SELECT DISTINCT r.name FROM runs r WHERE r.resumes AND r.name IN ({}) AND EXISTS (SELECT 1"
                          " FROM runs e WHERE e.name = r.name AND e.id <> r.id)", names)  # fmt: skip
        return {row[0] for row in rows}

    def running(self) -> list[str]:
        """The ids of runs that have an open stream."""
        return [row[0] for row in self._all("SELECT DISTINCT run FROM streams WHERE state IS NULL")]

    def ended_last(self, most: int) -> list[str]:
        """The ids of runs whose streams ended last, the newest first."""
        found: dict[str, None] = {}
        with self.transaction():
            for (run,) in self._connection.execute(
                "SELECT run FROM streams WHERE state IS NOT NULL ORDER BY ended_ns DESC"
            ):
                found[run] = None
                if len(found) >= most:
                    break
        return list(found)

    # -- streams -----------------------------------------------------------------------------------------------

    def streams(self, runs: Collection[str]) -> list[Stream]:
        """The streams of these runs, in the order of their starts."""
        rows = self._each(
            "SELECT id, run, role, rank, attempt, process, started_ns, ended_ns, state, coalesce(cause, ''), records,"
            " points, refused_records, refused_points, last_ns, world_size FROM streams WHERE run IN ({})", runs,
        )  # fmt: skip
        return sorted((Stream(*row) for row in rows), key=lambda s: (s.started_ns, s.id))

    def starts(self, runs: Collection[str]) -> dict[str, Start]:
        """What the streams of these runs said of their starts, by stream."""
        jumps: dict[str, list[tuple[int, int]]] = {}
        for stream, *jump in self._each(
            "SELECT c.stream, c.time_ns, c.monotonic_ns FROM streams s CROSS JOIN clocks c ON c.stream = s.id"
            " WHERE s.run IN ({})", runs,
        ):  # fmt: skip
            jumps.setdefault(stream, []).append((jump[0], jump[1]))
        return {stream: start_of(meta, jumps.get(stream, ())) for stream, meta in self.metas(runs).items()}

    def has_stream(self, stream: str) -> bool:
        """Whether anything is known of a stream."""
        return bool(self._all("SELECT 1 FROM streams WHERE id = ?", stream))

    def metas(self, runs: Collection[str]) -> dict[str, dict[str, Any]]:
        """Everything that the streams of these runs said of themselves, by stream."""
        return {row[0]: msgpack.unpackb(row[1])
                for row in self._each("SELECT id, meta FROM streams WHERE run IN ({})", runs)}  # fmt: skip

    def series(self, runs: Collection[str]) -> list[SeriesRow]:
        """What is known of each series of these runs."""
        rows = self._each(
            "SELECT m.id, m.stream, m.name, m.points, m.counted, m.first_step, m.max_step, m.last_step, m.last_ns,"
            " m.ascending, m.numbers, m.nans, m.low, m.high, m.total, m.last"
            " FROM series m JOIN streams s ON s.id = m.stream WHERE s.run IN ({})", runs,
        )  # fmt: skip
        return [SeriesRow._make((*row[:-1], msgpack.unpackb(row[-1], strict_map_key=False))) for row in rows]

    def highest_step(self) -> int | None:
        """The highest step of any run."""
        step: int | None = self._all("SELECT max(max_step) FROM series")[0][0]
        return step

    def config(self, stream: str) -> dict[str, Any]:
        """A stream's configuration."""
        return self._values("configs", stream)

    def summary(self, stream: str) -> dict[str, Any]:
        """What the user set in the summary."""
        return self._values("summaries", stream)

    def _values(self, table: str, stream: str) -> dict[str, Any]:
        rows = self._all(f"SELECT key, value FROM {table} WHERE stream = ? ORDER BY key", stream)
        return {key: msgpack.unpackb(value, strict_map_key=False) for key, value in rows}

    def definitions(self, run: str) -> dict[str, dict[str, Any]]:
        """What `define_metric` said in a run, by name or glob."""
        rows = self._all("SELECT name, options FROM definitions WHERE run = ?", run)
        return {name: msgpack.unpackb(options) for name, options in rows}

    def holes(self, run: str) -> list[HoleRow]:
        """What is lost or unreadable of a run."""
        rows = self._all(
            'SELECT h.stream, h.start, h."end", h.cause FROM holes h JOIN streams s ON s.id = h.stream'
            " WHERE s.run = ? ORDER BY h.stream, h.start",
            run,
        )
        return [HoleRow(*row) for row in rows]

    def recent(self, stream: str, batches: int) -> list[tuple[int, int]]:
        """(time_ns, step) of the log() calls in a stream's last batches, and of the ends of what was folded last."""
        with self.transaction():
            folded = self._all(
                "SELECT first_ns, first_step, last_ns, last_step FROM axes WHERE stream = ? ORDER BY id DESC LIMIT 1",
                stream,
            )
            ids = self._all("SELECT id FROM batches WHERE stream = ? ORDER BY start DESC LIMIT ?", stream, batches)
            rows = list(self._rows("batches", "start, data", [row[0] for row in ids]))
        found = [(row[i], row[i + 1]) for row in folded for i in (0, 2)]
        for start, data in reversed(rows):
            found += [(record.time_ns, record.step) for record in log_records(salvage(data, start))]
        return found

    # -- parts of series, for `store.points`; inside `transaction` -----------------------------------------------

    def names(self, stream: str) -> list[str]:
        """The names of all series of a stream."""
        return [row[0] for row in self._all("SELECT name FROM series WHERE stream = ?", stream)]

    def series_names(self, stream: str, metrics: Collection[str]) -> dict[int, str]:
        """The ids and names of these series of a stream."""
        if len(metrics) > _AT_ONCE:
            rows = self._connection.execute("SELECT id, name FROM series WHERE stream = ?", (stream,))
            return {id_: name for id_, name in rows if name in metrics}
        marks = ",".join("?" * len(metrics))
        sql = f"SELECT id, name FROM series WHERE stream = ? AND name IN ({marks})"
        return dict(self._connection.execute(sql, (stream, *metrics)).fetchall())

    def chunks(self, columns: str, series: Collection[int]) -> list[Any]:
        """The chunks of these series, each series' in the stream's order."""
        sql = "SELECT id FROM chunks WHERE series = ? ORDER BY axis"
        ids = [row[0] for id_ in series for row in self._connection.execute(sql, (id_,))]
        return list(self._rows("chunks", columns, ids))

    def axes(self, columns: str, stream: str, wanted: Collection[int]) -> dict[int, tuple[Any, ...]]:
        """Of a stream's axes those that are wanted, by id."""
        rows = self._connection.execute("SELECT id FROM axes WHERE stream = ? ORDER BY id", (stream,)).fetchall()
        return {row[0]: row[1:] for row in self._rows("axes", f"id, {columns}", [r[0] for r in rows if r[0] in wanted])}

    def raw(self, stream: str) -> list[tuple[int, bytes]]:
        """(start, bytes) of the batches that are not folded yet."""
        rows = self._connection.execute("SELECT id FROM batches WHERE stream = ? ORDER BY start", (stream,)).fetchall()
        return list(self._rows("batches", "start, data", [row[0] for row in rows]))

    def _rows(self, table: str, columns: str, ids: list[int]) -> Iterator[Any]:
        """These rows; a page that cannot be read costs what stands on it, and is named."""
        sql = f"SELECT {columns} FROM {table} WHERE id = ?"
        for id_ in ids:
            try:
                row = self._connection.execute(sql, (id_,)).fetchone()
            except sqlite3.DatabaseError as error:
                self.problems.append(
                    f"Row {id_} of {table} in {self.path} cannot be read ({error}); the rest is shown."
                )
                continue
            if row is None:  # an index names it, and its page is damaged
                self.problems.append(f"Row {id_} of {table} in {self.path} is missing; the rest is shown.")
                continue
            yield row

    # -- SQLite --------------------------------------------------------------------------------------------------

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """One view of the file: what is folded meanwhile is not seen twice, nor missed."""
        try:
            self._connection.execute("BEGIN")
            yield
        except sqlite3.Error as error:
            raise StoreDamaged(f"{self.path} cannot be read ({error}).") from error
        finally:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")

    def _all(self, sql: str, *values: Any) -> list[Any]:
        try:
            return self._connection.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise StoreDamaged(f"{self.path} cannot be read ({error}).") from error

    def _each(self, sql: str, values: Collection[str]) -> list[Any]:
        """The rows for all values that stand in `IN ({})`."""
        listed = list(values)
        rows = []
        for start in range(0, len(listed), _AT_ONCE):
            some = listed[start : start + _AT_ONCE]
            rows += self._all(sql.format(",".join("?" * len(some))), *some)
        return rows


def own_paths(projects: str) -> list[str]:
    """The database files in a folder; none if it is not there, or cannot be listed (`unlisted` says which)."""
    try:
        names = sorted(list_folder(projects))
    except OSError:
        return []
    return [os.path.join(projects, name) for name in names if name.endswith(schema.SUFFIX)]


def unlisted(projects: str) -> list[str]:
    """A sentence if the folder cannot be listed, so that nobody takes that for no projects."""
    try:
        list_folder(projects)
    except OSError as error:
        return [f"The projects cannot be listed: {sentence_of(error)}"]
    return []


def own_names(projects: str) -> tuple[list[str], list[str]]:
    """The names of this host's own projects, also of those whose layout is yet to be brought to ours, and a sentence
    for each file that cannot be read."""
    names: list[str] = []
    problems = unlisted(projects)
    for path in own_paths(projects):
        try:
            names.append(schema.name_in(path))
        except StoreError as error:
            problems.append(str(error))
    return sorted(names), problems


def paths(projects: str) -> list[str]:
    """The database file of every project, this host's own or what others have copied."""
    own = own_paths(projects)
    known = {os.path.basename(path) for path in (*own, schema.path_of(projects, HOST))}
    return own + [path for path in own_paths(schema.elsewhere(projects)) if os.path.basename(path) not in known]


def asides(projects: str) -> list[str]:
    """A sentence for each project's database that was set aside."""
    try:
        names = sorted({name.partition(schema.SUFFIX)[0] for name in os.listdir(projects)})
    except OSError:
        return []
    return [sentence for name in names for sentence in schema.asides(os.path.join(projects, name + schema.SUFFIX))]


def project_names(projects: str) -> tuple[list[str], list[str]]:
    """The names of all projects, sorted, and a sentence for each file that cannot be read."""
    names: list[str] = []
    problems = unlisted(projects)
    for path in paths(projects):
        try:
            with ProjectReader(path) as reader:
                names.append(reader.project)
        except StoreError as error:
            problems.append(str(error))
    problems += asides(projects)
    return sorted(names), problems
