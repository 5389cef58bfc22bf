"""What uploading costs: ten million points to a server of this machine that speaks the Hub's API (the tests' one), and
log() while it runs; the same of a file of 1 GB, by LFS and by Xet; and reading the points by SQL or as files.

The uploader is the real one, with the real library of the Hub. Its peak of memory, its time, what a point
takes at the Hub, and in how many commits; log() of 10 floats in a process beside it, and the same without.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.report import Figure
from trackio.places import Places
from trackiod import control
from trackiod.uploads.target import ARTIFACTS, LANES, Folder, Status, Target

_WAYS = (("LFS", "1"), ("Xet", "0"))
"""how files go to the Hub, and HF_HUB_DISABLE_XET"""
_RECORDS = 1_000_000
_METRICS = 10
_FILL = f"""
import math, random, trackio
trackio.init(project="big", name="r")
names = [f"m{{j}}" for j in range({_METRICS})]
for i in range({_RECORDS}):
    trackio.log({{name: math.sin(i / 1000 + j) + random.random() * 0.01 for j, name in enumerate(names)}}, step=i)
    if i % 20000 == 0: trackio.run._stream.deliver(60)
trackio.finish()
"""
_PEAK = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
"""a process of its own, since a child's peak begins at that of the process that made it"""
_LARGE_BYTES = 1 << 30
_LARGE = f"""
import os, tempfile, trackio
with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, "large.bin")
    with open(path, "wb") as file:
        for _ in range(64): file.write(os.urandom({_LARGE_BYTES} // 64))
    trackio.init(project="large", name="r")
    trackio.log({{"a": 1}})
    trackio.log_artifact(path, name="large").wait()
    trackio.finish()
"""
_LOG = """
import select, sys, time, trackio
trackio.init(project="beside", name="r")
metrics = {f"m{j}": j / 7 for j in range(10)}
times = []
end = time.monotonic() + float(sys.argv[1])
def is_over():  # after so long, or when stdin is closed
    if float(sys.argv[1]): return time.monotonic() >= end
    return bool(select.select([sys.stdin], [], [], 0)[0])
while not is_over():
    start = time.perf_counter_ns()
    trackio.log(metrics)
    times.append(time.perf_counter_ns() - start)
    time.sleep(0.002)
times.sort()
print(times[len(times) // 2], times[len(times) * 99 // 100])
"""


def measure(where: Places, daemon: int) -> Iterator[Figure]:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    import hub

    subprocess.run([sys.executable, "-c", _FILL], check=True)
    _wait(where)
    time.sleep(5)  # what is folded
    alone = _latency(4)
    points = _RECORDS * _METRICS
    for name, is_off in _WAYS:
        with hub.serving() as server:
            done = _upload(where, server, "big", is_off)
            (repo,) = server.repos.values()
            size = sum(len(data) for path, data in repo.tree.items() if path.startswith("metrics/"))
        assert done.status.rows == points, done.status
        yield Figure(f"the uploader's peak of memory, 10 M points by {name}", done.peak_mb, "MB", 300)
        yield Figure(f"uploading 10 M points by {name}", done.seconds, "s")
        yield from _beside(f"10 M points by {name}", done, alone)
    yield Figure("a point at the Hub", size / points, "bytes")
    yield Figure("commits for 10 M points", done.status.commits, "")
    subprocess.run([sys.executable, "-c", _LARGE], check=True)
    _wait(where)
    for name, is_off in _WAYS:
        with hub.serving() as server:
            done = _upload(where, server, "large", is_off)
            (repo,) = server.repos.values()
            size = sum(len(data) for path, data in repo.tree.items() if path.endswith("large.bin"))
        assert size == _LARGE_BYTES, size
        yield Figure(f"uploading a file of 1 GB by {name}", done.seconds, "s")
        yield Figure(f"the uploader's peak of memory, 1 GB by {name}", done.peak_mb, "MB")
        yield from _beside(f"1 GB by {name}", done, alone)
    yield from _read(where, points)


class _Done(NamedTuple):
    status: Status
    seconds: float
    peak_mb: float
    beside: tuple[int, int]
    """log()'s median and p99 meanwhile, in ns"""


def _upload(where: Places, server: Any, project: str, is_xet_off: str) -> _Done:
    """Runs the uploader to its end, with log() beside it as long."""
    with tempfile.TemporaryDirectory(prefix="trackio-bench-hf-") as home:
        environ = {"HF_ENDPOINT": server.url, "HF_HOME": home, "HF_HUB_DISABLE_XET": is_xet_off,
                   "HF_HUB_DISABLE_PROGRESS_BARS": "1"}  # fmt: skip
        target = Target("hf://datasets/user/big", {project: True}, environ={"HF_ENDPOINT": server.url})
        folder = Folder(where, target.id)
        folder.write_target(target)
        logging = subprocess.Popen([sys.executable, "-c", _LOG, "0"], stdin=-1, stdout=-1, text=True)
        start = time.monotonic()
        peaks = []
        for lane in LANES:
            done = subprocess.run(
                [sys.executable, "-c", _PEAK, sys.executable, "-m", "trackiod", "upload", target.id, lane], check=True,
                input=json.dumps({"token": "hf_test"}), stdout=-1, text=True, env={**os.environ, **environ},
            )  # fmt: skip
            peaks.append(int(done.stdout))
        seconds = time.monotonic() - start
        output, _ = logging.communicate("")
        status = folder.read_status()
        assert Folder(where, target.id, ARTIFACTS).read_status().problem == ""
        assert status.problem == "" and status.rows_waiting == 0, status
        median, p99 = map(int, output.split())
        return _Done(status, seconds, max(peaks) / 1024, (median, p99))


def _beside(what: str, done: _Done, alone: tuple[int, int]) -> Iterator[Figure]:
    for name, one, other in (("median", done.beside[0], alone[0]), ("p99", done.beside[1], alone[1])):
        yield Figure(f"log() of 10 floats beside {what}, {name}", one / 1000, "us", None, "without", other / 1000)


def _read(where: Places, points: int) -> Iterator[Figure]:
    for name, arguments in (
        ("query", ["query", "project", "--sql", "SELECT metric, avg(value) FROM metrics GROUP BY metric"]),
        ("export", ["export", "--to", os.path.join(where.data, "exported")]),
    ):
        start = time.monotonic()
        program = str(Path(sys.executable).with_name("trackio"))
        subprocess.run([program, *arguments, "--project", "big"], check=True, stdout=subprocess.DEVNULL)
        yield Figure(f"trackio {name} of {points // 1_000_000} M points", time.monotonic() - start, "s")


def _wait(where: Places) -> None:
    """Until everything is stored."""
    while (report := control.status(where)) is None or report.daemon["backlog"] or report.streams:
        time.sleep(0.5)


def _latency(seconds: float) -> tuple[int, int]:
    done = subprocess.run([sys.executable, "-c", _LOG, str(seconds)], check=True, capture_output=True, text=True)
    median, p99 = map(int, done.stdout.split())
    return median, p99
