"""Reading the ranks' processes and the control groups they are in. One that is gone, or another user's, is absent."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import psutil

from trackiod.sampler.counters import Counters
from trackiod.sampler.table import GIB, MIB

_CGROUPS = "/sys/fs/cgroup"


class Rank(NamedTuple):
    """A rank's process, as the daemon knows it."""

    stream: str
    project: str
    run: str
    name: str
    rank: int
    pid: int
    """in this PID namespace; 0 where it has none"""
    started_ns: int
    """when its stream was opened; a process of that pid that began later is another one"""


class Processes:
    """The processes of the ranks on this node."""

    def __init__(self) -> None:
        self._counters = Counters()
        self._known: dict[str, psutil.Process | None] = {}
        self._cgroup_of: dict[str, str] = {}

    def expect(self, ranks: Iterable[Rank]) -> None:
        """From now on these are read."""
        ranks = list(ranks)
        for stream in self._known.keys() - {rank.stream for rank in ranks}:
            del self._known[stream]
            self._cgroup_of.pop(stream, None)
            self._counters.forget(f"{stream} ")
        for rank in ranks:
            if rank.stream not in self._known and rank.pid > 0:
                self._known[rank.stream] = _process(rank)
                self._cgroup_of[rank.stream] = _cgroup_of(rank.pid)

    def read(self, now: float) -> dict[str, float]:
        """What all of them do now."""
        found: dict[str, float] = {}
        for stream, process in self._known.items():
            if process is None:
                continue
            try:
                found.update(self._of(stream, process, now))
            except psutil.NoSuchProcess:
                self._known[stream] = None
            except (psutil.Error, OSError):
                continue  # another user's, or it is ending
        groups: dict[str, str] = {}
        for stream in self._known:  # the ranks' order
            if group := self._cgroup_of.get(stream):
                groups.setdefault(group, stream)
        for group, stream in groups.items():
            found.update(self._of_cgroup(stream, group, now))
        return found

    def _of(self, stream: str, process: psutil.Process, now: float) -> Iterator[tuple[str, float]]:
        prefix = f"process/{stream}/"
        with process.oneshot():
            times = process.cpu_times()
            growth = self._counters.growth(f"{stream} cpu", times.user + times.system, now)
            yield f"{prefix}memory", process.memory_info().rss / GIB
            yield f"{prefix}threads", process.num_threads()
            if growth is not None:
                yield f"{prefix}cpu", round(100.0 * growth.rate, 2)
            try:
                yield f"{prefix}files", process.num_fds()
                counters = process.io_counters()
            except psutil.AccessDenied:
                return
        for name, value in (("read", counters.read_bytes), ("write", counters.write_bytes)):
            growth = self._counters.growth(f"{stream} {name}", value, now)
            if growth is not None:
                yield f"{prefix}{name}_mb_per_sec", growth.rate / MIB

    def _of_cgroup(self, stream: str, group: str, now: float) -> Iterator[tuple[str, float]]:
        """What a group and those above it allow and use."""
        prefix = f"process/{stream}/cgroup_"
        if (memory := _number(group, "memory.current")) is not None:
            yield f"{prefix}memory", memory / GIB
        limits = [limit for path in _up(group) if (limit := _number(path, "memory.max")) is not None]
        if limits:
            yield f"{prefix}memory_limit", min(limits) / GIB
        quotas = [quota for path in _up(group) if (quota := _quota(path)) is not None]
        if quotas:
            yield f"{prefix}cpu_limit", min(quotas)
        stat = _table(group, "cpu.stat")
        if "usage_usec" in stat and (growth := self._counters.growth(f"{stream} cgroup", stat["usage_usec"], now)):
            yield f"{prefix}cpu", round(growth.rate / 1e4, 2)
        throttled = stat.get("throttled_usec")
        if throttled is not None and (growth := self._counters.growth(f"{stream} throttled", throttled, now)):
            yield f"{prefix}cpu_throttled", growth.amount / 1e6
        if (kills := _table(group, "memory.events").get("oom_kill")) is not None:
            yield f"{prefix}oom_kills", kills


def inner_pids(pid: int) -> list[int]:
    """A process's pids in the namespaces it is in below that of /proc, its own last; empty if it cannot be read."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            line = next((line for line in file if line.startswith("NSpid:")), "")
    except OSError:
        return []
    return [int(field) for field in line.split()[2:]]


def holds_device(pid: int) -> bool:
    """Whether a process has a GPU's device file open."""
    folder = f"/proc/{pid}/fd"
    try:
        return any(os.readlink(os.path.join(folder, fd)).startswith("/dev/nvidia") for fd in os.listdir(folder))
    except OSError:
        return False


def _process(rank: Rank) -> psutil.Process | None:
    try:
        process = psutil.Process(rank.pid)
        return process if process.create_time() <= rank.started_ns / 1e9 + 5.0 else None
    except psutil.Error:
        return None


def _cgroup_of(pid: int) -> str:
    """The folder of a process's control group, empty on hosts without version 2 and for the root of the host, whose
    figures are the host's."""
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8") as file:
            path = next((line[3:].strip() for line in file if line.startswith("0::")), "")
    except OSError:
        return ""
    folder = os.path.normpath(_CGROUPS + path)
    return folder if os.path.exists(os.path.join(folder, "cpu.stat")) and _has_limits(folder) else ""


def _has_limits(folder: str) -> bool:
    """The root of the host has no limits' files; that of a container has."""
    return any(os.path.exists(os.path.join(folder, name)) for name in ("memory.max", "cpu.max"))


def _up(folder: str) -> Iterator[str]:
    while folder.startswith(_CGROUPS):
        yield folder
        folder = os.path.dirname(folder)


def _text(folder: str, name: str) -> str:
    try:
        with open(os.path.join(folder, name), encoding="ascii") as file:
            return file.read().strip()
    except (OSError, ValueError):
        return ""


def _number(folder: str, name: str) -> int | None:
    text = _text(folder, name)
    return int(text) if text.isdigit() else None  # "max": no limit


def _quota(folder: str) -> float | None:
    """In per cent of one core."""
    quota, _, period = _text(folder, "cpu.max").partition(" ")
    return 100.0 * int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) else None


def _table(folder: str, name: str) -> dict[str, int]:
    pairs = (line.split() for line in _text(folder, name).splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}
