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
from trackiod.store.digest import Sums, sums_of
from trackiod.store.reader import SeriesRow
from trackiod.views.amounts import amount
from trackiod.views.attempts import limits


class _Showing(NamedTuple):
    """What shows of one series."""

    points: int
    sums: Sums
    last: Any


class Overview:
    """What a run's metrics come to. Its methods raise StoreError."""

    def __init__(self, view: RunView, metrics: Iterable[str] | None = None) -> None:
        """All metrics of the run, or those given."""
        self._view = view
        chosen = view.metric_names if metrics is None else metrics
        self._rows = {name: view.series_of[name] for name in chosen if name in view.series_of}
        self._ranks = {s.id: s.rank for s in view.streams}
        self._limits = {name: self._limits_of(rows) for name, rows in self._rows.items()}

    @property
    def hidden(self) -> int:
        """Points that the rules hide, over all ranks."""
        stored = sum(row.points for rows in self._rows.values() for row in rows)
        return stored - sum(showing.points for found in self._showing.values() for showing in found)

    @property
    def metrics(self) -> list[str]:
        return list(self._rows)

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
        rows = [row for row in self._rows[metric] if self._view.places[row.stream].attempt == latest]
        values = [self._last_of(row) for row in sorted(rows, key=lambda row: self._ranks[row.stream])]
        return amount(values, self._view.reduction_of(metric))

    def _direction(self, metric: str) -> str | None:
        """min or max, where the user said which way is better."""
        goal, summary = (self._view.definition(metric, option) for option in ("goal", "summary"))
        if goal or summary == "best":
            return "max" if goal == "maximize" else "min"
        return summary if summary in ("min", "max") else None

    # -- what shows ------------------------------------------------------------------------------------------

    def _limits_of(self, rows: Iterable[SeriesRow]) -> dict[int, float]:
        """For each attempt the step from which on later ones hide this metric."""
        firsts: dict[int, int] = {}
        for row in rows:
            attempt = self._view.places[row.stream].attempt
            firsts[attempt] = min(row.first_step, firsts.get(attempt, row.first_step))
        return limits(firsts)

    def _limit(self, row: SeriesRow) -> float:
        return self._limits[row.name][self._view.places[row.stream].attempt]

    @cached_property
    def _showing(self) -> dict[str, list[_Showing]]:
        """What shows of each metric's series."""
        return {name: [self._of(row) for row in rows] for name, rows in self._rows.items()}

    @cached_property
    def _partly(self) -> dict[int, _Showing]:
        """What shows of the series of which only some points do, by id."""
        wanted: dict[str, list[tuple[SeriesRow, float]]] = {}
        for rows in self._rows.values():
            for row in rows:
                limit = self._limit(row)
                if row.first_step < limit and not (row.ascending and row.max_step < limit):
                    wanted.setdefault(row.stream, []).append((row, limit))
        if not wanted:
            return {}
        from trackiod.views.reduction import showing

        found = {}
        for stream, partly in wanted.items():
            columns = self._view.reader.columns(stream, frozenset(row.name for row, _ in partly))
            for row, limit in partly:
                values = showing(columns[row.name], limit).values.tolist()
                found[row.id] = _Showing(len(values), sums_of(values), values[-1] if values else None)
        return found

    def _last_of(self, row: SeriesRow) -> Any:
        """The value at a series' highest step, of the latest attempt."""
        return row.last if row.last_step == row.max_step else self._of(row).last

    def _of(self, row: SeriesRow) -> _Showing:
        if row.id in self._partly:
            return self._partly[row.id]
        if row.first_step >= self._limit(row):
            return _Showing(0, Sums(), None)
        total = math.nan if row.total is None else row.total  # SQLite keeps NaN, which is inf - inf here, as null
        return _Showing(row.points, Sums(row.numbers, row.nans, row.low, row.high, total), row.last)
