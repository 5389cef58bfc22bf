"""What a batch says: its points, steps, settings and end. Pure: bytes in, values out.

Read once, as the batch is committed, so that everything the store knows about a stream is exact the moment
a point is acked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from trackio.record import Damage, Kind, Origin, Record, unpack
from trackiod.store.batch import Contents, read
from trackiod.store.sums import Rows, Stretch, Sums

if TYPE_CHECKING:  # numpy: an idle daemon does without
    from trackiod.store.tables import Table

_INT64_MIN, _INT64_MAX = -(1 << 63), (1 << 63) - 1
_COUNTER = int(Origin.COUNTER)
_LAST_ORIGIN = 255


class LogRecord(NamedTuple):
    """One log() call where it stands in its stream."""

    offset: int
    time_ns: int
    step: int
    origin: int
    metrics: dict[str, Any]


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


class StagedFile(NamedTuple):
    """A file that a process staged for us."""

    number: int
    time_ns: int
    facts: dict[str, Any]


class Alert(NamedTuple):
    """What a process wants to be heard at once. `webhook`: where it is to be sent, or None."""

    start: int
    time_ns: int
    step: int | None
    level: str
    title: str
    text: str | None
    webhook: str | None


class ArtifactSaid(NamedTuple):
    """An artifact that a process logged (role output) or used (input)."""

    number: int
    time_ns: int
    role: str
    name: str
    facts: dict[str, Any]


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
    files: list[StagedFile] = field(default_factory=list)
    alerts: list[Alert] = field(default_factory=list)
    system: list[tuple[int, int, dict[str, Any]]] = field(default_factory=list)
    """(offset, time, metrics) of what was said of the machine"""
    artifacts: list[ArtifactSaid] = field(default_factory=list)
    name: str = ""
    """what the run is called now, if that was said"""
    end: End | None = None
    is_open: bool = False
    """whether something was logged after the last end in it, or there was none"""
    damages: list[tuple[int, int, str]] = field(default_factory=list)
    """(start, end, what is wrong) of ranges that could not be read"""


def digest(data: bytes, start: int) -> Digest:
    """The digest of a batch that begins at offset `start`. Never raises: what cannot be read is a damage."""
    return digest_of(read(data, start))


def digest_of(contents: Contents) -> Digest:
    """The digest of a batch that was read."""
    result = Digest()
    shapes: dict[tuple[str, ...], Rows] = {}
    places: list[tuple[int, int]] = []
    stretches = _summed(contents.tables)
    heard = max(((stretch.end, stretch.last_ns) for stretch in stretches), default=(-1, None))
    ended_at = -1
    for item in contents.others:
        if isinstance(item, Damage):
            result.damages.append((item.start, item.end, "unreadable bytes"))
            continue
        try:
            fields = unpack(item.payload)
            if fields[0] == Kind.LOG:
                places.append(_take_log(shapes, fields, item.start))
            else:
                _take(result, fields, item.start)
        except (ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
            result.damages.append((item.start, item.end, f"malformed record: {error}"))
            continue
        heard = max(heard, (item.start, fields[1]))
        if fields[0] == Kind.FINISH:
            ended_at = item.start
    result.last_ns = heard[1]
    stretches += [rows.summed(names) for names, rows in shapes.items()]
    stretches.sort(key=lambda stretch: stretch.end)
    result.is_open = bool(stretches) and stretches[-1].end > ended_at
    if result.is_open:
        result.end = None
    ascending = len(stretches) > 1 and _are_ascending(contents.tables, places)
    for stretch in stretches:
        result.records += stretch.records
        result.points += stretch.records * len(stretch.names)
        _tally(result.metrics, stretch, ascending=ascending)
    return result


def _summed(tables: Sequence[Table]) -> list[Stretch]:
    if not tables:
        return []
    from trackiod.store.tables import summed

    return [summed(table) for table in tables]


def _are_ascending(tables: Sequence[Table], places: list[tuple[int, int]]) -> bool:
    """Whether each step is higher than the one before: over tables and the (offset, step) of other calls."""
    if not tables:
        return all(before < after for (_, before), (_, after) in pairwise(places))
    from trackiod.store.tables import are_ascending

    return are_ascending(tables, places)


def _take_log(shapes: dict[tuple[str, ...], Rows], fields: list[Any], offset: int) -> tuple[int, int]:
    """Adds a call to those of its names; returns its offset and step."""
    _, time_ns, step, origin, metrics = fields[:5]
    if type(step) is not int or type(origin) is not int or type(metrics) is not dict:
        raise ValueError("not a step, its origin and a map")
    names = tuple(metrics)
    rows = shapes.get(names)
    if rows is None:
        _check_log(step, origin, metrics)
        rows = shapes[names] = Rows(step)
    elif not _INT64_MIN <= step <= _INT64_MAX or not 0 <= origin <= _LAST_ORIGIN:
        raise ValueError("its step is no whole number of 64 bits, or its origin unknown")
    rows.add(offset, time_ns, step, tuple(metrics.values()), is_counted=origin == _COUNTER)
    return offset, step


def _tally(tallies: dict[str, Tally], stretch: Stretch, *, ascending: bool) -> None:
    """Adds a stretch to its metrics; stretches come in the order of their last calls. `ascending`: the steps of
    all of them together are."""
    calls, last = stretch[1:5], (stretch.last_step, stretch.last_ns)
    for name, value, sums in zip(stretch.names, stretch.last, stretch.sums, strict=True):
        tally = tallies.get(name)
        if tally is None:
            tallies[name] = Tally(*calls, *last, value, stretch.ascending, sums)
            continue
        tallies[name] = Tally(
            tally.points + stretch.records,
            tally.counted + stretch.counted,
            min(tally.first_step, stretch.first_step),
            max(tally.max_step, stretch.max_step),
            *last,
            value,
            ascending=ascending,
            sums=tally.sums.plus(sums),
        )


def _take(result: Digest, fields: list[Any], start: int) -> None:
    kind, time_ns = fields[0], fields[1]
    if kind == Kind.CONFIG:
        result.config.update({str(key): value for key, value in fields[2].items()})
    elif kind == Kind.SUMMARY:
        result.summary.update({str(key): value for key, value in fields[2].items()})
    elif kind == Kind.CLOCK:
        if type(fields[2]) is not int or not 0 <= fields[2] <= _INT64_MAX:
            raise ValueError("not a clock's time")
        result.clocks.append((time_ns, fields[2]))
    elif kind == Kind.DEFINE:
        result.definitions.setdefault(str(fields[2]), {}).update(fields[3])
    elif kind == Kind.FINISH:
        result.end = End(str(fields[2]), str(fields[3]), bool(fields[4]), time_ns)
    elif kind == Kind.FILE:
        if type(fields[2]) is not int or not 0 <= fields[2] <= _INT64_MAX or type(fields[3]) is not dict:
            raise ValueError("not a file's number and facts")
        result.files.append(StagedFile(fields[2], time_ns, fields[3]))
    elif kind == Kind.ALERT:
        result.alerts.append(_alert(fields[2], start, time_ns))
    elif kind == Kind.ARTIFACT:
        number, role, name, facts = fields[2:6]
        if type(number) is not int or not 0 <= number <= _INT64_MAX or type(facts) is not dict:
            raise ValueError("not an artifact's number and facts")
        result.artifacts.append(ArtifactSaid(number, time_ns, str(role), str(name), facts))
    elif kind == Kind.NAME:
        result.name = str(fields[2])
    elif kind == Kind.SYSTEM:
        result.system.append((start, time_ns, {str(name): value for name, value in fields[2].items()}))


def _alert(facts: dict[str, Any], start: int, time_ns: int) -> Alert:
    step, text, webhook = facts.get("step"), facts.get("text"), facts.get("webhook")
    if type(step) is not int or not _INT64_MIN <= step <= _INT64_MAX:
        step = None
    text, webhook = (None if value is None else str(value) for value in (text, webhook))
    return Alert(start, time_ns, step, str(facts["level"]), str(facts["title"]), text, webhook)


def _check_log(step: Any, origin: Any, metrics: Any) -> None:
    if type(step) is not int or type(origin) is not int or not _INT64_MIN <= step <= _INT64_MAX:
        raise ValueError("its step is no whole number of 64 bits")
    if not 0 <= origin <= _LAST_ORIGIN:
        raise ValueError("its origin is unknown")
    if not isinstance(metrics, dict) or not all(type(name) is str for name in metrics):
        raise ValueError("its metrics are no map of names")


def log_records(items: Iterable[Record | Damage]) -> Iterator[LogRecord]:
    """The log() calls among these records; what cannot be read is left out."""
    for item in items:
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
