"""Reading the control groups (version 2) of the ranks' processes: what a job or a container may use, and uses."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from trackiod.sampler.counters import Counters
from trackiod.sampler.processes import Rank
from trackiod.sampler.table import GIB

_ROOT = "/sys/fs/cgroup"


class Cgroups:
    """The control groups of the ranks on this node, each read once and stored with its first rank."""

    def __init__(self, root: str = _ROOT) -> None:
        """`root`: where the hierarchy is mounted."""
        self._root = root
        self._counters = Counters()
        self._streams: dict[str, str] = {}
        """the stream that each group's figures stand with"""

    def expect(self, ranks: Iterable[Rank]) -> None:
        """From now on the groups of these are read."""
        before = set(self._streams)
        self._streams.clear()
        for rank in ranks:
            if (group := self._group_of(rank.pid)) is not None:
                self._streams.setdefault(group, rank.stream)
        for group in before - self._streams.keys():
            self._counters.forget(f"used {group}")
            self._counters.forget(f"stopped {group}")

    def read(self, now: float) -> dict[str, float]:
        """What all groups use now."""
        found: dict[str, float] = {}
        for group, stream in self._streams.items():
            found.update((f"process/{stream}/cgroup_{name}", value) for name, value in self._of(group, now))
        return found

    def _of(self, group: str, now: float) -> Iterator[tuple[str, float]]:
        if (memory := _number(group, "memory.current")) is not None:
            yield "memory", memory / GIB
        limits = [limit for path in self._up(group) if (limit := _number(path, "memory.max")) is not None]
        if limits:
            yield "memory_limit", min(limits) / GIB
        quotas = [quota for path in self._up(group) if (quota := _quota(path)) is not None]
        if quotas:
            yield "cpu_limit", min(quotas)
        stat = _table(group, "cpu.stat")
        used, stopped = stat.get("usage_usec"), stat.get("throttled_usec")
        if used is not None and (growth := self._counters.growth(f"used {group}", used, now)) is not None:
            yield "cpu", round(growth.rate / 1e4, 2)
        if stopped is not None and (growth := self._counters.growth(f"stopped {group}", stopped, now)) is not None:
            yield "cpu_throttled", growth.amount / 1e6
        if (kills := _table(group, "memory.events").get("oom_kill")) is not None:
            yield "oom_kills", kills

    def _group_of(self, pid: int) -> str | None:
        """The folder of a process's group. None on hosts without version 2, and for the root of a host, which has no
        limits and whose figures are the host's; the root that a container sees has."""
        try:
            with open(f"/proc/{pid}/cgroup", encoding="utf-8") as file:
                path = next((line[3:].strip() for line in file if line.startswith("0::")), None)
        except OSError:
            return None
        folder = None if path is None else os.path.normpath(self._root + path)
        has_limits = folder and any(os.path.exists(os.path.join(folder, name)) for name in ("memory.max", "cpu.max"))
        return folder if has_limits else None

    def _up(self, folder: str) -> Iterator[str]:
        """A group and those above it, whose limits hold too."""
        while folder.startswith(self._root):
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
