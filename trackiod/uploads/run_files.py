"""A run's rows behind its cursor, as files: what one run adds to a commit. Reads this host's store and nothing else."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import msgpack
import numpy as np

from trackio.names import HOST
from trackiod import catalog, valid_json
from trackiod.errors import StoreError
from trackiod.node import SystemView
from trackiod.store import schema
from trackiod.uploads.addition import Addition
from trackiod.uploads.cursor import Cursor, File, Place
from trackiod.uploads.names import Names
from trackiod.uploads.rows import Points, StreamRows
from trackiod.uploads.source import Source, Stream, is_running, key_of
from trackiod.uploads.tables import RowFacts, Writer
from trackiod.uploads.target import RunState
from trackiod.views.column import typed

MOST_ROWS = 1 << 20
"""in a file"""
SYSTEM_SECONDS = 900.0
"""from one upload of a running run's samples to the next"""
_MOST_MEDIA, _MOST_MEDIA_BYTES = 50, 64 << 20
"""files of a run's values in a commit"""
_SAMPLES_SECONDS = 120.0
"""after a run's end, from which on no sample is waited for"""


class RunFiles:
    """One run's."""

    def __init__(self, source: Source, run: str) -> None:
        self._source = source
        self.run = run
        self.names = Names(source.project, run, source.store)
        row = source.connection.execute("SELECT name, run_group FROM runs WHERE id = ?", (run,)).fetchone()
        if row is None:
            raise StoreError(f"run {run} was deleted meanwhile")
        self._name, self._group = row
        rows = source.connection.execute(
            "SELECT id, rank, attempt, committed, meta FROM streams WHERE run = ? AND role = 'rank'"
            " ORDER BY started_ns, id", (run,),
        )  # fmt: skip
        self._streams = [Stream._make((*row[:-1], msgpack.unpackb(row[-1]))) for row in rows.fetchall()]
        self.problems: list[str] = []

    # -- what is new ---------------------------------------------------------------------------------------------------

    def additions(self, state: RunState, token: str, most_rows: int, now: float) -> Iterator[Addition]:
        """File after file of at most so many rows; the last also holds what is known of the run now."""
        is_last = False
        while not is_last:
            cursor, tag = state.cursor, self.new_tag()
            with self._one_view():
                file, adds = self._metrics(cursor, most_rows, tag)
            is_last = all(file.end[stream.id] >= stream.committed for stream in self._streams)
            adds |= self._alerts(file)
            system_at, samples = state.system_at, cursor.samples
            with self._made("system") as writer:
                self._logged_system(writer, file)
                if is_last and (now - system_at >= SYSTEM_SECONDS or not self.is_running):
                    system_at, samples = now, cursor.samples | self._sampled(writer, cursor)
            adds |= {self._path("system", file): writer.path} if writer.rows else {}
            media: dict[str, str | bytes] = {}
            files: tuple[str, ...] = state.files
            is_whole = True
            if is_last:
                media, files, is_whole = self._media(state.files)
                is_whole = is_whole and self.has_last_samples(now)
            is_news = bool(adds or media) or token != state.token
            if is_news and is_last:
                adds[self._path("runs", file)] = self._facts()
            made = [kind for kind in ("system", "alerts", "runs") if self._path(kind, file) in adds]
            before, after = set(self.names.paths(cursor)), cursor
            if is_news:
                after = cursor.grown(file, made)._replace(samples=samples)
            is_merged = state.is_merged and not file.rows
            state = RunState(after, token if is_last else "", system_at, files, is_whole, is_merged)
            seals = {self.names.cursor_path(after): after.to_json().encode()} if is_news else {}
            gone = tuple(sorted(before - {*self.names.paths(after)}))
            yield Addition(self.project, self.key, {**adds, **media}, state, file.rows, gone, seals)

    def everything(self, kind: str) -> Iterator[str]:
        """All that is stored of the run, of a kind: files that lie here."""
        whole = File(0, 0, {stream.id: 0 for stream in self._streams}, {s.id: s.committed for s in self._streams})
        if kind == "runs":
            yield self._facts()
        elif kind == "alerts":
            yield from map(str, self._alerts(whole).values())
        elif kind == "system":
            with self._made("system") as writer:
                self._logged_system(writer, whole)
                self._sampled(writer, Cursor())
            if writer.rows:
                yield writer.path
        else:
            cursor = Cursor()
            while any(cursor.streams.get(id_, 0) < end for id_, end in whole.end.items()):
                with self._one_view():
                    file, adds = self._metrics(cursor, MOST_ROWS, "")
                cursor = cursor.grown(file)
                yield from map(str, adds.values())

    def has_last_samples(self, now: float) -> bool:
        """Whether samplers have stored all that concerns the run; they do so every few seconds."""
        if self.is_running or self._source.other:
            return True
        sql = "SELECT max(coalesce(ended_ns, last_ns, started_ns)) FROM streams WHERE run = ? AND role = 'rank'"
        end = int(self._source.connection.execute(sql, (self.run,)).fetchone()[0] or 0)
        path = schema.path_of(self._source.places.projects, HOST)
        if now - end / 1e9 > _SAMPLES_SECONDS or not os.path.exists(path):
            return True
        with closing(schema.connect_for_reading(path)) as node:
            sql = "SELECT 1 FROM streams WHERE state IS NULL AND started_ns < ? AND coalesce(last_ns, 0) < ? LIMIT 1"
            return node.execute(sql, (end, end)).fetchone() is None

    @property
    def is_running(self) -> bool:
        """Whether one of its processes on this host goes on."""
        return is_running(self._source.connection, self.run)

    @property
    def project(self) -> str:
        return self._source.project

    @property
    def key(self) -> str:
        """What is remembered of it is called."""
        return key_of(self.run, self._source.other)

    def new_tag(self) -> str:
        """For the names of a change."""
        return self._source.new_tag()

    @contextmanager
    def _one_view(self) -> Iterator[None]:
        """What is folded meanwhile is neither missed nor seen twice."""
        self._source.connection.execute("BEGIN")
        try:
            yield
        finally:
            self._source.connection.execute("ROLLBACK")

    def _path(self, kind: str, file: File) -> str:
        """Of a file that comes with one of points."""
        return self.names.path(Place(kind, file.number, file.tag))

    def _metrics(self, cursor: Cursor, most_rows: int, tag: str) -> tuple[File, dict[str, str | bytes]]:
        """The next file of points, and where it lies here, if it has any."""
        starts = {stream.id: cursor.streams.get(stream.id, 0) for stream in self._streams}
        ends = dict(starts)
        with self._made("metrics") as writer:
            for stream in self._streams:
                if stream.committed <= starts[stream.id]:
                    continue
                if writer.rows >= most_rows:
                    break
                rows = StreamRows(self._source.connection, stream.id, starts[stream.id], most_rows - writer.rows)
                ends[stream.id] = rows.end
                self._write(writer, stream, rows.points(), self._name)
                self.problems += rows.problems
        file = File(cursor.next_number, writer.rows, starts, ends, self._name, tag)
        return file, {self.names.path(file.place): writer.path} if writer.rows else {}

    def _write(self, writer: Writer, stream: Stream, points: Iterator[Points], name: str) -> None:
        facts = self._row_facts(stream)._replace(run=name)
        for each in points:
            writer.add_points(facts, each)

    def _row_facts(self, stream: Stream | None, rank: int | None = None) -> RowFacts:
        attempt = stream.attempt if stream else ""
        rank = stream.rank if stream else rank
        return RowFacts(self._source.project, self.run, self._name, rank, attempt, self._node(stream))

    def _node(self, stream: Stream | None) -> int | None:
        """The number of the host in the job, as its process said; None where the run named no target."""
        for each in [stream] if stream else self._streams[:1]:
            node = (each.meta.get("target") or {}).get("node")
            return node if isinstance(node, int) else None
        return None

    def _made(self, kind: str) -> Writer:
        return Writer(self._source.scratch, kind)

    def _alerts(self, file: File) -> dict[str, str | bytes]:
        with self._made("alerts") as writer:
            for stream in self._streams:
                found = self._between("start, time_ns, step, level, title, text", "alerts", stream, file)
                columns = ("seq", "time", "step", "level", "title", "text")
                facts = self._row_facts(stream)._asdict()
                writer.add_rows([facts | dict(zip(columns, row, strict=True)) for row in found])
        return {self._path("alerts", file): writer.path} if writer.rows else {}

    def _between(self, columns: str, table: str, stream: Stream, file: File) -> list[tuple[Any, ...]]:
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
        with self._source.reader() as reader:
            view = catalog.find_run(reader, self.run)
            if view.id != self.run:
                return {}  # it goes on with another, whose view has all of it
            with SystemView(
                self._source.places.projects, view, is_alone=self._source.is_alone, store=self._source.other
            ) as system:
                upto = {}
                for sampler, last_ns, rank, name, column in system.columns():
                    after = cursor.samples.get(sampler, 0)
                    upto[sampler] = max(after, last_ns)
                    chosen = (column.times_ns > after) & (column.times_ns <= last_ns)
                    if chosen.any():
                        steps, times, values = column.steps[chosen], column.times_ns[chosen], column.values[chosen]
                        writer.add_points(self._row_facts(None, rank), Points(name, steps, steps, times, values))
                return upto

    def media(self) -> Iterator[tuple[str, str, str]]:
        """The kept files of the run's values: id, path at a target, and where it lies here, unless it was removed."""
        for stream in self._streams:
            rows = self._source.connection.execute(
                "SELECT id, digest, suffix FROM files WHERE stream = ? AND state = 'kept' AND artifact IS NULL"
                " ORDER BY at_ns",
                (stream.id,),
            )
            for id_, digest, suffix in rows.fetchall():
                place = f"media/{self.names.folder}/{id_.replace('/', '-')}{suffix}"
                yield id_, place, self._source.blob(digest, suffix)

    def _media(self, sent: Sequence[str]) -> tuple[dict[str, str | bytes], tuple[str, ...], bool]:
        """Files of values that are not at the target yet; which are then; whether that is all."""
        adds: dict[str, str | bytes] = {}
        known, size = set(sent), 0
        for id_, path, kept in self.media():
            if id_ in known or not os.path.exists(kept):
                continue
            if len(adds) >= _MOST_MEDIA or size > _MOST_MEDIA_BYTES:
                return adds, tuple(sorted(known)), False
            size += os.path.getsize(kept)
            adds[path] = kept
            known.add(id_)
        return adds, tuple(sorted(known)), True

    def _facts(self) -> str:
        """A file with what is known of the run on this host."""
        (started, ended, points, refused, worlds, ranks) = self._source.connection.execute(
            "SELECT min(started_ns), max(coalesce(ended_ns, last_ns)), sum(points), sum(refused_points),"
            " max(world_size), count(DISTINCT rank) FROM streams WHERE run = ? AND role = 'rank'", (self.run,),
        ).fetchone()  # fmt: skip
        with self._source.reader() as reader:
            view = catalog.find_run(reader, self.run)
            state = view.state.state
            config, summary = view.config(), view.own_summary
        about = self._streams[0].meta if self._streams else {}
        shown = self._source.target.shows_host
        row = {
            "project": self._source.project, "run_id": self.run, "run": self._name, "group": self._group,
            "node": self._node(None), "host": about.get("host") if shown else None, "state": state,
            "started": started, "ended": None if state == "running" else ended, "world_size": worlds, "ranks": ranks,
            "points": points, "refused_points": refused,
            "config": valid_json.dumps(config), "summary": valid_json.dumps(summary),
            **{word: _text(about.get(word)) for word in ("tags", "notes", "job_type")},
        }  # fmt: skip
        with self._made("runs") as writer:
            writer.add_rows([row])
        return writer.path

    def written_again(self, start: dict[str, int], end: dict[str, int], name: str) -> tuple[str, int]:
        """A file of all rows of a stretch, as they were when the run was called so; and how many there are."""
        with self._one_view(), self._made("metrics") as writer:
            for stream in self._streams:
                at, upto = start.get(stream.id, 0), end.get(stream.id, 0)
                while at < upto:
                    rows = StreamRows(self._source.connection, stream.id, at, MOST_ROWS)
                    if rows.end <= at:
                        break
                    self._write(writer, stream, rows.points(min(rows.end, upto)), name)
                    at = min(rows.end, upto)
        return writer.path, writer.rows


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value)
