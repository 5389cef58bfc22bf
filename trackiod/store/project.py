"""Writing one project's database. Every method runs inside the transaction its caller opened."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from typing import Any

import msgpack

from trackiod.store import schema
from trackiod.store.digest import Digest, End
from trackiod.views.lineage import RunRow, roots


class ProjectStore:
    """The one writer of a project's database. Owns the connection; `close` may be called twice."""

    def __init__(self, projects: str, project: str, store_id: str) -> None:
        """Opens or creates it. Raises StoreError, or sqlite3.Error if the disk is full."""
        self.project = project
        self.path = schema.path_of(projects, project)
        self._connection = schema.open_for_writing(self.path, project, store_id)
        info = os.stat(self.path)
        self._file = (info.st_dev, info.st_ino)

    def close(self) -> None:
        self._connection.close()

    def is_linked(self) -> bool:
        """Whether the file we write still is the one of that name: somebody may remove or replace it."""
        try:
            info = os.stat(self.path)
        except OSError:
            return False
        return (info.st_dev, info.st_ino) == self._file

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing. Raises sqlite3.Error, and nothing is changed then."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")
            raise

    # -- streams -------------------------------------------------------------------------------------

    def committed(self, stream: str) -> int | None:
        """The offset up to which a stream is stored; None if it is not known here."""
        row = self._one("SELECT committed FROM streams WHERE id = ?", stream)
        return None if row is None else int(row[0])

    def register(self, stream: str, meta: dict[str, Any]) -> int:
        """Notes a stream and its run; a known one's facts are renewed. Returns its committed offset."""
        committed = self.committed(stream)
        rank, started_ns, run = int(meta["rank"]), int(meta["started_ns"]), str(meta["run"])
        self._register_run(run, meta, rank, started_ns)
        if committed is not None:
            self._do("UPDATE streams SET meta = ? WHERE id = ?", msgpack.packb(meta), stream)
            return committed
        self._do(
            "INSERT INTO streams (id, run, role, rank, attempt, started_ns, meta, committed)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, 0)",
            stream, run, str(meta["role"]), rank, str(meta["attempt"]), started_ns, msgpack.packb(meta),
        )  # fmt: skip
        return 0

    def _register_run(self, run: str, meta: dict[str, Any], rank: int, started_ns: int) -> None:
        name, group = str(meta["name"]), meta.get("group")
        known = self._one("SELECT name_rank FROM runs WHERE id = ?", run)
        if known is None:
            resumes = meta.get("resume") in ("allow", "must") and bool(meta.get("named"))
            self._do(
                "INSERT INTO runs (id, name, name_rank, run_group, created_ns, resumes) VALUES (?, ?, ?, ?, ?, ?)",
                run, name, rank, group, started_ns, int(resumes),
            )  # fmt: skip
        elif rank < known[0] and meta["role"] == "rank":
            self._do("UPDATE runs SET name = ?, name_rank = ?, run_group = ? WHERE id = ?", name, rank, group, run)
        self._do("UPDATE runs SET created_ns = min(created_ns, ?) WHERE id = ?", started_ns, run)

    def append(self, stream: str, start: int, data: bytes, digest: Digest) -> None:
        """Stores a batch that begins at the committed offset, and what it says."""
        end = start + len(data)
        self._do("INSERT INTO batches (stream, start, end, data) VALUES (?, ?, ?, ?)", stream, start, end, data)
        self._do(
            "UPDATE streams SET committed = ?, records = records + ?, points = points + ?,"
            " last_ns = coalesce(?, last_ns) WHERE id = ?",
            end, digest.records, digest.points, digest.last_ns, stream,
        )  # fmt: skip
        self._connection.executemany(
            "INSERT INTO metrics VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (stream, name) DO UPDATE SET"
            " points = points + excluded.points, counted = counted + excluded.counted,"
            " first_step = min(first_step, excluded.first_step), max_step = max(max_step, excluded.max_step),"
            " last_step = excluded.last_step, last_ns = excluded.last_ns, last = excluded.last",
            [
                (stream, name, t.points, t.counted, t.first_step, t.max_step, t.last_step, t.last_ns,
                 msgpack.packb(t.last))
                for name, t in digest.metrics.items()
            ],
        )  # fmt: skip
        self._connection.executemany(
            "INSERT OR REPLACE INTO configs VALUES (?, ?, ?)",
            [(stream, key, msgpack.packb(value)) for key, value in digest.config.items()],
        )
        self._connection.executemany(
            "INSERT OR REPLACE INTO definitions SELECT run, ?, ? FROM streams WHERE id = ?",
            [(name, msgpack.packb(options), stream) for name, options in digest.definitions.items()],
        )
        for damage_start, damage_end, cause in digest.damages:
            self.add_hole(stream, damage_start, damage_end, cause, digest.last_ns or 0)
        if digest.end is not None:
            self.end(stream, digest.end)
        elif digest.is_open:
            self._do("UPDATE streams SET state = NULL, cause = NULL, ended_ns = NULL, explicit = NULL"
                     " WHERE id = ? AND state IS NOT NULL", stream)  # fmt: skip

    def add_hole(self, stream: str, start: int, end: int, cause: str, at_ns: int) -> None:
        """Notes that a range of a stream is lost or unreadable."""
        self._do("INSERT OR REPLACE INTO holes VALUES (?, ?, ?, ?, ?)", stream, start, end, cause, at_ns)

    def skip_to(self, stream: str, offset: int) -> None:
        """Goes on behind a hole."""
        self._do("UPDATE streams SET committed = ? WHERE id = ?", offset, stream)

    def set_refused(self, stream: str, records: int, points: int) -> None:
        """Notes how many records and points the process had no room for, in all; the count never falls."""
        self._do(
            "UPDATE streams SET refused_records = max(refused_records, ?), refused_points = max(refused_points, ?)"
            " WHERE id = ?", records, points, stream,
        )  # fmt: skip

    def end(self, stream: str, end: End) -> None:
        """Notes how a stream ended."""
        self._do(
            "UPDATE streams SET state = ?, cause = ?, ended_ns = ?, explicit = ? WHERE id = ?",
            end.state, end.cause, end.time_ns, int(end.explicit), stream,
        )  # fmt: skip

    def end_of(self, stream: str) -> tuple[str | None, bool, int | None]:
        """How a stream ended so far: (state or None, whether by finish(), time of its last record)."""
        row = self._one("SELECT state, explicit, last_ns FROM streams WHERE id = ?", stream)
        return (None, False, None) if row is None else (row[0], bool(row[1]), row[2])

    def open_streams(self) -> list[tuple[str, dict[str, Any], int | None]]:
        """(id, meta, time of the last record) of the streams that have not ended."""
        rows = self._connection.execute("SELECT id, meta, last_ns FROM streams WHERE state IS NULL").fetchall()
        return [(row[0], msgpack.unpackb(row[1]), row[2]) for row in rows]

    # -- runs ----------------------------------------------------------------------------------------------

    def find_run(self, name: str) -> tuple[str, int]:
        """The newest run of that name and its highest step; ("", -1) if there is none."""
        rows = self._connection.execute(
            "SELECT id, name, run_group, created_ns, resumes FROM runs WHERE name = ? ORDER BY created_ns, id", (name,)
        ).fetchall()
        if not rows:
            return "", -1
        root_of = roots(map(RunRow._make, rows))
        root = root_of[rows[-1][0]]
        members = [run for run, its_root in root_of.items() if its_root == root]
        (step,) = self._one(
            "SELECT max(max_step) FROM metrics JOIN streams ON streams.id = metrics.stream"
            f" WHERE streams.run IN ({','.join('?' * len(members))})",
            *members,
        )
        return root, -1 if step is None else int(step)

    # -- SQLite ----------------------------------------------------------------------------------------------

    def _one(self, sql: str, *values: Any) -> Any:
        return self._connection.execute(sql, values).fetchone()

    def _do(self, sql: str, *values: Any) -> None:
        self._connection.execute(sql, values)
