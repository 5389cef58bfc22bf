"""One curve out of many series: what attempts hide, what ranks amount to. Pure.

Points are immutable; these are the rules by which they are shown (docs/semantics.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trackiod.views.amounts import amount, is_nan
from trackiod.views.attempts import limits
from trackiod.views.column import Column, Ints, Values, join, last_per_step, numbers

_NONE = -1


class Part(NamedTuple):
    """The points of one metric that one rank logged in one attempt."""

    rank: int
    attempt: int
    points: Column


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


class Curve(NamedTuple):
    """Points as readers see them, in arrays of one length; see `Shown`."""

    steps: Ints
    times_ns: Ints
    values: Values
    ranks: Ints
    of: Ints
    nan_ranks: Ints
    """-1 where no rank is to blame"""
    origins: tuple[Ints, Ints] | None = None
    """ranks and attempts, of points shown as they were stored"""

    @property
    def size(self) -> int:
        return len(self.steps)

    def take(self, chosen: Any) -> Curve:
        """The points that an index array, a mask or a slice chooses."""
        arrays = (array[chosen] for array in self[:6])
        origins = self.origins and (self.origins[0][chosen], self.origins[1][chosen])
        return Curve._make((*arrays, origins))

    def points(self) -> Iterator[Shown]:
        """One by one, in plain Python values."""
        for start in range(0, self.size, 4096):
            some = self.take(slice(start, start + 4096))
            origins = zip(*(a.tolist() for a in some.origins), strict=True) if some.origins else None
            for *point, nan_rank in zip(*(array.tolist() for array in some[:6]), strict=True):
                origin = next(origins) if origins else None
                yield Shown._make((*point, None if nan_rank == _NONE else nan_rank, origin))


class Sifted(NamedTuple):
    """The points that show, each part in the order of steps, and how many the rules hide."""

    visible: list[Part]
    hidden: int


def sift(parts: Iterable[Part], first_steps: Mapping[int, int] | None = None) -> Sifted:
    """Per (rank, step) the last point; per metric a later attempt hides earlier ones from its first step on: over
    all ranks, so `first_steps` tells it by attempt where `parts` are not of all."""
    parts = [part for part in parts if part.points.size]
    firsts = dict(first_steps or {})
    for part in parts:
        first = int(part.points.steps.min())
        firsts[part.attempt] = min(first, firsts.get(part.attempt, first))
    limit = limits(firsts)
    shown = (part._replace(points=showing(part.points, limit[part.attempt])) for part in parts)
    visible = [part for part in shown if part.points.size]
    visible.sort(key=lambda part: (part.attempt, part.rank))
    return Sifted(visible, sum(p.points.size for p in parts) - sum(p.points.size for p in visible))


def showing(points: Column, limit: float) -> Column:
    """Of a series' points the last of each step below `limit`, in the order of steps."""
    if points.size and limit <= points.steps.max():
        points = points.take(points.steps < limit)
    return points.take(last_per_step(points.steps))


def as_stored(parts: Sequence[Part]) -> Curve:
    """All points of these parts as they were stored, in the order of attempts, steps and ranks."""
    if not parts:
        return _curve(*_empty())
    columns = [part.points for part in parts]
    steps, times = (np.concatenate([getattr(c, name) for c in columns]) for name in ("steps", "times_ns"))
    ranks = np.concatenate([np.full(p.points.size, p.rank, np.int64) for p in parts])
    attempts = np.concatenate([np.full(p.points.size, p.attempt, np.int64) for p in parts])
    curve = _curve(steps, times, join([c.values for c in columns]))._replace(origins=(ranks, attempts))
    if len(parts) == 1 and bool((np.diff(steps) > 0).all()):
        return curve
    return curve.take(np.lexsort((ranks, steps, attempts)))


def reduce_ranks(parts: Sequence[Part], how: str = "mean") -> Curve:
    """One point per step over all ranks, of parts that `sift` left. A reduction never mixes attempts.

    Points that plain counters stepped are paired by their ordinal within rank and attempt: rank 0 may have
    logged other things in between. They show the lowest rank's step.
    """
    curves = []
    for attempt in sorted({part.attempt for part in parts}):
        ours = sorted((part for part in parts if part.attempt == attempt), key=lambda part: part.rank)
        points = ours[0].points
        curves.append(_curve(points.steps, points.times_ns, points.values) if len(ours) == 1 else _reduced(ours, how))
    if len(curves) == 1 and len(parts) == 1:
        return curves[0]
    if not curves:
        return _curve(*_empty())
    joined: list[Any] = [join(arrays) for arrays in list(zip(*curves, strict=True))[:6]]
    curve = Curve._make((*joined, None))
    return curve.take(np.lexsort((curve.times_ns, curve.steps)))


def _empty() -> tuple[Ints, Ints, Values]:
    nothing = np.empty(0, np.int64)
    return nothing, nothing, np.empty(0, np.float64)


def _curve(steps: Ints, times_ns: Ints, values: Values) -> Curve:
    """Points of one rank."""
    one, none = (np.broadcast_to(np.int64(number), steps.shape) for number in (1, _NONE))
    return Curve(steps, times_ns, values, one, one, none)


def _reduced(parts: Sequence[Part], how: str) -> Curve:
    """The points of one attempt, by step or ordinal over its ranks, which come in their order."""
    ranks = np.concatenate([np.full(p.points.size, i) for i, p in enumerate(parts)])
    steps = np.concatenate([p.points.steps for p in parts])
    times = np.concatenate([p.points.times_ns for p in parts])
    counted = np.concatenate([p.points.is_counted for p in parts])
    ordinals = np.concatenate([np.cumsum(p.points.is_counted) for p in parts])
    keys = np.where(counted, ordinals, steps)
    order = np.lexsort((ranks, keys, counted))
    keys, counted = keys[order], counted[order]
    is_new = np.append(True, (keys[1:] != keys[:-1]) | (counted[1:] != counted[:-1]))
    starts = np.flatnonzero(is_new)
    counts = np.diff(np.append(starts, len(keys)))
    values = join([p.points.values for p in parts])[order]
    of = np.full(len(starts), len(parts))
    rank_of = np.array([part.rank for part in parts])[ranks[order]]
    nan_ranks = _nan_ranks(values, starts, counts, rank_of)
    amounts = _amounts(values, starts, counts, how)
    return Curve(steps[order][starts], np.maximum.reduceat(times[order], starts), amounts, counts, of, nan_ranks)


def _nan_ranks(values: Values, starts: Ints, counts: Ints, ranks: Ints) -> Ints:
    """The lowest rank whose NaN stands in a group of several; -1 where there is none."""
    if values.dtype == np.int64:
        return np.full(len(starts), _NONE)
    blamed = np.isnan(values) if values.dtype != object else np.array([is_nan(v) for v in values])
    lowest = np.minimum.reduceat(np.where(blamed, ranks, np.iinfo(np.int64).max), starts)
    return np.where(np.logical_or.reduceat(blamed, starts) & (counts > 1), lowest, _NONE)


# -- amounts -----------------------------------------------------------------------------------------------


def _amounts(values: Values, starts: Ints, counts: Ints, how: str) -> Values:
    """What each group amounts to. Equal values, type included, are returned as they are, so a mean cannot
    change the last bit; but for a sum."""
    is_large = values.dtype == np.int64 and int(np.abs(numbers(values)).max()) * int(counts.max()) >= 1 << 62
    if values.dtype == object or is_large:
        ends = (starts + counts).tolist()
        listed = values.tolist()
        return _object([amount(listed[a:b], how) for a, b in zip(starts.tolist(), ends, strict=True)])
    last = starts + counts - 1
    with np.errstate(invalid="ignore", over="ignore"):
        lows, highs = np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)
        amounts: dict[str, Callable[[], Values]] = {
            "min": lambda: lows,
            "max": lambda: highs,
            "sum": lambda: np.asarray(np.add.reduceat(values, starts)),
            "first": lambda: values[starts],
            "last": lambda: values[last],
        }
        if how in amounts:
            return amounts[how]()
        means = _means(values, starts, counts)
    is_same = lows == highs
    if values.dtype == np.float64 or not is_same.any():
        return np.where(is_same, values[starts], means) if is_same.any() else means
    if is_same.all():
        return values[starts]
    return np.where(is_same, _object(values[starts].tolist()), _object(means.tolist()))


def _means(values: Values, starts: Ints, counts: Ints) -> NDArray[np.float64]:
    floats = values.astype(np.float64)
    means = np.add.reduceat(floats, starts) / counts
    if np.isfinite(means).all():
        return np.asarray(means)
    apart = np.add.reduceat(floats / np.repeat(counts, counts), starts)  # the sum went past the largest float
    return np.where(np.isinf(means) & np.isfinite(apart), apart, means)


def _object(values: Sequence[Any]) -> Values:
    return np.fromiter(values, object, len(values))
