"""What an idle daemon costs, alone and with 64 processes that log nothing: memory, and CPU over a minute."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import psutil

from benchmarks.report import Figure

_SECONDS = 60
_STREAMS = 64
_WAITING = """
import sys, time, trackio
trackio.init(project="idle")
trackio.log({"a": 1})
time.sleep(5)
print("ready", flush=True)
before = time.process_time()
sys.stdin.read()
print(time.process_time() - before)
"""


def measure(pid: int) -> list[Figure]:
    """The daemon behind `pid`, which has no stream at first."""
    alone, resident = _cost(pid)
    environ = os.environ | {"TRACKIO_RUN_ID": "idle", "WORLD_SIZE": str(_STREAMS)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", _WAITING], env=environ | {"RANK": str(n), "LOCAL_RANK": str(n)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for n in range(_STREAMS)
    ]  # fmt: skip
    for rank in ranks:
        assert rank.stdout is not None and rank.stdout.readline() == "ready\n"
    beside, larger = _cost(pid)
    own = [float(rank.communicate()[0]) for rank in ranks]
    return [
        Figure("idle daemon, resident memory of all its processes", resident, "MB", 45),
        Figure("idle daemon, CPU over a minute", alone, "% of a core", 0.5),
        Figure("with 64 idle streams: resident memory", larger, "MB", 60),
        Figure("with 64 idle streams: the daemon's CPU", beside, "% of a core", 2),
        Figure("with 64 idle streams: CPU of each process", 100 * max(own) / _SECONDS, "% of a core", 0.5),
    ]


def _cost(pid: int) -> tuple[float, float]:
    """CPU of the daemon and its children over a while, in per cent of a core, and their resident megabytes."""
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    before = sum(sum(p.cpu_times()[:2]) for p in family)
    time.sleep(_SECONDS)
    used = sum(sum(p.cpu_times()[:2]) for p in family) - before
    return 100 * used / _SECONDS, sum(p.memory_info().rss for p in family) / 1e6
