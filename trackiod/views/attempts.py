"""Which streams of a run belong to which attempt, and in which order attempts count. Pure.

The order is that of their starts, never of arrival: the orphan of a dead attempt, drained last, does not
win. Two streams that claim one rank of one attempt while both lived are kept apart as twins; one that
started after the other had ended is a new attempt, whatever the launcher's restart count says; one of the same
process, which logged again after `finish()`, goes on with its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple


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


class Place(NamedTuple):
    """Where a stream stands in its run: the attempt's number, from 0, and which twin of its rank it is."""

    attempt: int
    twin: int


def place(streams: Iterable[Stream]) -> dict[str, Place]:
    """The place of each of a run's streams, by stream id. Workers stand beside the rank they belong to."""
    streams = sorted(streams, key=lambda s: (s.started_ns, s.id))
    groups: dict[tuple[str, int], tuple[int, dict[tuple[str, int], list[Stream]]]] = {}
    seat: dict[str, tuple[str, int]] = {}
    twins: dict[str, int] = {}
    for stream in streams:
        round_ = 0
        while True:
            key = (stream.attempt_key, round_)
            _, members = groups.setdefault(key, (stream.started_ns, {}))
            peers = members.setdefault((stream.role, stream.rank), [])
            earlier = next((p for p in peers if p.process == stream.process), None)
            if stream.role == "worker" or earlier or not all(_ended_before(p, stream) for p in peers) or not peers:
                break
            round_ += 1
        if earlier is not None:
            twins[stream.id] = twins[earlier.id]
        else:
            twins[stream.id] = 0 if stream.role == "worker" else len({p.process for p in peers})
        peers.append(stream)
        seat[stream.id] = key
    order = sorted(groups, key=lambda key: (groups[key][0], key))
    numbers = {key: number for number, key in enumerate(order)}
    return {stream_id: Place(numbers[key], twins[stream_id]) for stream_id, key in seat.items()}


def limits(first_steps: Mapping[int, int]) -> dict[int, float]:
    """For each attempt, whose lowest step is given, the step from which on later attempts hide it."""
    found: dict[int, float] = {}
    lowest = math.inf
    for attempt in sorted(first_steps, reverse=True):
        found[attempt] = lowest
        lowest = min(lowest, first_steps[attempt])
    return found


def _ended_before(earlier: Stream, later: Stream) -> bool:
    """Whether one had ended when the other started. The end of a process that could not tell it is noted when
    it is found, which may be later; its last record is the better witness."""
    if earlier.state in ("killed", "lost"):
        return (earlier.last_ns or earlier.started_ns) <= later.started_ns
    return earlier.ended_ns is not None and earlier.ended_ns <= later.started_ns
