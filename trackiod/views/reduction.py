"""One series out of many: what attempts hide, what ranks amount to. Pure.

Points are immutable; these are the rules by which they are shown (docs/semantics.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from trackio.record import Origin


class SeriesPoint(NamedTuple):
    """A stored point and where it comes from. `order` sorts within one rank and attempt."""

    rank: int
    attempt: int
    order: tuple[int, str, int]
    """(stream's start, stream, offset)"""
    step: int
    origin: int
    time_ns: int
    value: Any


class Shown(NamedTuple):
    """A point as readers see it. `ranks` of `of` ranks have it; `nan_rank` names one that made it NaN."""

    step: int
    time_ns: int
    value: Any
    ranks: int = 1
    of: int = 1
    nan_rank: int | None = None
    origin: tuple[int, int] | None = None
    """(rank, attempt) of a point that is shown as it was stored"""

    @property
    def is_partial(self) -> bool:
        return self.ranks < self.of


class Sifted(NamedTuple):
    """The points that show, and how many the rules hide."""

    visible: list[SeriesPoint]
    hidden: int


def sift(points: Iterable[SeriesPoint]) -> Sifted:
    """Per (rank, step) the last point; per metric a later attempt hides earlier ones from its first step on."""
    points = list(points)
    starts: dict[int, int] = {}
    for p in points:
        starts[p.attempt] = min(p.step, starts.get(p.attempt, p.step))
    limit: dict[int, float] = {}
    lowest = math.inf
    for attempt in sorted(starts, reverse=True):
        limit[attempt] = lowest
        lowest = min(lowest, starts[attempt])
    last: dict[tuple[int, int], SeriesPoint] = {}
    for p in sorted(points, key=lambda p: (p.attempt, p.order)):
        if p.step < limit[p.attempt]:
            last[(p.rank, p.step)] = p
    visible = sorted(last.values(), key=lambda p: (p.step, p.rank))
    return Sifted(visible, len(points) - len(visible))


def reduce_ranks(points: Sequence[SeriesPoint], how: str = "mean") -> list[Shown]:
    """One point per step over all ranks, of points that `sift` left.

    Points that plain counters stepped are paired by their ordinal within rank and attempt: rank 0 may have
    logged other things in between. They show the lowest rank's step.
    """
    of = {p.attempt: set[int]() for p in points}
    for p in points:
        of[p.attempt].add(p.rank)
    shown = [_reduced(group, how, len(of[group[0].attempt])) for group in _paired(points)]
    return sorted(shown, key=lambda s: (s.step, s.time_ns))


def _paired(points: Sequence[SeriesPoint]) -> list[list[SeriesPoint]]:
    """The points that belong together, each group in the order of ranks."""
    groups: dict[tuple[Any, ...], list[SeriesPoint]] = {}
    ordinals: dict[tuple[int, int], int] = {}
    for p in sorted(points, key=lambda p: (p.rank, p.attempt, p.order)):
        key: tuple[Any, ...] = (p.attempt, "step", p.step)
        if p.origin == Origin.COUNTER:
            ordinal = ordinals[(p.rank, p.attempt)] = ordinals.get((p.rank, p.attempt), -1) + 1
            key = (p.attempt, "ordinal", ordinal)
        groups.setdefault(key, []).append(p)
    return list(groups.values())


def _reduced(group: list[SeriesPoint], how: str, of: int) -> Shown:
    first = group[0]
    time_ns = max(p.time_ns for p in group)
    values = [p.value for p in group]
    nan_rank = next((p.rank for p in group if _is_nan(p.value)), None) if len(group) > 1 else None
    is_same = how != "sum" and _are_equal(values)
    value = first.value if is_same else _REDUCTIONS.get(how, _mean)(values)
    return Shown(first.step, time_ns, value, len(group), of, nan_rank)


def _are_equal(values: list[Any]) -> bool:
    """Equal in type and value: these are returned as they are, so a mean cannot change the last bit."""
    return all(type(v) is type(values[0]) and v == values[0] for v in values)


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _are_numbers(values: list[Any]) -> bool:
    return all(isinstance(v, (int, float)) for v in values)


def _numeric(reduce: Callable[[list[Any]], Any]) -> Callable[[list[Any]], Any]:
    """Strings and lists are not reduced: the lowest rank's stands. A NaN makes the result NaN."""

    def reduced(values: list[Any]) -> Any:
        if not _are_numbers(values):
            return values[0]
        if any(map(_is_nan, values)):
            return math.nan
        return reduce(values)

    return reduced


def _average(values: list[Any]) -> float:
    try:
        return math.fsum(values) / len(values)
    except (OverflowError, ValueError):  # inf - inf, or a sum past the largest float
        return sum(v / len(values) for v in map(float, values))


_mean = _numeric(_average)
_REDUCTIONS: dict[str, Callable[[list[Any]], Any]] = {
    "mean": _mean,
    "min": _numeric(min),
    "max": _numeric(max),
    "sum": _numeric(sum),
    "first": lambda values: values[0],
    "last": lambda values: values[-1],
}
