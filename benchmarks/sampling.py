"""What sampling costs: eight GPUs (a stand-in of the driver's library, under the real pynvml) and 64 rank processes.

CPU and memory of the sampler at the default interval; what its samples take at rest, from a minute of ten a second with
gauges that change by up to an eighth each time.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import processes
from benchmarks.report import Figure
from trackio.names import HOST
from trackio.places import Places
from trackiod import control
from trackiod.store.project import ProjectStore
from trackiod.store.schema import path_of

_RANKS = 64
_GPUS = 8
_SECONDS = 120
_DENSE_SECONDS = 60
_RANK = """
import os, sys, time, trackio
trackio.init(project="sampled")
trackio.log({"a": 1})
print(os.getpid(), flush=True)
before = time.process_time()
sys.stdin.read()
print(time.process_time() - before)
"""


def measure(where: Places) -> list[Figure]:
    """Starts daemons of its own, with the stand-in."""
    standin: Any = _standin()
    control.stop(where, "benchmark")
    with tempfile.TemporaryDirectory(prefix="trackio-bench-nvml-") as folder:
        library = standin.build(Path(folder) / "lib").parent
        script = standin.Script(Path(folder) / "script")
        os.environ |= {"LD_LIBRARY_PATH": str(library), "TRACKIO_STANDIN_NVML": str(script.path)}
        try:
            return [*_at_the_default(where, script), *_at_rest(where, script)]
        finally:
            del os.environ["LD_LIBRARY_PATH"], os.environ["TRACKIO_STANDIN_NVML"]


def _at_the_default(where: Places, script: Any) -> list[Figure]:
    daemon = control.start(where).pid
    ranks = _start(script)
    sampler = processes.sampler(where)
    time.sleep(10)
    before, before_daemon = processes.cpu_seconds(sampler.pid), processes.cpu_seconds(daemon)
    time.sleep(_SECONDS)
    used, used_by_daemon = processes.cpu_seconds(sampler.pid) - before, processes.cpu_seconds(daemon) - before_daemon
    memory = sampler.memory_info().rss
    _end(ranks)
    control.stop(where, "benchmark")
    return [
        Figure("8 GPUs and 64 ranks every 5 s: the sampler's CPU", 100 * used / _SECONDS, "% of a core", 0.3),
        Figure("8 GPUs and 64 ranks every 5 s: the sampler's memory", memory / 1e6, "MB", 40),
        Figure(
            "64 idle streams and their samples: the daemon's CPU", 100 * used_by_daemon / _SECONDS, "% of a core", 2
        ),
    ]


def _at_rest(where: Places, script: Any) -> list[Figure]:
    path = path_of(where.projects, HOST)
    for name in (path, f"{path}-wal", f"{path}-shm"):
        if os.path.exists(name):
            os.unlink(name)
    os.environ["TRACKIO_SAMPLE_SECONDS"] = "0.1"
    try:
        control.start(where)
        ranks = _start(script)
        processes.sampler(where)
        time.sleep(_DENSE_SECONDS)
        control.stop(where, "benchmark")
        _end(ranks)
        control.start(where)
        time.sleep(5)  # what the ranks' end left is folded
        control.stop(where, "benchmark")
    finally:
        del os.environ["TRACKIO_SAMPLE_SECONDS"]
    store = ProjectStore(where.projects, HOST, "bench")
    store.vacuum()
    (points,) = store.connection.execute("SELECT sum(points) FROM streams").fetchone()
    (samples,) = store.connection.execute("SELECT max(points) FROM series").fetchone()
    store.close()
    size = os.path.getsize(path)
    return [
        Figure("8 GPUs and 64 ranks: points of a sample", points / samples, "", 2000),
        Figure("8 GPUs and 64 ranks: a sample at rest", size / samples, "B", 4000),
        Figure("samples at rest", size / points, "B/point", 6),
        Figure("samples of a day, every 5 s", size / samples * 17_280 / 1e6, "MB", 60),
    ]


def _start(script: Any) -> list[subprocess.Popen[str]]:
    """64 ranks, eight on each GPU."""
    environ = os.environ | {"TRACKIO_RUN_ID": "sampled", "WORLD_SIZE": str(_RANKS)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", _RANK], env=environ | {"RANK": str(n), "LOCAL_RANK": str(n)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for n in range(_RANKS)
    ]  # fmt: skip
    pids = [int(rank.stdout.readline()) for rank in ranks if rank.stdout is not None]
    script.set("jitter", *(f"{n % _GPUS} process {pid} {1 << 30} {n}" for n, pid in enumerate(pids)))
    return ranks


def _end(ranks: list[subprocess.Popen[str]]) -> None:
    for rank in ranks:
        rank.communicate()


def _standin() -> Any:
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    import standin

    return standin
