"""How many points a second the daemon takes from eight ranks that log as fast as it takes them, on the same cores.

A rank logs until 8 MiB of its stream are not acked yet and goes on when they are fewer, so nothing is refused and
none of the ranks is ahead of the disk. A point counts when the daemon has acked it, which is after fsync. "Sustained"
counts until everything is folded, too.
"""

from __future__ import annotations

import json
import os
import resource
import sqlite3
import statistics
import subprocess
import sys
import time
from typing import Any

from benchmarks.folding import cpu_seconds
from benchmarks.report import Figure
from trackio.places import Places
from trackiod import control
from trackiod.store import schema

_RANKS = 8
_SECONDS = 15
_WIDTHS = (10, 100)
_MB = 1e6

_RANK = """
import array, json, random, sys, time
import trackio
rank, world, width, seconds = map(int, sys.argv[1:])
run = trackio.init(project=f"ingest-{width}", name="ingest")
ring, shipment = run._stream.spool.ring, run._stream.shipment
losses = array.array("f", [random.random() for _ in range(1000)]).tolist()
metrics = {f"train/metric_{i}": losses[i % 1000] for i in range(width)}
clock, step = time.perf_counter, 0
print("ready", flush=True); sys.stdin.readline()
cpu, end = time.process_time(), clock() + seconds
while clock() < end:
    if ring.head - shipment.courier.committed > 8 << 20:
        time.sleep(0.002)
        continue
    for _ in range(max(1, 500 // width)):
        metrics["train/metric_0"] = losses[step % 1000]
        trackio.log(metrics)
        step += 1
run._stream.deliver(120)
print(json.dumps({"records": step, "refused": run._stream.spool.refused[0], "acked_at": time.time(),
                  "cpu": time.process_time() - cpu}))
"""


def measure(where: Places, pid: int) -> list[Figure]:
    """The figures for each width of a log() call; the daemon `pid` runs."""
    return [figure for width in _WIDTHS for figure in _measure(where, pid, width)]


def _measure(where: Places, pid: int, width: int) -> list[Figure]:
    ranks = [_start(rank, width) for rank in range(_RANKS)]
    for rank in ranks:
        rank.stdout.readline()
    cpu, start = cpu_seconds(pid), time.time()
    for rank in ranks:
        rank.stdin.write("go\n")
        rank.stdin.flush()
    meanwhile, busy = _status_ms(where)
    said = [json.loads(rank.communicate()[0].splitlines()[-1]) for rank in ranks]
    acked = max(one["acked_at"] for one in said) - start
    points = sum(one["records"] for one in said) * width
    raw = _raw_points(where, width)
    while _raw_points(where, width) and time.time() - start < 300:
        time.sleep(0.05)
    folded = time.time() - start
    report = control.status(where)
    assert report is not None
    at_rest, idle = _status_ms(where)
    shape = f"8 ranks, {width} metrics a call"
    return [
        Figure(f"{shape}: points acked, durable", points / acked / 1e6, "M/s", 3, least=True),
        Figure(f"{shape}: points folded, sustained", points / folded / 1e6, "M/s", 1.5, least=True),
        Figure(f"{shape}: raw when the last was acked", raw / 1e6, "M points"),
        Figure(f"{shape}: refused", sum(one["refused"] for one in said), "records", 0),
        Figure(f"{shape}: the daemon's largest memory", _peak_bytes(pid) / _MB, "MB", 200),
        Figure(f"{shape}: the daemon's CPU for a million points", (cpu_seconds(pid) - cpu) / points * 1e6, "s"),
        Figure(f"{shape}: the ranks' CPU for a million points", sum(one["cpu"] for one in said) / points * 1e6, "s"),
        Figure(f"{shape}: trackio status meanwhile", meanwhile, "ms", None, "at rest", at_rest),
        Figure(f"{shape}: of this its own CPU", busy, "ms", None, "at rest", idle),
    ]


def _status_ms(where: Places) -> tuple[float, float]:
    """How long it takes and what CPU of its own, the medians of a few."""
    command = [os.path.join(os.path.dirname(sys.executable), "trackio"), "status"]
    walls, cpus = [], []
    for _ in range(5):
        time.sleep(0.5)
        start, cpu = time.perf_counter(), _children_seconds()
        subprocess.run(command, env=os.environ | {"TRACKIO_DIR": where.data}, check=True, stdout=subprocess.DEVNULL)
        walls.append((time.perf_counter() - start) * 1e3)
        cpus.append((_children_seconds() - cpu) * 1e3)
    return statistics.median(walls), statistics.median(cpus)


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _start(rank: int, width: int) -> Any:
    environ = os.environ | {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(_RANKS), "LOCAL_WORLD_SIZE": str(_RANKS),
        "TRACKIO_RUN_ID": f"ingest-{width}",
    }  # fmt: skip
    arguments = [str(value) for value in (rank, _RANKS, width, _SECONDS)]
    return subprocess.Popen(
        [sys.executable, "-c", _RANK, *arguments],
        env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def _raw_points(where: Places, width: int) -> int:
    """Points whose batches wait to be folded and will be: more than a few of a stream."""
    path = schema.path_of(where.projects, f"ingest-{width}")
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        sql = "SELECT coalesce(sum(n), 0) FROM (SELECT sum(records) AS n FROM batches GROUP BY stream HAVING n >= 32)"
        return int(connection.execute(sql).fetchone()[0]) * width
    finally:
        connection.close()


def _peak_bytes(pid: int) -> int:
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
