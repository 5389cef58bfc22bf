"""Whether folding keeps up while half a million points a second arrive, and what a point at rest takes.

Four processes log ten metrics at 12,500 records a second each. Folding keeps up if what is raw does not grow:
what is left when they end is folded within a few seconds.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time

from benchmarks.report import Figure
from trackio.places import Places
from trackiod.store import schema

_PROCESSES = 4
_SECONDS = 20
_RECORDS_A_SECOND = 12_500
_METRICS = 10

_LOG = """
import json, sys, time
import trackio
number, seconds, rate, width = map(int, sys.argv[1:])
run = trackio.init(project="folding", name=f"fold-{number}")
metrics = {f"train/metric_{i}": i * 0.37 for i in range(width)}
step, start, clock = 0, time.perf_counter(), time.perf_counter
while (spent := clock() - start) < seconds:
    while step < spent * rate:
        metrics["train/metric_0"] = step * 0.001
        trackio.log(metrics)
        step += 1
    time.sleep(0.005)
run._stream.deliver(60)
print(json.dumps({"records": step, "refused": run._stream.spool.refused[0]}))
"""


def measure(where: Places, pid: int) -> list[Figure]:
    """Figures of folding beside ingest; the daemon `pid` runs."""
    command = [sys.executable, "-c", _LOG]
    rate = [str(_SECONDS), str(_RECORDS_A_SECOND), str(_METRICS)]
    cpu = cpu_seconds(pid)
    start = time.perf_counter()
    loggers = [
        subprocess.Popen([*command, str(n), *rate], stdout=subprocess.PIPE, text=True) for n in range(_PROCESSES)
    ]
    said = [json.loads(process.communicate()[0].splitlines()[-1]) for process in loggers]
    spent = time.perf_counter() - start
    points = sum(one["records"] for one in said) * _METRICS
    raw = _raw_points(where)
    began = time.perf_counter()
    while _raw_points(where) and time.perf_counter() - began < 120:
        time.sleep(0.1)
    return [
        Figure("points arriving a second", points / spent, "points/s"),
        Figure("of these refused", sum(one["refused"] for one in said), "records"),
        Figure("raw when the last arrived", raw / 1e6, "M points", 5),
        Figure("until these were folded too", time.perf_counter() - began, "s", 10),
        Figure("daemon's CPU for a million points, folded", (cpu_seconds(pid) - cpu) / points * 1e6, "s"),
    ]


def _raw_points(where: Places) -> int:
    path = schema.path_of(where.projects, "folding")
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return int(connection.execute("SELECT coalesce(sum(records), 0) FROM batches").fetchone()[0]) * _METRICS
    finally:
        connection.close()


def cpu_seconds(pid: int) -> float:
    """What a process has used of CPU so far."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
