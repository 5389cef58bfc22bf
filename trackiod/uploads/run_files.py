"""A run's rows behind its cursor, as files: what one run adds to a commit. Reads this host's store and nothing else."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import msgpack
import numpy as np

from trackio.names import derived_id
from trackio.places import Places
from trackiod import catalog
from trackiod.keeper import blob_path
from trackiod.node import SystemView
from trackiod.store import schema
from trackiod.store.reader import ProjectReader
from trackiod.uploads import tables
from trackiod.uploads.cursor import Cursor, File
from trackiod.uploads.rows import Points, StreamRows
from trackiod.uploads.tables import RowFacts, Writer
from trackiod.uploads.target import RunState, Target
from trackiod.views.column import typed

MOST_ROWS = 1 << 20
"""in a file"""
SYSTEM_SECONDS = 900.0
"""from one upload of a running run's samples to the next"""
_MOST_MEDIA = 200
"""files of values in a commit"""
_PLAIN = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")
_SCHEMAS = {"metrics": tables.METRICS, "system": tables.SYSTEM, "alerts": tables.ALERTS, "runs": tables.RUNS}


class Addition(NamedTuple):
    """What a run adds to a commit, and how far it is uploaded once that is taken."""

    run: str
    adds: dict[str, str | bytes]
    state: RunState
    rows: int
    deletes: tuple[str, ...] = ()


class _Stream(NamedTuple):
    id: str
    rank: int
    attempt: str
    committed: int
    meta: dict[str, Any]


class Source(NamedTuple):
    """Where a run's rows come from."""

    places: Places
    connection: sqlite3.Connection
    project: str
    target: Target
    store: str
    """in the names of its files: other hosts write beside them"""
    scratch: str


class RunFiles:
    """One run's."""

    def __init__(self, source: Source, run: str) -> None:
        self._source = source
        self.run = run
        (self._name, self._group) = source.connection.execute(
            "SELECT name, run_group FROM runs WHERE id = ?", (run,)
        ).fetchone()
        rows = source.connection.execute(
            "SELECT id, rank, attempt, committed, meta FROM streams WHERE run = ? AND role = 'rank'"
            " ORDER BY started_ns, id", (run,),
        )  # fmt: skip
        self._streams = [_Stream._make((*row[:-1], msgpack.unpackb(row[-1]))) for row in rows.fetchall()]
        self.problems: list[str] = []

    # -- names at the target -------------------------------------------------------------------------------------------

    @property
    def _folder(self) -> str:
        return folder_of(self.run)

    def _path(self, kind: str, number: int) -> str:
        return f"{kind}/{self._folder}/{self._source.store}-{number:06d}.parquet"

    @property
    def cursor_path(self) -> str:
        return cursor_path(self.run, self._source.store)

    # -- what is new ---------------------------------------------------------------------------------------------------

    def additions(self, state: RunState, token: str, most_rows: int, now: float) -> Iterator[Addition]:
        """File after file of at most so many rows; the last also holds what is known of the run now."""
        is_last = False
        while not is_last:
            cursor = state.cursor
            number = cursor.next_number
            with self._one_view():
                file, adds = self._metrics(cursor, most_rows)
            is_last = all(file.end[stream.id] >= stream.committed for stream in self._streams)
            adds |= self._alerts(file)
            system_at, samples = state.system_at, cursor.samples
            with self._made("system") as (path, writer):
                self._logged_system(writer, file)
                if is_last and (now - system_at >= SYSTEM_SECONDS or not self.is_running):
                    system_at, samples = now, cursor.samples | self._sampled(writer, cursor)
            adds |= {self._path("system", number): path} if writer.rows else {}
            cursor = cursor.grown(file)._replace(samples=samples, next_number=number + bool(adds))
            files: tuple[str, ...] = state.files
            is_whole = True
            if is_last:
                media, files, is_whole = self._media(state.files)
                adds |= media
                adds[f"runs/{self._folder}/{self._source.store}.parquet"] = self._facts()
            adds[self.cursor_path] = cursor.to_json().encode()
            state = RunState(cursor, token if is_last and is_whole else "", system_at, files, is_merged=False)
            yield Addition(self.run, adds, state, file.rows)

    @property
    def is_running(self) -> bool:
        """Whether one of its processes on this host goes on."""
        sql = "SELECT 1 FROM streams WHERE run = ? AND state IS NULL LIMIT 1"
        return self._source.connection.execute(sql, (self.run,)).fetchone() is not None

    @contextmanager
    def _one_view(self) -> Iterator[None]:
        """What is folded meanwhile is neither missed nor seen twice."""
        self._source.connection.execute("BEGIN")
        try:
            yield
        finally:
            self._source.connection.execute("ROLLBACK")

    def _metrics(self, cursor: Cursor, most_rows: int) -> tuple[File, dict[str, str | bytes]]:
        """The next file of points, and where it lies here, if it has any."""
        starts = {stream.id: cursor.streams.get(stream.id, 0) for stream in self._streams}
        ends = dict(starts)
        with self._made("metrics") as (path, writer):
            for stream in self._streams:
                if stream.committed <= starts[stream.id]:
                    continue
                if writer.rows >= most_rows:
                    break
                rows = StreamRows(self._source.connection, stream.id, starts[stream.id])
                ends[stream.id], _ = rows.end_of(most_rows - writer.rows)
                self._write(writer, stream, rows.points(ends[stream.id]))
                self.problems += rows.problems
        file = File(cursor.next_number, writer.rows, starts, ends)
        return file, {self._path("metrics", file.number): path} if writer.rows else {}

    def _write(self, writer: Writer, stream: _Stream, points: Iterator[Points]) -> None:
        facts = self._row_facts(stream)
        for each in points:
            writer.add_points(facts, each)

    def _row_facts(self, stream: _Stream | None, rank: int | None = None) -> RowFacts:
        attempt = stream.attempt if stream else ""
        rank = stream.rank if stream else rank
        return RowFacts(self._source.project, self.run, self._name, rank, attempt, self._source.target.node)

    def _made(self, kind: str) -> _Made:
        return _Made(self._source.scratch, _SCHEMAS[kind])

    def _alerts(self, file: File) -> dict[str, str | bytes]:
        with self._made("alerts") as (path, writer):
            for stream in self._streams:
                found = self._between("start, time_ns, step, level, title, text", "alerts", stream, file)
                columns = ("seq", "time", "step", "level", "title", "text")
                facts = self._row_facts(stream)._asdict()
                writer.add_rows([facts | dict(zip(columns, row, strict=True)) for row in found])
        return {self._path("alerts", file.number): path} if writer.rows else {}

    def _between(self, columns: str, table: str, stream: _Stream, file: File) -> list[tuple[Any, ...]]:
        """Rows beside the points, of a file's stretch of a stream."""
        sql = f"SELECT {columns} FROM {table} WHERE stream = ? AND start >= ? AND start < ? ORDER BY start"
        values = (stream.id, file.start[stream.id], file.end[stream.id])
        return self._source.connection.execute(sql, values).fetchall()

    def _logged_system(self, writer: Writer, file: File) -> None:
        """What `log_system()` was given."""
        for stream in self._streams:
            for start, time_ns, packed in self._between("start, time_ns, metrics", "system", stream, file):
                for name, value in msgpack.unpackb(packed, strict_map_key=False).items():
                    place = np.array([start]), np.array([0]), np.array([time_ns])
                    writer.add_points(self._row_facts(stream), Points(name, *place, typed([value])))

    def _sampled(self, writer: Writer, cursor: Cursor) -> dict[str, int]:
        """What samplers of this host read that concerns the run; returns up to which time."""
        path = schema.path_of(self._source.places.projects, self._source.project)
        with ProjectReader(path, is_alone=True) as reader:
            view = catalog.find_run(reader, self.run)
            if view.id != self.run:
                return {}  # it goes on with another, whose view has all of it
            with SystemView(self._source.places.projects, view, is_alone=True) as system:
                upto = {}
                for sampler, last_ns, rank, name, column in system.columns():
                    after = cursor.samples.get(sampler, 0)
                    upto[sampler] = max(after, last_ns)
                    chosen = (column.times_ns > after) & (column.times_ns <= last_ns)
                    if chosen.any():
                        steps, times, values = column.steps[chosen], column.times_ns[chosen], column.values[chosen]
                        writer.add_points(self._row_facts(None, rank), Points(name, steps, steps, times, values))
                return upto

    def _media(self, sent: Sequence[str]) -> tuple[dict[str, str | bytes], tuple[str, ...], bool]:
        """Files of values that are not at the target yet; which are then; whether that is all."""
        adds: dict[str, str | bytes] = {}
        known = set(sent)
        project = schema.project_id(self._source.project)
        for stream in self._streams:
            rows = self._source.connection.execute(
                "SELECT id, digest, suffix FROM files WHERE stream = ? AND state = 'kept' AND artifact IS NULL"
                " ORDER BY at_ns",
                (stream.id,),
            )
            for id_, digest, suffix in rows.fetchall():
                path = blob_path(self._source.places.blobs, project, digest, suffix)
                if id_ in known or not os.path.exists(path):
                    continue
                if len(adds) >= _MOST_MEDIA:
                    return adds, tuple(sorted(known)), False
                adds[f"media/{self._folder}/{id_.replace('/', '-')}{suffix}"] = path
                known.add(id_)
        return adds, tuple(sorted(known)), True

    def _facts(self) -> str:
        """A file with what is known of the run on this host."""
        (started, ended, points, refused, worlds, ranks) = self._source.connection.execute(
            "SELECT min(started_ns), max(coalesce(ended_ns, last_ns)), sum(points), sum(refused_points),"
            " max(world_size), count(DISTINCT rank) FROM streams WHERE run = ? AND role = 'rank'", (self.run,),
        ).fetchone()  # fmt: skip
        path = schema.path_of(self._source.places.projects, self._source.project)
        with ProjectReader(path, is_alone=True) as reader:
            view = catalog.find_run(reader, self.run)
            state = view.state.state
            config = view.config()
        about = self._streams[0].meta if self._streams else {}
        shown = self._source.target.shows_host
        row = {
            "project": self._source.project, "run_id": self.run, "run": self._name, "group": self._group,
            "node": self._source.target.node, "host": about.get("host") if shown else None, "state": state,
            "started": started, "ended": None if state == "running" else ended, "world_size": worlds, "ranks": ranks,
            "points": points, "refused_points": refused, "config": json.dumps(config, default=str),
            **{word: _text(about.get(word)) for word in ("tags", "notes", "job_type")},
        }  # fmt: skip
        with self._made("runs") as (made, writer):
            writer.add_rows([row])
        return made

    # -- many small files into few -------------------------------------------------------------------------------------

    def merged(self, state: RunState, there: Sequence[str]) -> Addition | None:
        """One file in the place of several small ones that follow each other, with the same rows; None if there are no
        two. `there`: the paths at the target."""
        some = _small(state.cursor.files)
        if not some:
            return None
        number = state.cursor.next_number
        starts, ends = some[0].start, some[-1].end
        with self._one_view(), self._made("metrics") as (path, writer):
            for stream in self._streams:
                if stream.id in ends:
                    rows = StreamRows(self._source.connection, stream.id, starts.get(stream.id, 0))
                    self._write(writer, stream, rows.points(ends[stream.id]))
        if writer.rows != sum(file.rows for file in some):
            return None  # they cannot be made again from what is stored here; they stay
        merged = File(number, writer.rows, starts, ends)
        files = [file for file in state.cursor.files if file not in some]
        files.insert(state.cursor.files.index(some[0]), merged)
        cursor = state.cursor._replace(files=tuple(files), next_number=number + 1)
        adds: dict[str, str | bytes] = {
            self._path("metrics", number): path,
            self.cursor_path: cursor.to_json().encode(),
        }
        old = [self._path("metrics", file.number) for file in some]
        return Addition(self.run, adds, state._replace(cursor=cursor), 0, tuple(path for path in old if path in there))


def can_merge(cursor: Cursor) -> bool:
    """Whether some of a run's files would fit into one."""
    return bool(_small(cursor.files))


def _small(files: Sequence[File]) -> list[File]:
    """The longest stretch of files that fit into one."""
    best: list[File] = []
    for begin in range(len(files)):
        rows, end = 0, begin
        while end < len(files) and rows + files[end].rows <= MOST_ROWS:
            rows += files[end].rows
            end += 1
        if end - begin > max(1, len(best)):
            best = list(files[begin:end])
    return best


class _Made:
    """A new file and its writer, as a context manager."""

    def __init__(self, folder: str, schema_: Any) -> None:
        handle, self._path = tempfile.mkstemp(".parquet", dir=folder)
        os.close(handle)
        self._writer = Writer(self._path, schema_)

    def __enter__(self) -> tuple[str, Writer]:
        return self._path, self._writer

    def __exit__(self, *_: object) -> None:
        self._writer.__exit__()


def points_of(connection: sqlite3.Connection, run: str) -> int:
    """How many points of a run are stored; `Cursor.rows` of them are at the target."""
    sql = "SELECT coalesce(sum(points), 0) FROM streams WHERE run = ? AND role = 'rank'"
    return int(connection.execute(sql, (run,)).fetchone()[0])


def folder_of(run: str) -> str:
    """What a run's folders at a target are called: its id, if that is a name everywhere."""
    return run if _PLAIN.fullmatch(run) else derived_id("run", run)


def cursor_path(run: str, store: str) -> str:
    """Where the cursor of a run of a store lies at a target."""
    return f"cursors/{folder_of(run)}/{store}.json"


def empty_files(scratch: str) -> dict[str, str]:
    """A file without rows of each kind."""
    files = {}
    for kind, schema_ in _SCHEMAS.items():
        with _Made(scratch, schema_) as (path, _):
            files[f"{kind}/none/none.parquet"] = path
    return files


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value)
