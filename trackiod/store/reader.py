"""Reading one project's database, read-only; needs no daemon. Each method is one bounded transaction."""

from __future__ import annotations

import os
import sqlite3
from typing import Any, NamedTuple

import msgpack

from trackiod.errors import StoreDamaged, StoreError
from trackiod.store import schema
from trackiod.store.digest import points
from trackiod.views.attempts import Stream
from trackiod.views.lineage import RunRow
from trackiod.views.reduction import SeriesPoint


class MetricRow(NamedTuple):
    """What the store knows of one metric of one stream without reading its points."""

    stream: str
    name: str
    points: int
    counted: int
    first_step: int
    max_step: int
    last_step: int
    last_ns: int
    last: Any


class HoleRow(NamedTuple):
    """A range of a stream that is lost or unreadable."""

    stream: str
    start: int
    end: int
    cause: str


class ProjectReader:
    """One project's database. Owns the connection; use as a context manager."""

    def __init__(self, path: str) -> None:
        """Raises StoreError."""
        self.path = path
        self._connection = schema.open_for_reading(path)
        try:
            row = self._connection.execute("SELECT value FROM meta WHERE key = 'project'").fetchone()
        except sqlite3.Error as error:
            self._connection.close()
            raise StoreDamaged(f"{path} is damaged ({error}).") from error
        self.project = str(row[0])

    def __enter__(self) -> ProjectReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    def runs(self) -> list[RunRow]:
        """All runs, oldest first."""
        rows = self._all("SELECT id, name, run_group, created_ns, resumes FROM runs ORDER BY created_ns, id")
        return [RunRow._make(row) for row in rows]

    def streams(self, run: str | None = None) -> list[Stream]:
        """The streams of a run, or of all runs, in the order of their starts."""
        rows = self._all(
            "SELECT id, run, role, rank, attempt, started_ns, ended_ns, state, coalesce(cause, ''), records,"
            " points, refused_records, refused_points, last_ns, meta FROM streams"
            " WHERE ?1 IS NULL OR run = ?1 ORDER BY started_ns, id",
            run,
        )
        return [Stream._make((*row[:-1], msgpack.unpackb(row[-1]))) for row in rows]

    def metrics(self, run: str) -> list[MetricRow]:
        """What is known of each metric of each of a run's streams."""
        rows = self._all(
            "SELECT m.stream, m.name, m.points, m.counted, m.first_step, m.max_step, m.last_step, m.last_ns, m.last"
            " FROM metrics m JOIN streams s ON s.id = m.stream WHERE s.run = ? ORDER BY s.rank, m.name",
            run,
        )
        return [MetricRow._make((*row[:-1], msgpack.unpackb(row[-1]))) for row in rows]

    def config(self, stream: str) -> dict[str, Any]:
        """A stream's configuration."""
        rows = self._all("SELECT key, value FROM configs WHERE stream = ? ORDER BY key", stream)
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

    def points(self, stream: Stream, attempt: int, metrics: frozenset[str]) -> dict[str, list[SeriesPoint]]:
        """The points of these metrics in one stream, as logged, each metric's in the stream's order."""
        found: dict[str, list[SeriesPoint]] = {name: [] for name in metrics}
        rows = self._all("SELECT start, data FROM batches WHERE stream = ? ORDER BY start", stream.id)
        for start, data in rows:
            for name, p in points(data, start, metrics):
                order = (stream.started_ns, stream.id, p.offset)
                found[name].append(SeriesPoint(stream.rank, attempt, order, p.step, p.origin, p.time_ns, p.value))
        return found

    def recent(self, stream: str, batches: int) -> list[SeriesPoint]:
        """Every point in a stream's last batches, of any metric, in the stream's order."""
        rows = self._all(
            "SELECT start, data FROM batches WHERE stream = ? ORDER BY start DESC LIMIT ?", stream, batches
        )
        return [
            SeriesPoint(0, 0, (0, stream, p.offset), p.step, p.origin, p.time_ns, p.value)
            for start, data in reversed(rows)
            for _, p in points(data, start)
        ]

    def _all(self, sql: str, *values: Any) -> list[Any]:
        try:
            return self._connection.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise StoreDamaged(f"{self.path} cannot be read ({error}).") from error


def paths(projects: str) -> list[str]:
    """The database files in a folder; none if it is not there."""
    try:
        names = sorted(os.listdir(projects))
    except OSError:
        return []
    return [os.path.join(projects, name) for name in names if name.endswith(schema.SUFFIX)]


def project_names(projects: str) -> tuple[list[str], list[str]]:
    """The names of all projects, sorted, and a sentence for each file that cannot be read."""
    names, problems = [], []
    for path in paths(projects):
        try:
            with ProjectReader(path) as reader:
                names.append(reader.project)
        except StoreError as error:
            problems.append(str(error))
    return sorted(names), problems
