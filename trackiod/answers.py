"""What a user asks about runs, answered from files: the store read, the views applied. Needs no daemon."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any, NamedTuple

from trackiod.errors import NotFound
from trackiod.store import schema
from trackiod.store.reader import HoleRow, MetricRow, ProjectReader, project_names
from trackiod.views.attempts import Place, Stream, place
from trackiod.views.lineage import RunRow, roots
from trackiod.views.reduction import SeriesPoint, Shown, reduce_ranks, sift
from trackiod.views.state import RunState, run_state

_RATE_SECONDS = 30.0
_RATE_BATCHES = 3


class Steps(NamedTuple):
    """A run's progress: the last step that all ranks reached, and the highest any did; None before the first."""

    complete: int | None
    highest: int | None


class Series(NamedTuple):
    """A metric as asked for: its points, how ranks were reduced (None: not at all), how many are hidden."""

    points: list[Shown]
    reduce: str | None
    ranks: int
    hidden: int


class RunView:
    """One run as readers see it: a run and those that go on with it, with all their streams."""

    def __init__(self, reader: ProjectReader, rows: Sequence[RunRow], streams: Sequence[Stream]) -> None:
        self._reader = reader
        self._rows = rows
        self.id = rows[0].id
        self.name = rows[0].name
        self.group = rows[0].group
        self.created_ns = rows[0].created_ns
        self.streams = list(streams)
        self.places: dict[str, Place] = place(streams)

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
        return sum(1 for s in self.ranks if s.points)

    @property
    def world_size(self) -> int:
        return max((int(s.meta.get("world_size", 1)) for s in self.ranks), default=1)

    @property
    def ended_ns(self) -> int | None:
        """When the last rank ended; None while one is open."""
        ends = [s.ended_ns for s in self.ranks]
        return None if any(e is None for e in ends) else max((e for e in ends if e is not None), default=None)

    @property
    def last_ns(self) -> int | None:
        return max((s.last_ns for s in self.streams if s.last_ns is not None), default=None)

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
        return [hole for row in self._rows for hole in self._reader.holes(row.id)]

    @cached_property
    def _metrics(self) -> list[MetricRow]:
        return [metric for row in self._rows for metric in self._reader.metrics(row.id)]

    @property
    def metric_names(self) -> list[str]:
        return sorted({m.name for m in self._metrics})

    @property
    def num_logs(self) -> int:
        """Records of the lowest rank, over all attempts."""
        lowest = min((s.rank for s in self.streams if s.role == "rank"), default=0)
        return sum(s.records for s in self.streams if s.role == "rank" and s.rank == lowest)

    @property
    def steps(self) -> Steps:
        """A step is complete when every rank that logs the metric has reached it; where ranks share metrics,
        those that only one rank logs do not count."""
        ours = {s.id for s in self.ranks}
        reached: dict[str, list[int]] = {}
        for m in self._metrics:
            if m.stream in ours:
                reached.setdefault(m.name, []).append(m.max_step)
        if not reached:
            return Steps(None, None)
        shared = [steps for steps in reached.values() if len(steps) > 1] or list(reached.values())
        return Steps(max(map(min, shared)), max(map(max, reached.values())))

    @property
    def steps_per_second(self) -> float | None:
        """Over the last half minute of a running run, over the whole latest attempt of an ended one."""
        ranks = [s for s in self.ranks if s.last_ns is not None]
        if not ranks:
            return None
        if self.state.state == "running":
            return _rate([(p.time_ns, p.step) for p in self._reader.recent(ranks[0].id, _RATE_BATCHES)])
        ours = {ranks[0].id}
        steps = [s for m in self._metrics if m.stream in ours for s in (m.first_step, m.max_step)]
        ends = (ranks[0].started_ns, ranks[0].last_ns or 0)
        return _rate([(ends[0], min(steps)), (ends[1], max(steps))]) if steps else None

    # -- what was set ---------------------------------------------------------------------------------------

    def config(self, rank: int | None = None) -> dict[str, Any]:
        """A rank's configuration, later attempts' over earlier ones'; without `rank` the lowest one's.
        Raises NotFound."""
        ranks = sorted({s.rank for s in self.streams if s.role == "rank"})
        if rank is not None and rank not in ranks:
            raise NotFound("Rank", str(rank), f" in run '{self.name}'", map(str, ranks))
        chosen = rank if rank is not None else min(ranks, default=0)
        merged: dict[str, Any] = {}
        for stream in self._in_order():
            if stream.role == "rank" and stream.rank == chosen:
                merged.update(self._reader.config(stream.id))
        return merged

    @property
    def config_differences(self) -> dict[str, dict[int, Any]]:
        """Keys whose values differ between the ranks of the latest attempt: rank to value."""
        configs = {s.rank: self._reader.config(s.id) for s in self.ranks}
        lowest = next(iter(configs.values()), {})
        keys = {k for c in configs.values() for k, v in c.items() if k not in lowest or not _is_same(lowest[k], v)}
        return {k: {rank: c[k] for rank, c in configs.items() if k in c} for k in sorted(keys)}

    def reduction_of(self, metric: str) -> str:
        """How this metric is reduced over ranks: `define_metric`'s word, exact names before globs; else mean."""
        definitions: dict[str, dict[str, Any]] = {}
        for row in self._rows:
            definitions.update(self._reader.definitions(row.id))
        exact = definitions.get(metric, {}).get("reduce")
        globs = (o.get("reduce") for name, o in definitions.items() if o.get("reduce") and fnmatchcase(metric, name))
        return str(exact or next(globs, None) or "mean")

    # -- points -----------------------------------------------------------------------------------------------

    def series(
        self, metric: str, *, rank: int | None = None, attempt: int | None = None, all_points: bool = False
    ) -> Series:
        """The metric over all ranks, or one rank's. `attempt` shows only that one, as it was logged;
        `all_points` shows hidden ones too. Raises NotFound."""
        known = self.metric_names
        if metric not in known:
            raise NotFound("Metric", metric, f" in run '{self.name}' of project '{self._reader.project}'", known)
        points = self._points(frozenset({metric}), rank, attempt)[metric]
        return self._series_of(metric, points, rank, all_points)

    def snapshot(
        self, *, rank: int | None = None, attempt: int | None = None, all_points: bool = False
    ) -> dict[str, list[Shown]]:
        """All metrics at once, each as `series` shows it. Raises NotFound."""
        names = self.metric_names
        found = self._points(frozenset(names), rank, attempt)
        return {name: self._series_of(name, found[name], rank, all_points).points for name in names}

    def _series_of(self, metric: str, points: list[SeriesPoint], rank: int | None, all_points: bool) -> Series:
        ranks = len({p.rank for p in points})
        if all_points:
            ordered = sorted(points, key=lambda p: (p.attempt, p.step, p.rank, p.order))
            return Series([_as_stored(p) for p in ordered], None, ranks, 0)
        visible, hidden = sift(points)
        if rank is not None:
            return Series([_as_stored(p) for p in visible], None, ranks, hidden)
        how = self.reduction_of(metric)
        return Series(reduce_ranks(visible, how), how, ranks, hidden)

    def _points(self, metrics: frozenset[str], rank: int | None, attempt: int | None) -> dict[str, list[SeriesPoint]]:
        """The stored points of rank streams, twins apart."""
        chosen = [s for s in self._in_order() if s.role == "rank" and not self.places[s.id].twin]
        if rank is not None:
            known = sorted({s.rank for s in chosen})
            chosen = [s for s in chosen if s.rank == rank]
            if not chosen:
                raise NotFound("Rank", str(rank), f" in run '{self.name}'", map(str, known))
        if attempt is not None:
            if attempt >= self.attempts or attempt < 0:
                raise NotFound("Attempt", str(attempt), f" in run '{self.name}'", map(str, range(self.attempts)))
            chosen = [s for s in chosen if self.places[s.id].attempt == attempt]
        found: dict[str, list[SeriesPoint]] = {name: [] for name in metrics}
        for stream in chosen:
            for name, points in self._reader.points(stream, self.places[stream.id].attempt, metrics).items():
                found[name] += points
        return found

    def hidden_points(self) -> int:
        """How many points the rules hide, over all metrics and ranks."""
        found = self._points(frozenset(self.metric_names), None, None)
        return sum(sift(points).hidden for points in found.values())

    def _in_order(self) -> list[Stream]:
        return sorted(self.streams, key=lambda s: (self.places[s.id].attempt, s.started_ns, s.id))


def _is_same(one: Any, other: Any) -> bool:
    return bool(one == other) or (one != one and other != other)  # NaN is the same setting as NaN


def _as_stored(p: SeriesPoint) -> Shown:
    return Shown(p.step, p.time_ns, p.value, origin=(p.rank, p.attempt))


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


def open_project(projects: str, project: str) -> ProjectReader:
    """The project's database. Raises NotFound or StoreError."""
    path = schema.path_of(projects, project)
    names, problems = project_names(projects)
    if project not in names and not any(p.startswith(path) for p in problems):
        raise NotFound("Project", project, "", names)
    return ProjectReader(path)


def runs(reader: ProjectReader) -> list[RunView]:
    """All runs of a project, oldest first; those that go on with another are part of it."""
    rows = reader.runs()
    root_of = roots(rows)
    parts: dict[str, list[RunRow]] = {}
    for row in rows:
        parts.setdefault(root_of[row.id], []).append(row)
    by_run: dict[str, list[Stream]] = {}
    for stream in reader.streams():
        by_run.setdefault(stream.run, []).append(stream)
    views = []
    for root, members in parts.items():
        members.sort(key=lambda row: row.id != root)
        views.append(RunView(reader, members, [s for row in members for s in by_run.get(row.id, [])]))
    return sorted(views, key=lambda view: (view.created_ns, view.id))


def find_run(reader: ProjectReader, run: str) -> RunView:
    """A run by id, or the newest by name. Raises NotFound."""
    known = runs(reader)
    by_id = next((view for view in known if view.id == run), None)
    found = by_id or next((view for view in reversed(known) if view.name == run), None)
    if found is None:
        raise NotFound("Run", run, f" in project '{reader.project}'", [view.name for view in known])
    return found
