"""A run's metrics in short: what of each series shows, and `run.summary`. Reads points only where some of a
series are hidden and others are not.

Of a metric's points that show, over all ranks: the least, the greatest and the mean (NaN apart, counted); `last`
is what the ranks' last values amount to; `best` is the one that `define_metric` chose.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cached_property
from typing import Any, NamedTuple

from trackiod.answers import RunView
from trackiod.store.reader import SeriesRow
from trackiod.store.sums import Sums, sums_of
from trackiod.views.amounts import amount
from trackiod.views.attempts import limits


class _Lane(NamedTuple):
    """One rank's series of a metric in one attempt: one, or several where the process finished and logged again."""

    rank: int
    attempt: int
    rows: list[SeriesRow]


class _Showing(NamedTuple):
    """What shows of a lane."""

    hidden: int
    sums: Sums
    last: Any


class Overview:
    """What a run's metrics come to. Its methods raise StoreError."""

    def __init__(self, view: RunView, metrics: Iterable[str] | None = None) -> None:
        """All metrics of the run, or those given."""
        self._view = view
        chosen = view.metric_names if metrics is None else metrics
        self._lanes = {name: self._lanes_of(view.series_of[name]) for name in chosen if name in view.series_of}
        self._limits = {name: limits(view.first_steps(name)) for name in self._lanes}

    @property
    def hidden(self) -> int:
        """Points that the rules hide, over all ranks."""
        return sum(one.hidden for found in self._showing.values() for one in found)

    @property
    def metrics(self) -> list[str]:
        return list(self._lanes)

    def summary(self, metric: str) -> dict[str, Any]:
        """`last`, and of numbers `min`, `max`, `mean`; `best` where a direction was given; `nans` if there are."""
        sums = Sums()
        for one in self._showing[metric]:
            sums = sums.plus(one.sums)
        facts: dict[str, Any] = {"last": self.last(metric)}
        if sums.numbers:
            facts |= {"min": sums.low, "max": sums.high, "mean": sums.total / sums.numbers}
            direction = self._direction(metric)
            if direction:
                facts["best"] = facts[direction]
        if sums.nans:
            facts["nans"] = sums.nans
        return facts

    def value(self, metric: str) -> Any:
        """The one figure of the summary that `define_metric(summary=)` chose; the last if it said nothing."""
        word = self._view.definition(metric, "summary") or "last"
        return self.last(metric) if word == "last" else self.summary(metric).get(word, self.last(metric))

    def last(self, metric: str) -> Any:
        """What the last values of the ranks of the latest attempt come to."""
        latest = max(self._limits[metric])
        lanes = sorted((lane for lane in self._lanes[metric] if lane.attempt == latest), key=lambda lane: lane.rank)
        return amount([self._last_of(metric, lane) for lane in lanes], self._view.reduction_of(metric))

    def _direction(self, metric: str) -> str | None:
        """min or max, where the user said which way is better."""
        goal, summary = (self._view.definition(metric, option) for option in ("goal", "summary"))
        if goal or summary == "best":
            return "max" if goal == "maximize" else "min"
        return summary if summary in ("min", "max") else None

    # -- what shows ------------------------------------------------------------------------------------------

    def _lanes_of(self, rows: Iterable[SeriesRow]) -> list[_Lane]:
        lanes: dict[tuple[int, int], list[SeriesRow]] = {}
        for row in rows:
            key = (self._view.rank_of[row.stream], self._view.places[row.stream].attempt)
            lanes.setdefault(key, []).append(row)
        return [_Lane(*key, found) for key, found in lanes.items()]

    @cached_property
    def _showing(self) -> dict[str, list[_Showing]]:
        """What shows of each metric's lanes."""
        return {name: [self._of(name, lane) for lane in lanes] for name, lanes in self._lanes.items()}

    def _of(self, metric: str, lane: _Lane) -> _Showing:
        if self._is_hidden(metric, lane):
            return _Showing(sum(row.points for row in lane.rows), Sums(), None)
        if self._is_partly(metric, lane):
            return self._partly[metric, lane.rank, lane.attempt]
        (row,) = lane.rows
        total = math.nan if row.total is None else row.total  # SQLite keeps NaN, which is inf - inf here, as null
        return _Showing(0, Sums(row.numbers, row.nans, row.low, row.high, total), row.last)

    def _is_hidden(self, metric: str, lane: _Lane) -> bool:
        """Whether later attempts hide all of a lane."""
        return all(row.first_step >= self._limits[metric][lane.attempt] for row in lane.rows)

    def _is_partly(self, metric: str, lane: _Lane) -> bool:
        """Whether some points of a lane may be hidden and others show."""
        row = lane.rows[0]
        is_whole = len(lane.rows) == 1 and row.ascending and row.max_step < self._limits[metric][lane.attempt]
        return not is_whole and not self._is_hidden(metric, lane)

    @cached_property
    def _partly(self) -> dict[tuple[str, int, int], _Showing]:
        """What shows of the lanes of which only some points do, by metric, rank and attempt."""
        from trackiod.store import points
        from trackiod.views.column import concatenate
        from trackiod.views.reduction import showing

        lanes = [(name, lane) for name, found in self._lanes.items() for lane in found if self._is_partly(name, lane)]
        wanted: dict[str, set[str]] = {}
        for name, lane in lanes:
            for row in lane.rows:
                wanted.setdefault(row.stream, set()).add(name)
        reader = self._view.reader
        columns = {stream: points.columns(reader, stream, frozenset(names)) for stream, names in wanted.items()}
        found = {}
        for name, lane in lanes:
            logged = concatenate(columns[row.stream][name] for row in lane.rows)
            values = showing(logged, self._limits[name][lane.attempt]).values.tolist()
            last = values[-1] if values else None
            found[name, lane.rank, lane.attempt] = _Showing(logged.size - len(values), sums_of(values), last)
        return found

    def _last_of(self, metric: str, lane: _Lane) -> Any:
        """The value at a lane's highest step, of the latest attempt."""
        row = lane.rows[-1]
        is_at_hand = len(lane.rows) == 1 and row.last_step == row.max_step
        return row.last if is_at_hand else self._of(metric, lane).last
