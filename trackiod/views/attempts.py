"""Which streams of a run belong to which attempt, and in which order attempts count. Pure.

The order is that of their starts, never of arrival: the orphan of a dead attempt, drained last, does not
win. Starts are told by the restart count of the launcher; within one boot of a host by its monotonic clock,
which nobody sets; else by the wall clock. Two streams that claim one rank of one attempt while both lived are
kept apart as twins; one that started after the other had ended is a new attempt, whatever the launcher's
restart count says; one of the same process, which logged again after `finish()`, goes on with its own.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

_FOR_EVER = 1 << 63


class Restarts(NamedTuple):
    """How often a launcher had started this again. Counts compare where launcher and scope are the same."""

    launcher: str
    scope: str
    """the one launch, or job, that counts; empty where the environment does not name it"""
    times: int


class Start(NamedTuple):
    """What a stream said of its start, beside the wall clock. Nothing of it need be known."""

    boot_id: str = ""
    wall_ns: int = 0
    monotonic_ns: int = 0
    jumps: tuple[tuple[int, int], ...] = ()
    """(wall clock, monotonic clock) where the one had jumped against the other, in order"""
    restarts: tuple[Restarts, ...] = ()
    """of the outermost launcher first"""


class Stream(NamedTuple):
    """A stream as the store knows it."""

    id: str
    run: str
    role: str
    rank: int
    attempt_key: str
    process: str
    started_ns: int
    ended_ns: int | None
    state: str | None
    cause: str
    records: int
    points: int
    refused_records: int
    refused_points: int
    last_ns: int | None
    world_size: int
    start: Start = Start()


class Place(NamedTuple):
    """Where a stream stands in its run: the attempt's number, from 0, and which twin of its rank it is."""

    attempt: int
    twin: int


class _Life(NamedTuple):
    """When a stream started and ended, on one clock for all streams of a run."""

    start: int
    end: int


_Group = tuple[str, int]
"""An attempt: its key, and how often its ranks had come again with the same key."""


def start_of(meta: Mapping[str, Any], jumps: Iterable[tuple[int, int]] = ()) -> Start:
    """Read a start from what a stream said of itself, which may be anything."""
    boot_id, wall, monotonic = meta.get("boot_id"), meta.get("started_ns"), meta.get("monotonic_ns")
    restarts = meta.get("restarts")
    known = [Restarts(*each) for each in restarts if _is_count(each)] if isinstance(restarts, (list, tuple)) else []
    if not (isinstance(boot_id, str) and type(wall) is int and type(monotonic) is int):
        return Start(restarts=tuple(known))
    return Start(boot_id, wall, monotonic, tuple(sorted(jumps, key=lambda jump: jump[1])), tuple(known))


def _is_count(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and list(map(type, value)) == [str, str, int]


def need_starts(streams: Sequence[Stream]) -> bool:
    """Whether more than the wall clock is needed to place these: not where there is one stream of each rank."""
    seats = {(s.role, s.rank) for s in streams}
    return len({s.attempt_key for s in streams}) > 1 or len(seats) < len(streams)


def place(streams: Iterable[Stream]) -> dict[str, Place]:
    """Place each of a run's streams, by stream id, in the order that decides what shows: by attempt, then by start.
    Workers stand beside the rank they belong to."""
    known = {stream.id: stream for stream in streams}
    lives = _lives(known.values())
    in_order = sorted(known.values(), key=lambda s: (lives[s.id].start, s.id))
    seats: dict[tuple[str, int], _Seat] = {}
    groups: dict[_Group, list[Stream]] = {}
    found: dict[str, tuple[_Group, int]] = {}
    for stream in in_order:
        seat = seats.setdefault((stream.attempt_key, stream.rank), _Seat())
        round_, twin = (seat.latest, 0) if stream.role == "worker" else seat.take(stream.process, lives[stream.id])
        group = (stream.attempt_key, round_)
        groups.setdefault(group, []).append(stream)
        found[stream.id] = group, twin
    numbers = {group: number for number, group in enumerate(_order(groups, lives))}
    placed = [(stream.id, Place(numbers[found[stream.id][0]], found[stream.id][1])) for stream in in_order]
    return dict(sorted(placed, key=lambda each: each[1].attempt))


class _Seat:
    """A rank of an attempt's key: its processes, which come in the order of their starts, in rounds.

    Each goes to the first round in which one of the rank lives yet. Rounds whose processes have all ended leave the
    heap once, so a thousand rounds cost no more than a thousand times one.
    """

    __slots__ = ("_ends", "_living", "_round_of", "_sizes")

    def __init__(self) -> None:
        self._ends: list[int] = []
        self._sizes: list[int] = []
        self._living: list[int] = []
        self._round_of: dict[str, tuple[int, int]] = {}

    @property
    def latest(self) -> int:
        """The last round so far."""
        return max(0, len(self._ends) - 1)

    def take(self, process: str, life: _Life) -> tuple[int, int]:
        """Find the round of a stream, and which twin it is in it."""
        seat = self._round_of.get(process)
        if seat is None:
            while self._living and self._ends[self._living[0]] <= life.start:
                heapq.heappop(self._living)
            round_ = self._living[0] if self._living else len(self._ends)
            if round_ == len(self._ends):
                self._ends.append(life.end)
                self._sizes.append(0)
            seat = self._round_of[process] = round_, self._sizes[round_]
            self._sizes[round_] += 1
        round_ = seat[0]
        self._ends[round_] = max(self._ends[round_], life.end)
        heapq.heappush(self._living, round_)
        return seat


def _lives(streams: Iterable[Stream]) -> dict[str, _Life]:
    """Put the starts and ends of all streams on one clock.

    Within a boot that is the monotonic clock. What lies between it and the time of day is one number for each boot:
    the one in the middle of those that its streams say, so that one start at which the clock was wrong moves nothing.
    """
    streams = list(streams)
    offsets: dict[str, list[int]] = {}
    for stream in streams:
        if stream.start.boot_id:
            offsets.setdefault(stream.start.boot_id, []).append(stream.started_ns - stream.start.monotonic_ns)
    middle = {boot: sorted(each)[len(each) // 2] for boot, each in offsets.items()}
    return {stream.id: _life(stream, middle) for stream in streams}


def _life(stream: Stream, offsets: Mapping[str, int]) -> _Life:
    end = _end_of(stream)
    if not stream.start.boot_id:
        return _Life(stream.started_ns, _FOR_EVER if end is None else end)
    offset = offsets[stream.start.boot_id]
    return _Life(
        stream.start.monotonic_ns + offset, _FOR_EVER if end is None else _monotonic(stream.start, end) + offset
    )


def _end_of(stream: Stream) -> int | None:
    """The end of a stream on its own wall clock. That of a process that could not tell it is noted when it is found,
    which may be later; its last record is the better witness."""
    if stream.state in ("killed", "lost"):
        return stream.last_ns or stream.start.wall_ns or stream.started_ns
    return stream.ended_ns


def _monotonic(start: Start, wall_ns: int) -> int:
    """What the monotonic clock said late in a stream's life, when its wall clock said this."""
    until = _FOR_EVER
    for wall, monotonic in reversed([(start.wall_ns, start.monotonic_ns), *start.jumps]):
        if wall_ns >= wall:
            return min(monotonic + wall_ns - wall, until)
        until = monotonic  # it was before this jump
    return start.monotonic_ns


def _order(groups: Mapping[_Group, Sequence[Stream]], lives: Mapping[str, _Life]) -> list[_Group]:
    """Order attempts. One begins with its lowest rank, since hosts' clocks differ, and not before one that its
    launcher had started earlier."""
    first = {group: min(members, key=lambda s: (s.role != "rank", s.rank, lives[s.id].start, s.id))
             for group, members in groups.items()}  # fmt: skip
    starts = {group: lives[stream.id].start for group, stream in first.items()}
    counts: dict[tuple[int, str, str], dict[_Group, int]] = {}
    for group, stream in first.items():
        for depth, (launcher, scope, times) in enumerate(stream.start.restarts):
            counts.setdefault((depth, launcher, scope), {})[group] = times
    for (_, _, scope), count_of in sorted(counts.items()):
        if scope or max(Counter(count_of.values()).values()) == 1:  # each launch counts from 0: is this one launch?
            _raise_starts(starts, count_of)
    restarts = {group: [each.times for each in stream.start.restarts] for group, stream in first.items()}
    return sorted(groups, key=lambda group: (starts[group], restarts[group], lives[first[group].id].start, group))


def _raise_starts(starts: dict[_Group, int], count_of: Mapping[_Group, int]) -> None:
    """Let no attempt begin before one of a lower count."""
    lowest = highest = -_FOR_EVER
    last = None
    for group in sorted(count_of, key=lambda group: count_of[group]):
        if count_of[group] != last:
            lowest, last = highest, count_of[group]
        starts[group] = max(starts[group], lowest)
        highest = max(highest, starts[group])


def limits(first_steps: Mapping[int, int]) -> dict[int, float]:
    """For each attempt, whose lowest step is given, the step from which on later attempts hide it."""
    found: dict[int, float] = {}
    lowest = math.inf
    for attempt in sorted(first_steps, reverse=True):
        found[attempt] = lowest
        lowest = min(lowest, first_steps[attempt])
    return found
