"""Raw batches folded into columns. Pure: bytes in, columns and blobs out; slow work comes in slices.

Metrics that were logged by the same records share one axis (offsets, steps, times, origins); each has a
chunk of values. A chunk keeps sums over blocks of the points that show, so that a bucket of a long series
needs no decoding; the points that a later one at the same step hides are in it all the same.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from trackio.record import Origin
from trackiod.store.batch import Contents, read
from trackiod.store.codec import (
    pack_ints,
    pack_table,
    pack_values,
    seal,
    unpack_ints,
    unpack_table,
    unpack_values,
    unseal,
)  # fmt: skip
from trackiod.store.digest import LogRecord, log_records
from trackiod.store.tables import Table
from trackiod.views.buckets import BLOCK_POINTS, Blocks, blocks_of
from trackiod.views.column import Bools, Column, Ints, Values, is_ascending, join, last_per_step, typed

T = TypeVar("T")

_SLICE_POINTS = 1 << 16
_RECORD_POINTS = 63
"""what a record that is read by itself costs besides its points, in points"""
_POINTS_AT_ONCE = 8
"""so many points of a table are read in the time of one of a record"""
_CHUNK_POINTS = 512
"""what a chunk costs besides its points, in points"""


class Places(NamedTuple):
    """Where records stand and when they were logged; all arrays of one length."""

    offsets: Ints
    steps: Ints
    times_ns: Ints
    origins: Ints


class Group(NamedTuple):
    """Metrics that were logged by the same records: the records' places, and each metric's values."""

    places: Places
    values: dict[str, Values]

    def columns(self) -> dict[str, Column]:
        """Each metric's points."""
        _, steps, times_ns, origins = self.places
        is_counted = origins == Origin.COUNTER
        return {name: Column(steps, times_ns, is_counted, values) for name, values in self.values.items()}


class _Shape:
    """The records that have the same names: those that came in tables, and those that came one by one."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names
        self._places: list[Places] = []
        self._columns: list[list[Values]] = []
        self._records: list[LogRecord] = []

    def add(self, record: LogRecord) -> None:
        self._records.append(record)

    def add_table(self, table: Table) -> None:
        self._places.append(Places(table.offsets, table.steps, table.times_ns, table.origins))
        self._columns.append(table.columns)

    def group(self) -> Group:
        """All of them, in the stream's order."""
        if self._records:
            places = zip(*((r.offset, r.step, r.time_ns, r.origin) for r in self._records), strict=True)
            self._places.append(Places(*(np.array(place, np.int64) for place in places)))
            rows = [[record.metrics[name] for name in self._names] for record in self._records]
            self._columns.append([typed(column) for column in zip(*rows, strict=True)])
        values = [join(parts) for parts in zip(*self._columns, strict=True)]
        return in_order(Group(_joined(self._places), dict(zip(self._names, values, strict=True))))


def _joined(parts: Sequence[Places]) -> Places:
    return parts[0] if len(parts) == 1 else Places(*map(np.concatenate, zip(*parts, strict=True)))


def in_order(group: Group) -> Group:
    """The same, in the order of offsets."""
    offsets = group.places.offsets
    if is_ascending(offsets):
        return group
    order = np.argsort(offsets)
    places = Places(*(place[order] for place in group.places))
    return Group(places, {name: values[order] for name, values in group.values.items()})


def gather(batches: Iterable[Contents], wanted: frozenset[str] | None = None) -> Generator[None, None, list[Group]]:
    """The log records of these batches, in columns; all metrics or the `wanted`. Yields between slices."""
    shapes: dict[tuple[str, ...], _Shape] = {}
    work = 0
    for contents in batches:
        for table in contents.tables:
            shapes.setdefault(table.names, _Shape(table.names)).add_table(table)
            work += len(table.steps) * len(table.names) // _POINTS_AT_ONCE
        for record in log_records(contents.others):
            names = tuple(record.metrics)
            if wanted is not None:
                names = tuple(name for name in names if name in wanted)
            if names:
                shapes.setdefault(names, _Shape(names)).add(record)
            work += len(names) + _RECORD_POINTS
            if work >= _SLICE_POINTS:
                work = 0
                yield
        if work >= _SLICE_POINTS:
            work = 0
            yield
    groups = []
    for group in _groups(shapes):
        groups.append(group)
        yield
    return groups


def gathered(batches: Iterable[tuple[int, bytes]], wanted: frozenset[str] | None = None) -> dict[str, Column]:
    """The points of these batches, by metric."""
    contents = (read(data, start, wanted) for start, data in batches)
    groups = at_once(gather(contents, wanted))
    return {name: column for group in groups for name, column in group.columns().items()}


def at_once(work: Generator[None, None, T]) -> T:
    """What sliced work returns, for those who do not mind waiting."""
    while True:
        try:
            next(work)
        except StopIteration as done:
            result: T = done.value
            return result


def _groups(shapes: dict[tuple[str, ...], _Shape]) -> Iterator[Group]:
    """Metrics by the shapes they occur in: each metric is in one group."""
    homes: dict[str, list[int]] = {}
    for number, names in enumerate(shapes):
        for name in names:
            homes.setdefault(name, []).append(number)
    families: dict[tuple[int, ...], list[str]] = {}
    for name, numbers in homes.items():
        families.setdefault(tuple(numbers), []).append(name)
    groups = [shape.group() for shape in shapes.values()]
    for members, shared in families.items():
        parts = [groups[number] for number in members]
        values = {name: join([part.values[name] for part in parts]) for name in shared}
        yield in_order(Group(_joined([part.places for part in parts]), values))


# -- as it is stored ---------------------------------------------------------------------------------------


class Axis(NamedTuple):
    """What the metrics of a group share. Steps and times are those of the `shown` points, in the order of steps."""

    start: int
    records: int
    shown: int
    first_step: int
    last_step: int
    first_ns: int
    last_ns: int
    data: bytes
    blocks: bytes | None


class Chunk(NamedTuple):
    """One metric's values over an axis. What sums them up is None if they are no numbers."""

    name: str
    kind: str
    nans: int | None
    low: float | None
    high: float | None
    total: float | None
    data: bytes
    blocks: bytes | None


class Folded(NamedTuple):
    """A group as it is stored."""

    axis: Axis
    chunks: list[Chunk]


def fold(batches: Iterable[Contents]) -> Generator[None, None, list[Folded]]:
    """These batches as axes and chunks. Yields between slices of work."""
    groups = yield from gather(batches)
    folded = []
    for group in groups:
        offsets, steps, times_ns, origins = group.places
        shown = last_per_step(steps)
        seen_steps, seen_ns = steps[shown], times_ns[shown]
        chunks, work = [], 0
        blocks: Blocks | None = None
        for name, values in group.values.items():
            blocks = blocks_of(seen_steps, seen_ns, values[shown], BLOCK_POINTS)
            chunk = _chunk(name, values, blocks)
            chunks.append(chunk)
            work += len(values) + _CHUNK_POINTS
            if work >= _SLICE_POINTS:
                work = 0
                yield
        places = [pack_ints(place) for place in (offsets, steps, times_ns, origins)]
        is_long = blocks is not None and len(blocks.counts) > 1
        shared = seal([pack_table(blocks[:5], "<i8")]) if blocks is not None and is_long else None
        ends = (int(seen_steps[0]), int(seen_steps[-1]), int(seen_ns[0]), int(seen_ns[-1]))
        axis = Axis(int(offsets[0]), len(steps), len(seen_steps), *ends, seal(places), shared)
        folded.append(Folded(axis, chunks))
        yield
    return folded


def _chunk(name: str, values: Values, blocks: Blocks) -> Chunk:
    """The chunk of these values, summed up in blocks of the points that show."""
    kind, data = pack_values(values)
    if kind == "any":
        return Chunk(name, kind, None, None, None, None, seal([data]), None)
    with np.errstate(invalid="ignore", over="ignore"):
        whole = (int(blocks.nans.sum()), float(np.fmin.reduce(blocks.lows)), float(np.fmax.reduce(blocks.highs)),
                 float(blocks.totals.sum()))  # fmt: skip
    sums = None
    if len(blocks.counts) > 1:
        sums = seal([pack_table(blocks[5:], "<f8")])
    return Chunk(name, kind, *whole, seal([data]), sums)


def read_places(blob: bytes, count: int) -> Places:
    """Where the records of an axis stand. Raises Damaged."""
    return Places(*(unpack_ints(part, count) for part in unseal(blob)))


def read_axis(blob: bytes, count: int) -> tuple[Ints, Ints, Bools]:
    """Steps, times and which steps were counted, of an axis. Raises Damaged."""
    _, steps, times_ns, origins = unseal(blob)
    is_counted = unpack_ints(origins, count) == Origin.COUNTER
    return unpack_ints(steps, count), unpack_ints(times_ns, count), is_counted


def read_values(kind: str, blob: bytes, count: int) -> Values:
    """The values of a chunk. Raises Damaged."""
    (part,) = unseal(blob)
    return unpack_values(kind, part, count)


def read_blocks(axis_blob: bytes, chunk_blob: bytes, count: int) -> Blocks:
    """The blocks of a chunk of so many shown points. Raises Damaged."""
    (axes,), (sums,) = unseal(axis_blob), unseal(chunk_blob)
    size = -(-count // BLOCK_POINTS)
    nans, *floats = unpack_table(sums, "<f8", 4, size)
    return Blocks._make((*unpack_table(axes, "<i8", 5, size), nans.astype(np.int64), *floats))
