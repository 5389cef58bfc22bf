"""What a batch says: its points, steps, settings and end. Pure: bytes in, values out.

Read once, as the batch is committed, so that everything the store knows about a stream is exact the moment
a point is acked.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from trackio.record import Damage, Kind, Origin, salvage, unpack

_INT64_MIN, _INT64_MAX = -(1 << 63), (1 << 63) - 1
_COUNTER = int(Origin.COUNTER)


class Point(NamedTuple):
    """One value of one metric, where it stands in its stream."""

    offset: int
    step: int
    origin: int
    time_ns: int
    value: Any


@dataclass(slots=True)
class Tally:
    """What a batch adds to one metric of one stream."""

    points: int
    counted: int
    first_step: int
    max_step: int
    last_step: int
    last_ns: int
    last: Any


@dataclass(frozen=True, slots=True)
class End:
    """How a stream said it ended."""

    state: str
    cause: str
    explicit: bool
    time_ns: int


@dataclass(slots=True)
class Digest:
    """Everything a batch changes in the store besides holding it."""

    records: int = 0
    """log() calls"""
    points: int = 0
    last_ns: int | None = None
    metrics: dict[str, Tally] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    definitions: dict[str, dict[str, Any]] = field(default_factory=dict)
    end: End | None = None
    is_open: bool = False
    """whether something was logged after the last end in it, or there was none"""
    damages: list[tuple[int, int, str]] = field(default_factory=list)
    """(start, end, what is wrong) of ranges that could not be read"""


class _Shape:
    """The records of a batch that have the same names: most batches have one shape or two."""

    __slots__ = ("counted", "first_step", "last", "last_ns", "last_step", "max_step", "points", "turn")

    def __init__(self, step: int) -> None:
        self.points = self.counted = self.last_ns = self.turn = 0
        self.first_step = self.max_step = self.last_step = step
        self.last: dict[str, Any] = {}


def digest(data: bytes, start: int) -> Digest:
    """The digest of a batch that begins at offset `start`. Never raises: what cannot be read is a damage."""
    result = Digest()
    shapes: dict[tuple[str, ...], _Shape] = {}
    for item in salvage(data, start):
        if isinstance(item, Damage):
            result.damages.append((item.start, item.end, "unreadable bytes"))
            continue
        try:
            fields = unpack(item.payload)
            if fields[0] == Kind.LOG:
                _take_log(result, shapes, fields)
            else:
                _take(result, fields)
        except (ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
            result.damages.append((item.start, item.end, f"malformed record: {error}"))
            continue
        result.last_ns = fields[1]
    for names, shape in sorted(shapes.items(), key=lambda item: item[1].turn):
        _tally(result.metrics, names, shape)
    return result


def _take_log(result: Digest, shapes: dict[tuple[str, ...], _Shape], fields: list[Any]) -> None:
    _, time_ns, step, origin, metrics = fields[:5]
    if type(step) is not int or type(origin) is not int or type(metrics) is not dict:
        raise ValueError("not a step, its origin and a map")
    names = tuple(metrics)
    shape = shapes.get(names)
    if shape is None:
        _check_log(step, origin, metrics)
        shape = shapes[names] = _Shape(step)
    elif not _INT64_MIN <= step <= _INT64_MAX:
        raise ValueError("its step is no whole number of 64 bits")
    shape.points += 1
    if origin == _COUNTER:
        shape.counted += 1
    if step > shape.max_step:
        shape.max_step = step
    elif step < shape.first_step:
        shape.first_step = step
    shape.last_step, shape.last_ns, shape.last, shape.turn = step, time_ns, metrics, result.records
    result.is_open, result.end = True, None
    result.records += 1
    result.points += len(names)


def _tally(tallies: dict[str, Tally], names: tuple[str, ...], shape: _Shape) -> None:
    """Adds a shape to its metrics; shapes come in the order of their last records."""
    for name in names:
        tally = tallies.get(name)
        if tally is None:
            tallies[name] = Tally(
                shape.points, shape.counted, shape.first_step, shape.max_step,
                shape.last_step, shape.last_ns, shape.last[name],
            )  # fmt: skip
            continue
        tally.points += shape.points
        tally.counted += shape.counted
        tally.first_step = min(tally.first_step, shape.first_step)
        tally.max_step = max(tally.max_step, shape.max_step)
        tally.last_step, tally.last_ns, tally.last = shape.last_step, shape.last_ns, shape.last[name]


def _take(result: Digest, fields: list[Any]) -> None:
    kind, time_ns = fields[0], fields[1]
    if kind == Kind.CONFIG:
        result.config.update({str(key): value for key, value in fields[2].items()})
    elif kind == Kind.DEFINE:
        result.definitions[str(fields[2])] = dict(fields[3])
    elif kind == Kind.FINISH:
        result.is_open = False
        result.end = End(str(fields[2]), str(fields[3]), bool(fields[4]), time_ns)


def _check_log(step: Any, origin: Any, metrics: Any) -> None:
    if type(step) is not int or type(origin) is not int or not _INT64_MIN <= step <= _INT64_MAX:
        raise ValueError("its step is no whole number of 64 bits")
    if not isinstance(metrics, dict) or not all(type(name) is str for name in metrics):
        raise ValueError("its metrics are no map of names")


def points(data: bytes, start: int, metrics: frozenset[str] | None = None) -> Iterator[tuple[str, Point]]:
    """The points in a batch, by metric's name, in the stream's order; all of them or those of `metrics`."""
    for item in salvage(data, start):
        if isinstance(item, Damage):
            continue
        try:
            fields = unpack(item.payload)
            if fields[0] != Kind.LOG:
                continue
            _, time_ns, step, origin, values = fields[:5]
            _check_log(step, origin, values)
        except (ValueError, TypeError, IndexError):
            continue
        for name in values if metrics is None else metrics.intersection(values):
            yield name, Point(item.start, step, origin, time_ns, values[name])
