"""What a batch says: its points, steps, settings and end. Pure: bytes in, values out.

Read once, as the batch is committed, so that everything the store knows about a stream is exact the moment
a point is acked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from trackio.record import Damage, Kind, Origin, salvage, unpack

_INT64_MIN, _INT64_MAX = -(1 << 63), (1 << 63) - 1
_COUNTER = int(Origin.COUNTER)
_LAST_ORIGIN = 255
_NUMBERS = frozenset({float, int, bool})
_ROWS_AT_ONCE = 256


class LogRecord(NamedTuple):
    """One log() call where it stands in its stream."""

    offset: int
    time_ns: int
    step: int
    origin: int
    metrics: dict[str, Any]


class Sums(NamedTuple):
    """Values in short: how many are numbers, how many NaN, and the least, greatest and total of the numbers."""

    numbers: int = 0
    nans: int = 0
    low: float | None = None
    high: float | None = None
    total: float = 0

    def plus(self, other: Sums) -> Sums:
        """Both together."""
        if not other.numbers or not self.numbers:
            return (self if self.numbers else other)._replace(nans=self.nans + other.nans)
        low = min(self.low, other.low)  # type: ignore[type-var]
        high = max(self.high, other.high)  # type: ignore[type-var]
        return Sums(self.numbers + other.numbers, self.nans + other.nans, low, high, self.total + other.total)


class Tally(NamedTuple):
    """What a batch adds to one metric of one stream."""

    points: int
    counted: int
    first_step: int
    max_step: int
    last_step: int
    last_ns: int
    last: Any
    ascending: bool
    """whether each step was higher than the one before; False also where that would take long to tell"""
    sums: Sums


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
    summary: dict[str, Any] = field(default_factory=dict)
    definitions: dict[str, dict[str, Any]] = field(default_factory=dict)
    clocks: list[tuple[int, int]] = field(default_factory=list)
    """(wall, monotonic) where the wall clock jumped"""
    end: End | None = None
    is_ascending: bool = True
    """whether each record's step was higher than the one before"""
    highest: int = _INT64_MIN - 1
    is_open: bool = False
    """whether something was logged after the last end in it, or there was none"""
    damages: list[tuple[int, int, str]] = field(default_factory=list)
    """(start, end, what is wrong) of ranges that could not be read"""


class _Shape:
    """The records of a batch that have the same names: most batches have one shape or two."""

    __slots__ = (
        "ascending", "counted", "first_step", "last", "last_ns", "last_step", "max_step", "points", "rows", "sums",
        "turn",
    )  # fmt: skip

    def __init__(self, step: int) -> None:
        self.points = self.counted = self.last_ns = self.turn = 0
        self.first_step = self.last_step = step
        self.max_step = step - 1
        self.ascending = True
        self.last: dict[str, Any] = {}
        self.rows: list[Iterable[Any]] = []
        self.sums: list[Sums] = []

    def sum_up(self) -> None:
        """Takes the rows into the sums."""
        if not self.rows:
            return
        more = [sums_of(column) for column in zip(*self.rows, strict=True)]
        self.sums = [a.plus(b) for a, b in zip(self.sums, more, strict=True)] if self.sums else more
        self.rows = []


def sums_of(values: Sequence[Any]) -> Sums:
    """The sums of one metric's values."""
    if values and _NUMBERS.issuperset(map(type, values)):
        total = sum(values)
        if total == total:
            return Sums(len(values), 0, _number(min(values)), _number(max(values)), total)
    numbers = [v for v in values if type(v) in _NUMBERS and v == v]
    nans = sum(1 for v in values if v != v)
    if not numbers:
        return Sums(nans=nans)
    return Sums(len(numbers), nans, _number(min(numbers)), _number(max(numbers)), sum(numbers))


def _number(value: float) -> float:
    """A bool as the number it counts for, and a whole number past 64 bits with sign as the nearest float: what the
    database can hold."""
    if isinstance(value, float):
        return value
    return int(value) if _INT64_MIN <= value <= _INT64_MAX else float(value)


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
        shape.sum_up()
        _tally(result.metrics, names, shape, ascending=result.is_ascending)
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
    elif not _INT64_MIN <= step <= _INT64_MAX or not 0 <= origin <= _LAST_ORIGIN:
        raise ValueError("its step is no whole number of 64 bits, or its origin unknown")
    shape.points += 1
    if origin == _COUNTER:
        shape.counted += 1
    if step > shape.max_step:
        shape.max_step = step
    else:
        shape.ascending = False
        if step < shape.first_step:
            shape.first_step = step
    shape.rows.append(metrics.values())
    if len(shape.rows) == _ROWS_AT_ONCE:
        shape.sum_up()
    shape.last_step, shape.last_ns, shape.last, shape.turn = step, time_ns, metrics, result.records
    if step > result.highest:
        result.highest = step
    else:
        result.is_ascending = False
    result.is_open, result.end = True, None
    result.records += 1
    result.points += len(names)


def _tally(tallies: dict[str, Tally], names: tuple[str, ...], shape: _Shape, *, ascending: bool) -> None:
    """Adds a shape to its metrics; shapes come in the order of their last records. `ascending`: the steps of
    the whole batch are."""
    for name, sums in zip(names, shape.sums, strict=True):
        last = (shape.last_step, shape.last_ns, shape.last[name])
        tally = tallies.get(name)
        if tally is None:
            tallies[name] = Tally(
                shape.points, shape.counted, shape.first_step, shape.max_step, *last, shape.ascending, sums
            )
            continue
        tallies[name] = Tally(
            tally.points + shape.points,
            tally.counted + shape.counted,
            min(tally.first_step, shape.first_step),
            max(tally.max_step, shape.max_step),
            *last,
            ascending=ascending,
            sums=tally.sums.plus(sums),
        )


def _take(result: Digest, fields: list[Any]) -> None:
    kind, time_ns = fields[0], fields[1]
    if kind == Kind.CONFIG:
        result.config.update({str(key): value for key, value in fields[2].items()})
    elif kind == Kind.SUMMARY:
        result.summary.update({str(key): value for key, value in fields[2].items()})
    elif kind == Kind.CLOCK:
        result.clocks.append((time_ns, int(fields[2])))
    elif kind == Kind.DEFINE:
        result.definitions.setdefault(str(fields[2]), {}).update(fields[3])
    elif kind == Kind.FINISH:
        result.is_open = False
        result.end = End(str(fields[2]), str(fields[3]), bool(fields[4]), time_ns)


def _check_log(step: Any, origin: Any, metrics: Any) -> None:
    if type(step) is not int or type(origin) is not int or not _INT64_MIN <= step <= _INT64_MAX:
        raise ValueError("its step is no whole number of 64 bits")
    if not 0 <= origin <= _LAST_ORIGIN:
        raise ValueError("its origin is unknown")
    if not isinstance(metrics, dict) or not all(type(name) is str for name in metrics):
        raise ValueError("its metrics are no map of names")


def log_records(data: bytes, start: int) -> Iterator[LogRecord]:
    """The log() calls in a batch that begins at offset `start`; what cannot be read is left out."""
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
        yield LogRecord(item.start, time_ns, step, origin, values)
