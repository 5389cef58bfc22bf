"""Writing one project's database. What writes rows runs inside the transaction its caller opened."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import msgpack

from trackio.lookup import unless_absent
from trackiod.errors import StoreError
from trackiod.store import schema, shelf, wal
from trackiod.store.addresses import Addresses
from trackiod.store.batch import blanked
from trackiod.store.digest import Digest, End
from trackiod.store.sums import Sums
from trackiod.views.attempts import start_of

if TYPE_CHECKING:  # numpy: an idle daemon does without
    from trackiod.store.fold import Folded

_FOR_EVER = (1 << 63) - 1
_FOLD_RECORDS = 4096
"""the fewest records that make a good chunk, and what a reader decodes of a stream's raw end in 20 ms"""
_FOLD_BYTES = 4 << 20
_FOLD_BYTES_AT_MOST = 64 << 20
_CUT_WAIT_MS = 50
_CUT_AT_FIRST_SECONDS, _CUT_AGAIN_SECONDS = 0.1, 5.0
"""between two tries to cut a long log, while somebody reads from it: at most a hundredth of the time goes there"""
_FOLD_RECORDS_AT_LEAST = 32
"""a chunk of fewer values takes more room than they do raw"""


class _Series(NamedTuple):
    """How what a batch says of a series is added to what is known of it."""

    names: tuple[str, ...]
    upsert: str


SERIES = _Series(
    tuple(
        "stream name points counted first_step max_step last_step last_ns last ascending numbers nans low high"
        " total".split()
    ),
    "INSERT INTO series (stream, name, points, counted, first_step, max_step, last_step, last_ns, last,"
    " ascending, numbers, nans, low, high, total) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
    " ON CONFLICT (stream, name) DO UPDATE SET"
    " points = points + excluded.points, counted = counted + excluded.counted,"
    " ascending = ascending AND excluded.ascending AND excluded.first_step > max_step,"
    " first_step = min(first_step, excluded.first_step), max_step = max(max_step, excluded.max_step),"
    " last_step = excluded.last_step, last_ns = excluded.last_ns, last = excluded.last,"
    " numbers = numbers + excluded.numbers, nans = nans + excluded.nans,"
    " low = min(ifnull(low, excluded.low), ifnull(excluded.low, low)),"
    " high = max(ifnull(high, excluded.high), ifnull(excluded.high, high)),"
    " total = total + excluded.total",
)


class ProjectStore:
    """The one writer of a project's database. Owns the connection; `close` may be called twice."""

    def __init__(self, projects: str, project: str, store_id: str) -> None:
        """Opens or creates it. Raises StoreError, or sqlite3.Error if the disk is full."""
        self.project = project
        self.path = schema.path_of(projects, project)
        self.connection = schema.open_for_writing(self.path, project, store_id)
        self.shelf = shelf.Shelf(self.connection, Addresses(os.path.join(os.path.dirname(projects), "webhooks")))
        info = os.stat(self.path)
        self._file = (info.st_dev, info.st_ino)
        self._cut_at, self._cut_again_seconds = 0.0, _CUT_AT_FIRST_SECONDS

    def close(self) -> None:
        self.connection.close()

    def is_linked(self) -> bool:
        """Whether the file we write still is the one of that name: somebody may remove or replace it. That it cannot be
        looked at is not an answer."""
        try:
            info = unless_absent(lambda: os.stat(self.path), self.path)
        except OSError:
            return True
        return info is not None and (info.st_dev, info.st_ino) == self._file

    def looks_damaged(self, error: sqlite3.Error) -> bool:
        """Whether a complaint of SQLite's may mean that the file is damaged. A broken constraint may be an index that
        is, or our own fault."""
        return isinstance(error, sqlite3.IntegrityError) or schema.is_damage(error, self.connection)

    def cut_log(self, now: float) -> None:
        """Between commits: has a long log of SQLite's begin anew. Waits a moment for readers that are about to end, and
        for no other; what cannot be done now is tried again after a later commit."""
        if wal.size_of(self.path) <= wal.MOST_BYTES or now < self._cut_at:
            return
        is_cut = False
        self._do(f"PRAGMA busy_timeout = {_CUT_WAIT_MS}")
        with contextlib.suppress(sqlite3.Error):  # a full disk: the commits that follow say so
            is_cut = self._one("PRAGMA wal_checkpoint(TRUNCATE)")[0] == 0
        self._do(f"PRAGMA busy_timeout = {int(schema.BUSY_SECONDS * 1000)}")
        again = _CUT_AT_FIRST_SECONDS if is_cut else min(2 * self._cut_again_seconds, _CUT_AGAIN_SECONDS)
        self._cut_again_seconds, self._cut_at = again, now + again

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing. Raises sqlite3.Error, and nothing is changed then."""
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.connection.execute("COMMIT")
        except BaseException:
            self.shelf.forget()
            with contextlib.suppress(sqlite3.Error):
                self.connection.execute("ROLLBACK")
            raise

    # -- streams -------------------------------------------------------------------------------------

    def committed(self, stream: str) -> int | None:
        """The offset up to which a stream is stored; None if it is not known here."""
        row = self._one("SELECT committed FROM streams WHERE id = ?", stream)
        return None if row is None else int(row[0])

    def register(self, stream: str, meta: dict[str, Any], now_ns: int = _FOR_EVER) -> int:
        """Notes a stream and its run; a known one's facts are renewed. Returns its committed offset. Whatever its clock
        said, it began before it is received."""
        committed = self.committed(stream)
        rank, started_ns, run = int(meta["rank"]), min(int(meta["started_ns"]), now_ns), str(meta["run"])
        self._register_run(run, meta, rank, started_ns)
        if committed is not None:
            self._do("UPDATE streams SET meta = ? WHERE id = ?", _kept(meta), stream)
            return committed
        self._do(
            "INSERT INTO streams (id, run, role, rank, attempt, process, started_ns, world_size, meta, committed)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 0)",
            stream, run, str(meta["role"]), rank, str(meta["attempt"]), str(meta.get("process", stream)), started_ns,
            int(meta["world_size"]), _kept(meta),
        )  # fmt: skip
        return 0

    def _register_run(self, run: str, meta: dict[str, Any], rank: int, started_ns: int) -> None:
        name, group = str(meta["name"]), meta.get("group")
        started_ns = self._after_earlier(run, name, meta, started_ns)
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

    def _after_earlier(self, run: str, name: str, meta: dict[str, Any], started_ns: int) -> int:
        """When a run began, where the newest run of its name seems to be newer and began earlier by the clock of the
        boot: just after that one, so that who resumes the name finds the newest."""
        sql = "SELECT id, created_ns FROM runs WHERE name = ? AND id <> ? ORDER BY created_ns DESC, id DESC LIMIT 1"
        newest = self._one(sql, name, run)
        if newest is None or newest[1] < started_ns:
            return started_ns
        first = self._one("SELECT meta FROM streams WHERE run = ? ORDER BY started_ns, id LIMIT 1", newest[0])
        start, other = start_of(meta), start_of(msgpack.unpackb(first[0]) if first else {})
        is_later = start.boot_id and start.boot_id == other.boot_id and start.monotonic_ns > other.monotonic_ns
        return newest[1] + 1 if is_later else started_ns

    def append(self, stream: str, start: int, data: bytes, digest: Digest) -> None:
        """Stores a batch that begins at the committed offset, and what it says; but for addresses of webhooks."""
        end = start + len(data)
        for alert in digest.alerts:
            if alert.webhook:
                data = blanked(data, start, alert.start, alert.webhook.encode("utf-8", "surrogatepass"))
        self._do(
            "INSERT INTO batches (stream, start, end, records, data) VALUES (?, ?, ?, ?, ?)",
            stream, start, end, digest.records, data,
        )  # fmt: skip
        self._note(stream, end, digest)

    def append_folded(self, stream: str, end: int, digest: Digest, folded: list[Folded], *, batches: int) -> None:
        """Stores a batch up to offset `end`, and what it says, in columns that hold the raw `batches` before it too."""
        self._note(stream, end, digest)
        self.replace_raw(stream, end, folded, batches=batches)

    def _note(self, stream: str, end: int, digest: Digest) -> None:
        """Notes that a stream is stored up to `end`, and what its last batch says."""
        self._do(
            "UPDATE streams SET committed = ?, records = records + ?, points = points + ?,"
            " last_ns = coalesce(?, last_ns) WHERE id = ?",
            end, digest.records, digest.points, digest.last_ns, stream,
        )  # fmt: skip
        self.connection.executemany(
            SERIES.upsert,
            [(stream, name, *tally[:6], msgpack.packb(tally.last), tally.ascending, *_storable(tally.sums))
             for name, tally in digest.metrics.items()],
        )  # fmt: skip
        self.connection.executemany(
            "INSERT OR REPLACE INTO configs (stream, key, value) VALUES (?, ?, ?)",
            [(stream, key, msgpack.packb(value)) for key, value in digest.config.items()],
        )
        self.connection.executemany(
            "INSERT OR REPLACE INTO summaries (stream, key, value) VALUES (?, ?, ?)",
            [(stream, key, msgpack.packb(value)) for key, value in digest.summary.items()],
        )
        self.connection.executemany(
            "INSERT INTO clocks (stream, time_ns, monotonic_ns) VALUES (?, ?, ?)", [(stream, *c) for c in digest.clocks]
        )
        for name, options in digest.definitions.items():
            self._define(stream, name, options)
        for damage_start, damage_end, cause in digest.damages:
            self.add_hole(stream, damage_start, damage_end, cause, digest.last_ns or 0)
        self.shelf.note(stream, digest)
        if digest.end is not None:
            self.end(stream, digest.end)
        elif digest.is_open:
            self._do("UPDATE streams SET state = NULL, cause = NULL, ended_ns = NULL, explicit = NULL"
                     " WHERE id = ? AND state IS NOT NULL", stream)  # fmt: skip

    def _define(self, stream: str, name: str, options: dict[str, Any]) -> None:
        """Adds to what is defined for this name in the stream's run; what is said again replaces what was."""
        (run,) = self._one("SELECT run FROM streams WHERE id = ?", stream)
        known = self._one("SELECT options FROM definitions WHERE run = ? AND name = ?", run, name)
        merged = (msgpack.unpackb(known[0]) if known else {}) | options
        self._do(
            "INSERT OR REPLACE INTO definitions (run, name, options) VALUES (?, ?, ?)", run, name, msgpack.packb(merged)
        )

    def add_hole(self, stream: str, start: int, end: int, cause: str, at_ns: int) -> None:
        """Notes that a range of a stream is lost or unreadable."""
        self._do(
            "INSERT OR REPLACE INTO holes (stream, start, end, cause, at_ns) VALUES (?, ?, ?, ?, ?)",
            stream, start, end, cause, at_ns,
        )  # fmt: skip

    def has_holes(self, stream: str, cause: str) -> bool:
        """Whether something of a stream is missing for this cause."""
        return self._one("SELECT 1 FROM holes WHERE stream = ? AND cause = ? LIMIT 1", stream, cause) is not None

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

    def open_streams(self) -> list[tuple[str, dict[str, Any]]]:
        """(id, meta) of the streams that have not ended."""
        rows = self.connection.execute("SELECT id, meta FROM streams WHERE state IS NULL").fetchall()
        return [(id_, msgpack.unpackb(meta)) for id_, meta in rows]

    def ended_streams(self, ids: list[str]) -> list[tuple[str, dict[str, Any]]]:
        """(id, meta) of those of these streams that have ended."""
        sql = "SELECT id, meta FROM streams WHERE id = ? AND state IS NOT NULL"
        return [(id_, msgpack.unpackb(meta)) for each in ids for id_, meta in self.connection.execute(sql, (each,))]

    # -- folding ---------------------------------------------------------------------------------------------

    def raw_streams(self) -> list[str]:
        """The streams that may have raw batches to fold."""
        rows = self.connection.execute(
            "SELECT stream FROM batches GROUP BY stream HAVING sum(records) >= ? OR sum(end - start) >= ?",
            (_FOLD_RECORDS_AT_LEAST, _FOLD_BYTES_AT_MOST),
        )
        return [row[0] for row in rows.fetchall()]

    def is_ripe(self, stream: str) -> bool:
        """Whether a stream's raw batches are due to be folded: they are many, or it ended and they are not few."""
        records, size, has_ended = self._one(
            "SELECT sum(records), sum(end - start), (SELECT state IS NOT NULL FROM streams WHERE id = ?)"
            " FROM batches WHERE stream = ?", stream, stream,
        )  # fmt: skip
        if size is None:
            return False
        is_enough = records >= _FOLD_RECORDS_AT_LEAST and (has_ended or size >= _FOLD_BYTES)
        return bool(is_enough or records >= _FOLD_RECORDS or size >= _FOLD_BYTES_AT_MOST)

    def raw(self, stream: str) -> list[tuple[int, bytes]]:
        """(start, bytes) of the oldest raw batches of a stream, as many as make good chunks."""
        rows, records, size = [], 0, 0
        for start, count, data in self.connection.execute(
            "SELECT start, records, data FROM batches WHERE stream = ? ORDER BY start", (stream,)
        ):
            rows.append((start, data))
            records, size = records + count, size + len(data)
            if records >= 2 * _FOLD_RECORDS or (size >= _FOLD_BYTES and records >= _FOLD_RECORDS_AT_LEAST):
                break
            if size >= _FOLD_BYTES_AT_MOST:
                break
        return rows

    def raw_beside(self, stream: str) -> list[tuple[int, bytes]] | None:
        """(start, bytes) of all raw batches of a stream, if they are few and can be read."""
        (size,) = self._one("SELECT coalesce(sum(end - start), 0) FROM batches WHERE stream = ?", stream)
        if size >= _FOLD_BYTES:
            return None
        try:
            sql = "SELECT start, data FROM batches WHERE stream = ? ORDER BY start"
            return self.connection.execute(sql, (stream,)).fetchall()
        except sqlite3.DatabaseError:
            return None  # a damaged page: what is new must not go down with it

    def replace_raw(self, stream: str, last_start: int, folded: list[Folded], *, batches: int) -> None:
        """Puts axes and chunks in the place of the raw batches up to the one that begins at `last_start`. Raises
        StoreError, and nothing is changed then, if these are not as many as were folded."""
        known = self.connection.execute("SELECT name, id, ascending FROM series WHERE stream = ?", (stream,))
        series = {name: (id_, ascending) for name, id_, ascending in known}
        for axis, chunks in folded:
            cursor = self.connection.execute(
                "INSERT INTO axes (stream, start, count, shown, first_step, last_step, first_ns, last_ns, data, blocks)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", (stream, *axis),
            )  # fmt: skip
            self.connection.executemany(
                "UPDATE chunks SET overlapped = 1 WHERE series = ?"
                " AND axis IN (SELECT id FROM axes WHERE stream = ? AND last_step >= ? AND first_step <= ?)",
                [(series[chunk.name][0], stream, axis.first_step, axis.last_step)
                 for chunk in chunks if not series[chunk.name][1]],
            )  # fmt: skip
            self.connection.executemany(
                "INSERT INTO chunks (series, axis, overlapped, kind, nans, low, high, total, data, blocks)"
                " VALUES (?, ?, 0, ?, ?, ?, ?, ?, ?, ?)",
                [(series[chunk.name][0], cursor.lastrowid, *chunk[1:]) for chunk in chunks],
            )
        gone = self.connection.execute("DELETE FROM batches WHERE stream = ? AND start <= ?", (stream, last_start))
        if gone.rowcount != batches:
            raise StoreError(f"{batches} raw batches of stream {stream} were folded, and {gone.rowcount} are there.")

    def is_idle(self) -> bool:
        """Whether no stream is open."""
        return self._one("SELECT 1 FROM streams WHERE state IS NULL LIMIT 1") is None

    def free_pages(self) -> int:
        """Pages of the file that hold nothing."""
        return int(self._one("PRAGMA freelist_count")[0])

    def vacuum(self) -> None:
        """Writes the file anew, with nothing free in it."""
        self._do("PRAGMA wal_checkpoint(TRUNCATE)")
        self._do("VACUUM")
        self._do("PRAGMA wal_checkpoint(TRUNCATE)")

    def give_back(self, pages: int) -> None:
        """Gives at most so many free pages back to the file system; none in a file that others made anew."""
        self.connection.execute(f"PRAGMA incremental_vacuum({pages})").fetchall()

    # -- SQLite ----------------------------------------------------------------------------------------------

    def _one(self, sql: str, *values: Any) -> Any:
        return self.connection.execute(sql, values).fetchone()

    def _do(self, sql: str, *values: Any) -> None:
        self.connection.execute(sql, values)


def _storable(sums: Sums) -> tuple[Any, ...]:
    """As SQLite holds them; it turns a total of NaN into null."""
    return *sums[:4], float(sums.total)


def _kept(meta: dict[str, Any]) -> bytes:
    """What is kept of what a stream said of itself: the address of a webhook is a secret."""
    return bytes(msgpack.packb({name: value for name, value in meta.items() if name != "webhook"}))
