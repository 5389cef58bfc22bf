"""What an idle daemon costs: memory of all its processes, and CPU over a minute."""

from __future__ import annotations

import time

import psutil

from benchmarks.report import Figure

_SECONDS = 60


def measure(pid: int) -> list[Figure]:
    """The daemon behind `pid`, which has no stream."""
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    before = sum(sum(p.cpu_times()[:2]) for p in family)
    time.sleep(_SECONDS)
    used = sum(sum(p.cpu_times()[:2]) for p in family) - before
    resident = sum(p.memory_info().rss for p in family) / 1e6
    return [
        Figure("idle daemon, resident memory of all its processes", resident, "MB", 45),
        Figure("idle daemon, CPU over a minute", 100 * used / _SECONDS, "% of a core", 0.5),
    ]
