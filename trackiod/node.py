"""A run's system view: what the samplers of this node stored, as far as it is this run's. Knows numpy.

The node is sampled once, whatever runs on it, so nothing in the samples says whose they are; the view joins them. What
concerns the host is the run's while the run lived. What concerns a GPU is the run's while a process of its ranks
computed on it, which the same sample says.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from trackio import gauges
from trackio.names import HOST
from trackiod.answers import RunView
from trackiod.store import points, schema
from trackiod.store.reader import ProjectReader
from trackiod.store.shelf_reader import Machine, machine_of
from trackiod.views.attempts import Stream
from trackiod.views.column import Bools, Column, Ints, numbers

_OF_GPU = re.compile(r"gpu/([^/]+)/(.+)")
_SHOWN_GPU = re.compile(r"(node\d+/)?gpu/")
_OF_GPU_PROCESS = re.compile(r"gpu/([^/]+)/process/([^/]+)/(.+)")
_OF_PROCESS = re.compile(r"process/([^/]+)/(.+)")
_RUN = "node"
"""what samplers call the run of their streams"""
_EVENT_SLACK_NS = 10 * 10**9
_LANES_AT_ONCE = 32
"""in memory: a day of all of them is hundreds of megabytes"""
_FOR_EVER = (1 << 63) - 1
_MADE_OF = {
    "memory_usage": ("allocated_memory", "total_memory"),
    "power_percent": ("power", "power_limit"),
    "energy_consumed": ("energy",),
}
"""what is made of stored metrics of a GPU when it is shown"""


class Row(NamedTuple):
    """What was read at one time: of one rank's process, or of the node (None)."""

    time_ns: int
    rank: int | None
    metrics: dict[str, Any]


class _Lane(NamedTuple):
    """One stored series as it is shown."""

    stored: str
    shown: str
    rank: int | None
    gpu: str
    """the UUID of the device that it concerns, or empty"""


class _Sampler:
    """What one sampler stored, as far as it concerns a run."""

    def __init__(self, reader: ProjectReader, stream: Stream, meta: dict[str, Any], view: RunView, prefix: str) -> None:
        self._reader = reader
        self._prefix = prefix
        self.stream = stream
        self._stream = stream.id
        ranks = [s for s in view.streams if s.role == "rank"]
        self._rank_of = {s.id: s.rank for s in ranks}
        self._process_of = {s.id: s.process for s in ranks}
        self._lives = [(s.started_ns, _FOR_EVER if s.state is None else s.ended_ns or s.started_ns) for s in ranks]
        devices = reader.config(stream.id).get("devices", ())
        self._labels: dict[str, str] = {d["uuid"]: d["label"] for d in devices}
        asked = [view.metas[s.id].get("sampling") or {} for s in ranks]
        self._wants_gpus = any(one.get("gpu") is not False for one in asked)
        self._wants_host = any(one.get("cpu") is not False for one in asked)
        self._assumed: set[str] = set()
        """GPUs that the run may use, where nobody can tell which it does: in a container, whose driver tells the
        host's pids"""
        if not self._presence and not meta.get("is_first_namespace"):
            for visible in {view.metas[s.id].get("cuda_visible_devices") for s in ranks}:
                self._assumed.update(gauges.chosen(list(devices), visible))

    @cached_property
    def _names(self) -> list[str]:
        return self._reader.names(self._stream)

    @cached_property
    def _presence(self) -> dict[str, dict[str, str]]:
        """For each GPU the series that say when the run's streams computed on it, by stream."""
        found: dict[str, dict[str, str]] = {}
        for name in self._names:
            match = _OF_GPU_PROCESS.fullmatch(name)
            if match and match[3] == "is_there" and match[2] in self._rank_of:
                found.setdefault(match[1], {})[match[2]] = name
        return found

    @cached_property
    def lanes(self) -> list[_Lane]:
        """The series that the run sees."""
        lanes = (self._lane(name) for name in self._names)
        return [lane._replace(shown=self._prefix + lane.shown) for lane in lanes if lane is not None]

    def _lane(self, name: str) -> _Lane | None:
        if match := _OF_GPU_PROCESS.fullmatch(name):
            gpu, stream, metric = match.groups()
            if not self._wants_gpus or stream not in self._rank_of or metric == "is_there":
                return None
            return _Lane(name, f"gpu/{self._label(gpu)}/process_{metric}", self._rank_of[stream], "")
        if match := _OF_GPU.fullmatch(name):
            gpu, metric = match.groups()
            if not self._wants_gpus or gpu not in self._presence.keys() | self._assumed:
                return None
            return _Lane(name, f"gpu/{self._label(gpu)}/{metric}", None, gpu)
        if not self._wants_host:
            return None
        if match := _OF_PROCESS.fullmatch(name):
            stream, metric = match.groups()
            shown = f"cgroup/{metric.removeprefix('cgroup_')}" if metric.startswith("cgroup_") else f"process/{metric}"
            return _Lane(name, shown, self._rank_of[stream], "") if stream in self._rank_of else None
        return _Lane(name, name, None, "")

    def _label(self, gpu: str) -> str:
        return self._labels.get(gpu, gpu)

    def read(self, lanes: Collection[_Lane]) -> Iterator[tuple[_Lane, Column]]:
        """The points of these series that are the run's."""
        gpus = {lane.gpu for lane in lanes} & self._presence.keys()
        names = {lane.stored for lane in lanes} | {n for gpu in gpus for n in self._presence[gpu].values()}
        columns = points.columns(self._reader, self._stream, frozenset(names))
        there = {gpu: self._times_there(gpu, columns) for gpu in gpus}
        for lane in lanes:
            column = columns[lane.stored]
            yield lane, column.take(self._is_ours(lane, column.times_ns, there))

    def _times_there(self, gpu: str, columns: dict[str, Column]) -> Ints:
        """The times of the samples that saw the run on a GPU."""
        times = [columns[name].times_ns for name in self._presence[gpu].values()]
        return np.unique(np.concatenate(times))

    def _is_ours(self, lane: _Lane, times: Ints, there: dict[str, Ints]) -> Bools:
        if lane.gpu not in there:
            return _within(times, self._lives)
        seen = there[lane.gpu]
        exact: Bools = np.isin(times, seen)
        if exact.any() or not seen.size:
            return exact
        slack = _EVENT_SLACK_NS if lane.shown.endswith("/xid") else 0  # what it reports may end the process
        ends = [min(end, _FOR_EVER - slack) + slack for _, end in self._lives]
        lives = [(start - slack, end) for (start, _), end in zip(self._lives, ends, strict=True)]
        between = [(int(seen[0]) - slack, int(seen[-1]) + slack)]  # it was read apart from the others
        return _within(times, between) & _within(times, lives)

    def energy(self) -> float | None:
        """Joules that the run's share of its GPUs used: where others compute beside it, by the number of processes."""
        total, is_known = 0.0, False
        for gpu, presence in self._presence.items():
            names = {f"gpu/{gpu}/energy", f"gpu/{gpu}/processes", *presence.values()}
            columns = points.columns(self._reader, self._stream, frozenset(names & set(self._names)))
            used, on_it = columns.get(f"gpu/{gpu}/energy"), columns.get(f"gpu/{gpu}/processes")
            if used is None or on_it is None:
                continue
            by_process: dict[str, Bools] = {}  # which counts once, whatever number of streams it has
            for stream, name in presence.items():
                there = np.isin(used.times_ns, columns[name].times_ns)
                process = self._process_of[stream]
                by_process[process] = there | by_process.get(process, np.zeros(used.size, bool))
            ours = np.sum([there.astype(float) for there in by_process.values()], axis=0)
            others = dict(zip(on_it.times_ns.tolist(), numbers(on_it.values).tolist(), strict=True))
            all_of_them = np.array([others.get(t, 0.0) for t in used.times_ns.tolist()])
            share = np.divide(ours, np.maximum(all_of_them, ours), out=np.zeros(used.size), where=ours > 0)
            total += float((numbers(used.values) * share).sum())
            is_known = is_known or bool((ours > 0).any())
        return total if is_known else None


class SystemView:
    """What is known of the machine while a run ran on it. Owns a reader; use as a context manager."""

    def __init__(self, projects: str, view: RunView, *, is_alone: bool = False, store: str = "") -> None:
        """`is_alone`: only what this host sampled; `store`: only what was copied of this one. Raises StoreError."""
        self._view = view
        self._given = view.reader.system(view.run_ids)
        path = schema.path_of(projects, HOST) if is_alone or store else schema.readable_path(projects, HOST)
        is_there = os.path.exists(schema.others_path(path) if store else path)
        self._reader = ProjectReader(path, is_alone=is_alone, store=store) if is_there else None
        self._samplers = list(self._found())

    def __enter__(self) -> SystemView:
        return self

    def __exit__(self, *_: object) -> None:
        if self._reader is not None:
            self._reader.close()

    def _found(self) -> Iterator[_Sampler]:
        if self._reader is None or not self._view.streams:
            return
        start = min(stream.started_ns for stream in self._view.streams)
        end = self._view.ended_ns
        if end is not None:  # the clock of the latest attempt may be behind
            end = max(stream.ended_ns or end for stream in self._view.streams)
        nodes = self._nodes()
        streams = self._reader.streams([_RUN])
        metas = self._reader.metas([_RUN])  # of these, and of others that came meanwhile
        for stream in streams:
            machine = machine_of(metas[stream.id])
            node = next((number for number, known in enumerate(nodes) if any(map(machine.is_same, known))), None)
            if node is not None and (stream.last_ns or 0) >= start and (end is None or stream.started_ns <= end):
                prefix = f"node{node}/" if len(nodes) > 1 else ""
                yield _Sampler(self._reader, stream, metas[stream.id], self._view, prefix)

    def _nodes(self) -> list[set[Machine]]:
        """The machines that the run ran on, in the order of their lowest ranks."""
        nodes: list[set[Machine]] = []
        for stream in sorted(self._view.streams, key=lambda stream: (stream.rank, stream.started_ns)):
            machine = machine_of(self._view.metas[stream.id])
            known = next((node for node in nodes if any(map(machine.is_same, node))), None)
            if known is None:
                nodes.append({machine})
            else:
                known.add(machine)
        return nodes

    @property
    def names(self) -> list[str]:
        """All metrics, sorted: those that the run gave to log_system(), and those of the samplers."""
        shown = {lane.shown for sampler in self._samplers for lane in sampler.lanes}
        shown |= {made for name in shown for made in _made_of(name, shown)}
        return sorted(shown | {name for _, _, metrics in self._given for name in metrics})

    def rows(self, metric: str | None = None) -> list[Row]:
        """Everything by time, or one metric."""
        found: dict[tuple[int, int | None], dict[str, Any]] = {}
        for time_ns, rank, metrics in self._given:
            found.setdefault((time_ns, rank), {}).update(metrics)
        wanted = None if metric is None else {metric, *_sources(metric)}
        for sampler in self._samplers:
            lanes = [lane for lane in sampler.lanes if wanted is None or lane.shown in wanted]
            for lane, column in sampler.read(lanes):
                for time_ns, value in zip(column.times_ns.tolist(), column.values.tolist(), strict=True):
                    found.setdefault((time_ns, lane.rank), {})[lane.shown] = value
        rows = [
            Row(*key, found[key]) for key in sorted(found, key=lambda key: (key[0], -1 if key[1] is None else key[1]))
        ]
        _derive(rows)
        if metric is None:
            return rows
        return [Row(time_ns, rank, {metric: metrics[metric]}) for time_ns, rank, metrics in rows if metric in metrics]

    def columns(self) -> Iterator[tuple[str, int, int | None, str, Column]]:
        """Everything that was sampled, series by series: the sampler's stream, up to which time it stored all, the rank
        or None for the node, the metric, its points."""
        for sampler in self._samplers:
            for start in range(0, len(sampler.lanes), _LANES_AT_ONCE):
                for lane, column in sampler.read(sampler.lanes[start : start + _LANES_AT_ONCE]):
                    yield sampler.stream.id, sampler.stream.last_ns or 0, lane.rank, lane.shown, column

    def energy(self) -> float | None:
        """Joules that the run used on this node's GPUs; None where that is not known."""
        known = [energy for sampler in self._samplers if (energy := sampler.energy()) is not None]
        return sum(known) if known else None


def _within(times: Ints, spans: Iterable[tuple[int, int]]) -> Bools:
    inside = np.zeros(len(times), bool)
    for start, end in spans:
        inside |= (times >= start) & (times <= end)
    return inside


def _sources(metric: str) -> list[str]:
    """The metrics that one is made of, if it is made."""
    prefix, _, name = metric.rpartition("/")
    return [f"{prefix}/{source}" for source in _MADE_OF.get(name, ())] if _SHOWN_GPU.match(prefix) else []


def _made_of(name: str, shown: Collection[str]) -> list[str]:
    prefix = name.rpartition("/")[0]
    return [f"{prefix}/{made}" for made in _MADE_OF if (found := _sources(f"{prefix}/{made}")) and {*found} <= {*shown}]


def _derive(rows: Iterable[Row]) -> None:
    """Adds to each row what is made of its metrics."""
    consumed: dict[str, float] = {}
    for row in rows:
        for name in [name for name in row.metrics if _SHOWN_GPU.match(name)]:
            prefix, _, metric = name.rpartition("/")
            if metric == "energy":
                consumed[prefix] = consumed.get(prefix, 0.0) + row.metrics[name]
                row.metrics[f"{prefix}/energy_consumed"] = consumed[prefix]
            elif metric == "allocated_memory" and row.metrics.get(f"{prefix}/total_memory"):
                row.metrics[f"{prefix}/memory_usage"] = row.metrics[name] / row.metrics[f"{prefix}/total_memory"]
            elif metric == "power" and row.metrics.get(f"{prefix}/power_limit"):
                row.metrics[f"{prefix}/power_percent"] = (
                    100.0 * row.metrics[name] / row.metrics[f"{prefix}/power_limit"]
                )
