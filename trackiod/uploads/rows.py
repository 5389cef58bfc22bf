"""The points of a stream in the order of their offsets, from wherever they are stored, a bounded number at a time.

Knows numpy and SQLite, and nothing of files or targets.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from trackiod.store import fold
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
    """What a stream has from an offset on. Reads places at once, which are few, and values when asked."""

    def __init__(self, connection: sqlite3.Connection, stream: str, start: int) -> None:
        """Raises sqlite3.Error. What is damaged is left out and named in `problems`."""
        self._connection = connection
        self._stream = stream
        self._start = start
        self.problems: list[str] = []
        row = connection.execute("SELECT committed FROM streams WHERE id = ?", (stream,)).fetchone()
        self._committed = int(row[0]) if row else start
        self._pieces = [piece for piece in self._found() if (piece.places.offsets >= start).any()]

    def _found(self) -> Iterator[_Piece]:
        chunks: dict[int, dict[str, int | Values]] = {}
        names = self._connection.execute("SELECT id, name FROM series WHERE stream = ?", (self._stream,)).fetchall()
        for series, name in names:
            for id_, axis in self._connection.execute("SELECT id, axis FROM chunks WHERE series = ?", (series,)):
                chunks.setdefault(axis, {})[name] = id_
        axes = self._connection.execute(
            "SELECT id, count, data FROM axes WHERE stream = ? ORDER BY id", (self._stream,)
        )
        for id_, count, data in axes:
            try:
                yield _Piece(fold.read_places(data, count), chunks.get(id_, {}))
            except (ValueError, IndexError) as error:
                self.problems.append(f"stretch {id_} of stream {self._stream} is damaged ({error})")
        raw = self._connection.execute(
            "SELECT start, data FROM batches WHERE stream = ? ORDER BY start", (self._stream,)
        ).fetchall()
        for group in fold.at_once(fold.gather(read(data, start) for start, data in raw)):
            yield _Piece(group.places, dict(group.values))

    def end_of(self, most: int) -> tuple[int, int]:
        """(offset, points): up to where there are at most so many points, but at least one record's; everything that is
        stored if that is not more."""
        offsets = [piece.places.offsets for piece in self._pieces]
        weights = [np.full(len(piece.places.offsets), len(piece.chunks)) for piece in self._pieces]
        if not offsets:
            return self._committed, 0
        all_offsets, all_weights = np.concatenate(offsets), np.concatenate(weights)
        is_new = all_offsets >= self._start
        all_offsets, all_weights = all_offsets[is_new], all_weights[is_new]
        total = int(all_weights.sum())
        if total <= most:
            return self._committed, total
        order = np.argsort(all_offsets, kind="stable")
        ordered, sums = all_offsets[order], np.cumsum(all_weights[order])
        first = max(1, int(np.searchsorted(sums, most, side="right")))  # the first record that is too much
        end = int(ordered[min(first, len(ordered) - 1)])
        if end == int(ordered[0]):  # one record has more than `most`
            later = ordered[ordered > end]
            if not later.size:
                return self._committed, total
            end = int(later[0])
        return end, int(all_weights[all_offsets < end].sum())

    def points(self, end: int) -> Iterator[Points]:
        """Everything below an offset, metric by metric."""
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
        kind, data = self._connection.execute("SELECT kind, data FROM chunks WHERE id = ?", (chunk,)).fetchone()
        try:
            return fold.read_values(kind, data, count)
        except (ValueError, IndexError) as error:
            self.problems.append(f"a chunk of stream {self._stream} is damaged ({error})")
            return None
