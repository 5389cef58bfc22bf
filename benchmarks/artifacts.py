"""What an artifact of many files costs the trainer, the daemon, and another project whose batches it commits beside it.

The other project is a connection of this process that sends a small batch as soon as the last one is durable.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.processes import cpu_seconds
from benchmarks.report import Figure
from trackio import record, wire
from trackio.link import Link
from trackio.places import Places, read_endpoint
from trackio.record import Kind

_FEW, _MANY = 2_000, 10_000
_IDLE_SECONDS = 5.0
_MAX_RATIO = 2.0
_MAX_GROWTH = 8.0

_LOG = """
import json, sys, time
import trackio
run = trackio.init(project="bench", name="artifacts")
cpu, start = time.thread_time(), time.perf_counter()
artifact = trackio.Artifact("many")
artifact.add_dir(sys.argv[1])
trackio.log_artifact(artifact)
found = {"cpu": time.thread_time() - cpu, "call": time.perf_counter() - start}
artifact.wait()
found["wait"] = time.perf_counter() - start
assert len(artifact.manifest) == int(sys.argv[2])
print(json.dumps(found))
"""


def measure(where: Places, pid: int) -> Iterator[Figure]:
    """Log a few and many files, with the other project beside the many."""
    few = _logged(where, _FEW)
    other = _Other(where)
    thread = threading.Thread(target=other.run)
    thread.start()
    try:
        time.sleep(_IDLE_SECONDS)
        other.phase = "beside"
        cpu = cpu_seconds(pid)
        many = _logged(where, _MANY)
        cpu = cpu_seconds(pid) - cpu
    finally:
        other.phase = ""
        thread.join()
    count = f"{_MANY:,} files"
    idle, beside = (sorted(other.seconds[phase]) for phase in ("idle", "beside"))
    yield Figure(f"log_artifact() of {count}: the trainer's CPU", many["cpu"], "s")
    yield Figure(f"log_artifact() of {count}: time", many["call"], "s")
    growth = many["cpu"] / few["cpu"]
    yield Figure(f"the trainer's CPU for {count} to that for {_FEW:,}", growth, "", _MAX_GROWTH)
    yield Figure(f"{count}: until wait() returns", many["wait"], "s", None, f"that of {_FEW:,}", few["wait"])
    yield Figure(f"{count}: the daemon's CPU, with the other project", cpu, "s")
    ratio = beside[len(beside) // 2] / idle[len(idle) // 2]
    yield Figure("another project's commits, median to an idle daemon's", ratio, "", _MAX_RATIO)
    for name, seconds in (("idle", idle), ("beside", beside)):
        yield Figure(f"another project's commits, {name}, median", seconds[len(seconds) // 2] * 1e3, "ms")
        yield Figure(f"another project's commits, {name}, p99", seconds[len(seconds) * 99 // 100] * 1e3, "ms")


def _logged(where: Places, count: int) -> dict[str, float]:
    folder = Path(where.data) / f"sources-{count}"
    for number in range(count):
        path = folder / str(number // 100) / str(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(100))
    command = [sys.executable, "-c", _LOG, str(folder), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


class _Other:
    """A stream of another project. `run` sends until `phase` is empty, and notes how long each batch took."""

    def __init__(self, where: Places) -> None:
        endpoint = read_endpoint(where.endpoint)
        assert endpoint is not None
        self.phase = "idle"
        self.seconds: dict[str, list[float]] = {"idle": [], "beside": []}
        self._link = Link(endpoint.socket)
        self._meta = {
            "project": "other", "run": "other", "name": "other", "role": "rank", "attempt": "0", "rank": 0,
            "local_rank": 0, "world_size": 1, "started_ns": time.time_ns(),
        }  # fmt: skip

    def run(self) -> None:
        """The thread's life."""
        try:
            while not self._link.is_clear:
                self._link.wait(0.01)
                self._link.receive()
            self._link.send(wire.Hello("other", self._meta))
            head = self._await(0)
            step = 0
            while phase := self.phase:
                body = record.encode(head, record.pack(Kind.LOG, time.time_ns(), step, 0, {"loss": 0.5}))
                start, step = time.perf_counter(), step + 1
                self._link.send(wire.Data("other", head, head + len(body), 0, [0, 0], body))
                head = self._await(head + len(body))
                self.seconds[phase].append(time.perf_counter() - start)
        finally:
            self._link.close()

    def _await(self, head: int) -> int:
        """Wait until everything up to here is durable."""
        while True:
            self._link.wait(1.0)
            for message in self._link.receive():
                if isinstance(message, (wire.Welcome, wire.Ack)) and message.committed >= head:
                    return head
