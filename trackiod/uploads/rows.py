"""The points of a stream in the order of their offsets, from wherever they are stored, a bounded number at a time.

Knows numpy and SQLite, and nothing of files or targets.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from trackiod.store import fold, schema
from trackiod.store.batch import read
from trackiod.store.fold import Places
from trackiod.views.column import Ints, Values


class Points(NamedTuple):
    """Points of one metric, by offset; arrays of one length."""

    metric: str
    offsets: Ints
    steps: Ints
    times_ns: Ints
    values: Values


class _Piece(NamedTuple):
    """Metrics that share an axis: its places, and which chunk has which metric's values, or the values themselves."""

    places: Places
    chunks: dict[str, int | Values]


class StreamRows:
    """What a stream has from an offset on: so many points, or what makes up the record after them."""

    def __init__(self, connection: sqlite3.Connection, stream: str, start: int, most: int) -> None:
        """Raises sqlite3.Error. What is damaged is left out and named in `problems`."""
        self._connection = connection
        self._stream = stream
        self._start = start
        self.problems: list[str] = []
        row = connection.execute("SELECT committed FROM streams WHERE id = ?", (stream,)).fetchone()
        committed = int(row[0]) if row else start
        self._pieces, is_all = self._first(most)
        self.end = self._end_of(most, committed if is_all else None)
        """the offset up to where there are at most `most` points, but at least one record's"""

    def _first(self, most: int) -> tuple[list[_Piece], bool]:
        """The stretches that hold the next points, and whether these are all. What was folded together lies in any
        order; what was folded later lies behind it."""
        found: list[_Piece] = []
        points, highest = 0, -1
        for axis, piece in self._found():
            if points >= most and axis is not None and self._least_start(axis) > highest:
                return found, False
            highest = max(highest, int(piece.places.offsets[-1]))
            new = int((piece.places.offsets >= self._start).sum())
            if new:
                found.append(piece)
                points += new * len(piece.chunks)
        return found, True

    def _least_start(self, axis: int) -> int:
        """The lowest offset of all stretches from one on."""
        sql = "SELECT min(start) FROM axes WHERE stream = ? AND id >= ?"
        return int(self._connection.execute(sql, (self._stream, axis)).fetchone()[0])

    def _found(self) -> Iterator[tuple[int | None, _Piece]]:
        """Each stretch with its number; None for what is raw, which lies behind all that is folded."""
        sql = "SELECT m.name, c.id FROM series m JOIN chunks c ON c.series = m.id WHERE m.stream = ? AND c.axis = ?"
        for id_ in self._ids("SELECT id FROM axes WHERE stream = ? ORDER BY id"):
            with self._named(f"stretch {id_}"):
                count, data = self._connection.execute("SELECT count, data FROM axes WHERE id = ?", (id_,)).fetchone()
                places = fold.read_places(data, count)
                if int(places.offsets[-1]) >= self._start:
                    yield id_, _Piece(places, dict(self._connection.execute(sql, (self._stream, id_)).fetchall()))
        raw = []
        for start in self._ids("SELECT start FROM batches WHERE stream = ? ORDER BY start"):
            with self._named(f"the batch at {start}"):
                data = "SELECT data FROM batches WHERE stream = ? AND start = ?"
                raw.append((start, self._connection.execute(data, (self._stream, start)).fetchone()[0]))
        for group in fold.at_once(fold.gather(read(data, start) for start, data in raw)):
            yield None, _Piece(group.places, dict(group.values))

    def _ids(self, sql: str) -> list[int]:
        """As many as can be read."""
        found: list[int] = []
        with self._named("a table"):
            found.extend(row[0] for row in self._connection.execute(sql, (self._stream,)))
        return found

    @contextmanager
    def _named(self, what: str) -> Iterator[None]:
        """What is damaged is left out and named; a disk that fails for now is not."""
        try:
            yield
        except (ValueError, IndexError) as error:
            self.problems.append(f"{what} of stream {self._stream} is damaged ({error})")
        except sqlite3.Error as error:
            if not schema.is_damage(error, self._connection):
                raise
            self.problems.append(f"{what} of stream {self._stream} is damaged ({error})")

    def _end_of(self, most: int, committed: int | None) -> int:
        """`committed`: where everything ends, if all of it is here."""
        if not self._pieces:
            return self._start if committed is None else committed
        offsets = np.concatenate([piece.places.offsets for piece in self._pieces])
        weights = np.concatenate([np.full(len(p.places.offsets), len(p.chunks)) for p in self._pieces])
        is_new = offsets >= self._start
        offsets, weights = offsets[is_new], weights[is_new]
        if committed is not None and int(weights.sum()) <= most:
            return committed
        order = np.argsort(offsets, kind="stable")
        ordered, sums = offsets[order], np.cumsum(weights[order])
        too_much = int(ordered[min(int(np.searchsorted(sums, most, side="right")), len(ordered) - 1)])
        if too_much > int(ordered[0]):
            return too_much
        later = ordered[ordered > too_much]  # one record has more than `most`
        if later.size:
            return int(later[0])
        return committed if committed is not None else too_much + 1

    def points(self, end: int | None = None) -> Iterator[Points]:
        """Everything up to `self.end`, or another offset below it, metric by metric."""
        end = self.end if end is None else end
        for piece in self._pieces:
            offsets, steps, times_ns, _ = piece.places
            chosen = (offsets >= self._start) & (offsets < end)
            if not chosen.any():
                continue
            for name, chunk in piece.chunks.items():
                values = self._read(chunk, len(offsets)) if isinstance(chunk, int) else chunk
                if values is not None:
                    yield Points(name, offsets[chosen], steps[chosen], times_ns[chosen], values[chosen])

    def _read(self, chunk: int, count: int) -> Values | None:
        with self._named("a chunk"):
            kind, data = self._connection.execute("SELECT kind, data FROM chunks WHERE id = ?", (chunk,)).fetchone()
            return fold.read_values(kind, data, count)
        return None
