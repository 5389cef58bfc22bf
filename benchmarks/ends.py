"""What the end of a short run costs the daemon, alone and beside many open streams: `python -m benchmarks ends`."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing

from benchmarks.processes import cpu_seconds
from benchmarks.report import Figure
from trackio.places import Places
from trackiod import control
from trackiod.store import schema

_ENDS, _OPEN = 100, 100
_LOG = """
import sys, trackio
runs = [trackio.init(project="bench", name=f"{sys.argv[1]}-{i}", reinit="create_new") for i in range(int(sys.argv[2]))]
for run in runs: run.log({"loss": 0.5})
sys.stdin.read()
"""


def measure(where: Places, pid: int) -> Iterator[Figure]:
    """CPU of the daemon from a SIGKILL of a process of many runs until all of them have ended."""
    alone = _end_ms(where, pid, "alone", 0)
    yield Figure("the end of a short run, daemon's CPU", alone, "ms", 2)
    opened = _started(where, "open", _OPEN, _OPEN)
    try:
        beside = _end_ms(where, pid, "beside", _OPEN)
    finally:
        opened.kill()
        opened.wait()
    yield Figure(f"the same beside {_OPEN} open streams", beside, "ms", 2, "alone", alone)


def _end_ms(where: Places, pid: int, name: str, others: int) -> float:
    process = _started(where, name, _ENDS, others + _ENDS)
    time.sleep(3)  # what their start brings is over
    started, before = time.monotonic(), cpu_seconds(pid)
    time.sleep(2)
    idle = (cpu_seconds(pid) - before) / (time.monotonic() - started)
    started, before = time.monotonic(), cpu_seconds(pid)
    process.kill()
    process.wait()
    while _is_busy(where, others):
        time.sleep(0.05)
    time.sleep(0.5)  # for what they left to be removed
    spent = cpu_seconds(pid) - before
    return max(0.0, spent - idle * (time.monotonic() - started)) / _ENDS * 1e3


def _started(where: Places, name: str, count: int, total: int) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", _LOG, name, str(count)], stdin=subprocess.PIPE)
    while (report := control.status(where)) is None or len(report.streams) < total:
        time.sleep(0.1)
    return process


def _is_busy(where: Places, others: int) -> bool:
    with closing(schema.connect_for_reading(schema.path_of(where.projects, "bench"))) as connection:
        (count,) = connection.execute("SELECT count(*) FROM streams WHERE state IS NULL").fetchone()
    return bool(count > others)
