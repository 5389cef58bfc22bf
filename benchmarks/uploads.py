"""What uploading costs: ten million points to a server of this machine that speaks the Hub's API (the tests' one), and
log() while it runs.

The uploader is the real one, with the real library of the Hub, over LFS. Its peak of memory, its time, what a point
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
from typing import Any

from benchmarks.report import Figure
from trackio.places import Places
from trackiod import control
from trackiod.uploads.target import Folder, Target

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
_LOG = """
import sys, time, trackio
trackio.init(project="beside", name="r")
metrics = {f"m{j}": j / 7 for j in range(10)}
times = []
end = time.monotonic() + float(sys.argv[1])
while time.monotonic() < end:
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
    while (report := control.status(where)) is None or report.daemon["backlog"] or report.streams:
        time.sleep(0.5)
    time.sleep(5)  # what is folded
    with hub.serving() as server, tempfile.TemporaryDirectory(prefix="trackio-bench-hf-") as home:
        environ = {"HF_ENDPOINT": server.url, "HF_HOME": home, "HF_HUB_DISABLE_XET": "1",
                   "HF_HUB_DISABLE_PROGRESS_BARS": "1"}  # fmt: skip
        target = Target("hf://datasets/user/big", {"big": True}, environ={"HF_ENDPOINT": server.url})
        folder = Folder(where, target.id)
        folder.write_target(target)
        alone = _latency(4)
        start = time.monotonic()
        child = subprocess.Popen([sys.executable, "-m", "trackiod", "upload", target.id], stdin=subprocess.PIPE,
                                 env={**os.environ, **environ})  # fmt: skip
        _tell(child)
        beside = _latency(4)
        _, code, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(code)
        seconds = time.monotonic() - start
        status = folder.read_status()
        assert child.returncode == 0 and status.problem == "" and status.rows_waiting == 0, status
        (repo,) = server.repos.values()
        size = sum(len(data) for path, data in repo.tree.items() if path.startswith("metrics/"))
    points = _RECORDS * _METRICS
    assert status.rows == points, status
    yield Figure("the uploader's peak of memory, 10 M points", usage.ru_maxrss / 1024, "MB", 300)
    yield Figure("uploading 10 M points", seconds, "s")
    yield Figure("a point at the Hub", size / points, "bytes")
    yield Figure("commits for 10 M points", status.commits, "")
    for what, one, other in (("median", beside[0], alone[0]), ("p99", beside[1], alone[1])):
        name = f"log() of 10 floats beside it, {what}"
        yield Figure(name, one / 1000, "us", None, "without", other / 1000)


def _tell(child: Any) -> None:
    with child.stdin as stdin:
        stdin.write(json.dumps({"token": "hf_test"}).encode())


def _latency(seconds: float) -> tuple[int, int]:
    done = subprocess.run([sys.executable, "-c", _LOG, str(seconds)], check=True, capture_output=True, text=True)
    median, p99 = map(int, done.stdout.split())
    return median, p99
