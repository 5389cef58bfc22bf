"""What a user asks about a run, answered from files: the store read, the views applied. Needs no daemon.

What needs points is in `curves`; the rest is answered from what the store knows of streams and series.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any, NamedTuple

from trackiod.errors import NotFound
from trackiod.store import foreign
from trackiod.store.reader import HoleRow, ProjectReader, SeriesRow
from trackiod.views.attempts import Place, Stream, place
from trackiod.views.lineage import RunRow
from trackiod.views.state import RunState, run_state

_RATE_SECONDS = 30.0
_RATE_BATCHES = 3


class Steps(NamedTuple):
    """A run's progress: the last step that all ranks reached, and the highest any did; None before the first."""

    complete: int | None
    highest: int | None


class RunView:
    """One run as readers see it: a run and those that go on with it, with all their streams."""

    def __init__(self, reader: ProjectReader, rows: Sequence[RunRow], streams: Sequence[Stream]) -> None:
        self.reader = reader
        self._rows = rows
        self.id = rows[0].id
        self.name = rows[0].name
        self.group = rows[0].group
        self.created_ns = rows[0].created_ns
        self.streams = list(streams)
        self.places: dict[str, Place] = place(streams)

    @property
    def run_ids(self) -> list[str]:
        """Its id and those of the runs that go on with it."""
        return [row.id for row in self._rows]

    # -- who and how -------------------------------------------------------------------------------------

    @property
    def state(self) -> RunState:
        return run_state(self.streams, self.places)

    @property
    def attempts(self) -> int:
        return len({p.attempt for p in self.places.values()})

    @property
    def ranks(self) -> list[Stream]:
        """The rank streams of the latest attempt, twins apart, in the order of ranks."""
        latest = max((p.attempt for p in self.places.values()), default=0)
        ours = [s for s in self.streams if s.role == "rank" and self.places[s.id] == (latest, 0)]
        return sorted(ours, key=lambda s: s.rank)

    @property
    def twins(self) -> list[Stream]:
        """Streams that claim a rank another live process had."""
        return [s for s in self.streams if self.places[s.id].twin]

    @property
    def logging(self) -> int:
        """Ranks of the latest attempt that have logged something."""
        return len({s.rank for s in self.ranks if s.points})

    @property
    def world_size(self) -> int:
        return max((s.world_size for s in self.ranks), default=1)

    @property
    def ended_ns(self) -> int | None:
        """When the last rank ended; None while one is open."""
        ends = [s.ended_ns for s in self.ranks]
        return None if any(e is None for e in ends) else max((e for e in ends if e is not None), default=None)

    @property
    def last_ns(self) -> int | None:
        return max((s.last_ns for s in self.streams if s.last_ns is not None), default=None)

    @cached_property
    def metas(self) -> dict[str, dict[str, Any]]:
        """Everything the streams said of themselves, by stream."""
        return self.reader.metas(self.run_ids)

    @property
    def owner(self) -> str:
        """The other user whose run it is; "" for this user's own."""
        uids = map(foreign.in_meta, self.metas.values())
        return foreign.owner_name(next((uid for uid in uids if uid is not None), None))

    @property
    def about(self) -> dict[str, Any]:
        """The tags, notes and kind of job that the lowest rank gave, later attempts' before earlier ones'."""
        metas = [self.metas[stream.id] for stream in self._of_rank(None)]
        return {word: next((m[word] for m in reversed(metas) if m.get(word)), None)
                for word in ("tags", "notes", "job_type")}  # fmt: skip

    # -- how much -----------------------------------------------------------------------------------------

    @property
    def records(self) -> int:
        return sum(s.records for s in self.streams)

    @property
    def points(self) -> int:
        return sum(s.points for s in self.streams)

    @property
    def refused_points(self) -> int:
        return sum(s.refused_points for s in self.streams)

    @property
    def refused_records(self) -> int:
        return sum(s.refused_records for s in self.streams)

    @cached_property
    def holes(self) -> list[HoleRow]:
        return [hole for run in self.run_ids for hole in self.reader.holes(run)]

    @cached_property
    def _series(self) -> list[SeriesRow]:
        return self.reader.series(self.run_ids)

    @cached_property
    def metric_names(self) -> list[str]:
        return sorted({row.name for row in self._series})

    @cached_property
    def series_of(self) -> dict[str, list[SeriesRow]]:
        """What is known of each metric's series: of the ranks, twins apart, in the order that decides what shows."""
        found: dict[str, list[SeriesRow]] = {}
        ranks = [s.id for s in self.in_order() if s.role == "rank" and not self.places[s.id].twin]
        order = {stream: number for number, stream in enumerate(ranks)}
        for row in sorted((r for r in self._series if r.stream in order), key=lambda row: order[row.stream]):
            found.setdefault(row.name, []).append(row)
        return found

    def first_steps(self, metric: str) -> dict[int, int]:
        """The lowest step of a metric in each attempt that logged it, over all ranks."""
        found: dict[int, int] = {}
        for row in self.series_of.get(metric, []):
            attempt = self.places[row.stream].attempt
            found[attempt] = min(row.first_step, found.get(attempt, row.first_step))
        return found

    @property
    def num_logs(self) -> int:
        """Records of the lowest rank, over all attempts."""
        lowest = min((s.rank for s in self.streams if s.role == "rank"), default=0)
        return sum(s.records for s in self.streams if s.role == "rank" and s.rank == lowest)

    @property
    def steps(self) -> Steps:
        """A step is complete when every rank that logs the metric has reached it, in the latest attempt that logs
        it; where ranks share metrics, those that only one rank logs do not count."""
        reached = [self._reached(rows) for rows in self.series_of.values()]
        if not reached:
            return Steps(None, None)
        shared = [steps for steps in reached if len(steps) > 1] or reached
        return Steps(max(map(min, shared)), max(map(max, reached)))

    @property
    def steps_made(self) -> float:
        """How many steps the run made, those of later attempts that were made before counted again: from the first to
        the last that was logged, and one distance more."""
        made: dict[int, float] = {}
        for row in self._series:
            distance = (row.max_step - row.first_step) / (row.points - 1) if row.points > 1 else 1.0
            attempt = self.places[row.stream].attempt
            made[attempt] = max(made.get(attempt, 0.0), row.max_step - row.first_step + distance)
        return sum(made.values())

    def _reached(self, rows: Sequence[SeriesRow]) -> list[int]:
        """The highest step of each rank in the latest attempt."""
        latest = max(self.places[row.stream].attempt for row in rows)
        highest: dict[int, int] = {}
        for row in rows:
            if self.places[row.stream].attempt == latest:
                rank = self.rank_of[row.stream]
                highest[rank] = max(row.max_step, highest.get(rank, row.max_step))
        return list(highest.values())

    @cached_property
    def rank_of(self) -> dict[str, int]:
        """Each stream's rank."""
        return {s.id: s.rank for s in self.streams}

    @property
    def steps_per_second(self) -> float | None:
        """Over the last half minute of a running run, over the whole latest attempt of an ended one."""
        ranks = [s for s in self.ranks if s.last_ns is not None]
        if not ranks:
            return None
        if self.state.state == "running":
            return _rate(self.reader.recent(ranks[0].id, _RATE_BATCHES))
        ours = {ranks[0].id}
        steps = [s for row in self._series if row.stream in ours for s in (row.first_step, row.max_step)]
        ends = (ranks[0].started_ns, ranks[0].last_ns or 0)
        return _rate([(ends[0], min(steps)), (ends[1], max(steps))]) if steps else None

    # -- what was set ---------------------------------------------------------------------------------------

    def config(self, rank: int | None = None) -> dict[str, Any]:
        """A rank's configuration, later attempts' over earlier ones'; without `rank` the lowest one's.
        Raises NotFound."""
        merged: dict[str, Any] = {}
        for stream in self._of_rank(rank):
            merged.update(self.reader.config(stream.id))
        return merged

    @property
    def own_summary(self) -> dict[str, Any]:
        """What the lowest rank set in `run.summary`, later attempts' over earlier ones'."""
        merged: dict[str, Any] = {}
        for stream in self._of_rank(None):
            merged.update(self.reader.summary(stream.id))
        return merged

    def _of_rank(self, rank: int | None) -> list[Stream]:
        """A rank's streams, or the lowest rank's, in the order of attempts. Raises NotFound."""
        ranks = sorted({s.rank for s in self.streams if s.role == "rank"})
        if rank is not None and rank not in ranks:
            raise NotFound("Rank", str(rank), f" in run '{self.name}'", map(str, ranks))
        chosen = rank if rank is not None else min(ranks, default=0)
        return [s for s in self.in_order() if s.role == "rank" and s.rank == chosen]

    @property
    def config_differences(self) -> dict[str, dict[int, Any]]:
        """Keys whose values differ between the ranks of the latest attempt: rank to value."""
        configs = {s.rank: self.reader.config(s.id) for s in self.ranks}
        lowest = next(iter(configs.values()), {})
        keys = {k for c in configs.values() for k, v in c.items() if k not in lowest or not _is_same(lowest[k], v)}
        return {k: {rank: c[k] for rank, c in configs.items() if k in c} for k in sorted(keys)}

    @cached_property
    def _definitions(self) -> dict[str, dict[str, Any]]:
        definitions: dict[str, dict[str, Any]] = {}
        for row in self._rows:
            definitions.update(self.reader.definitions(row.id))
        return definitions

    def definition(self, metric: str, option: str) -> str | None:
        """What `define_metric` said of this metric: of its own name before a glob's."""
        exact = self._definitions.get(metric, {}).get(option)
        globs = (o.get(option) for name, o in self._definitions.items() if o.get(option) and fnmatchcase(metric, name))
        found = exact or next(globs, None)
        return None if found is None else str(found)

    def reduction_of(self, metric: str) -> str:
        """How this metric is reduced over ranks: mean if nothing is said."""
        return self.definition(metric, "reduce") or "mean"

    def in_order(self) -> list[Stream]:
        """All streams in the order that decides which points show."""
        by_id = {stream.id: stream for stream in self.streams}
        return [by_id[id_] for id_ in self.places]


def _is_same(one: Any, other: Any) -> bool:
    return bool(one == other) or (one != one and other != other)  # NaN is the same setting as NaN


def _rate(samples: Iterable[tuple[int, int]]) -> float | None:
    """Steps a second between the first and the last of (time_ns, step) samples of the last half minute."""
    samples = list(samples)
    if not samples:
        return None
    newest = max(t for t, _ in samples)
    recent = [(t, s) for t, s in samples if newest - t <= _RATE_SECONDS * 1e9] if len(samples) > 2 else samples
    (first_time, first), (last_time, last) = min(recent), max(recent)
    seconds = (last_time - first_time) / 1e9
    return (last - first) / seconds if seconds > 0 and last > first else None
