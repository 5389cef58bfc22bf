"""How often the daemon commits, and what it writes for what it stores: 64 ranks that log ten times a second, and one.

The ranks are connections of this process, so that it measures the daemon, and not what 64 processes cost two cores.
A commit costs an fsync and rewrites pages that many ranks share, so ranks that log at the same pace share commits.
"""

from __future__ import annotations

import random
import time
from typing import NamedTuple

from benchmarks.processes import cpu_seconds
from benchmarks.report import Figure
from trackio import record, wire
from trackio.link import Link
from trackio.places import Places, read_endpoint
from trackio.record import Kind
from trackiod import control

_SECONDS = 15.0
_RANKS, _HERTZ, _METRICS = 64, 10, 10
_MOST_COMMITS_RATIO = 5
_MOST_WRITTEN_RATIO = 20


class Load(NamedTuple):
    """What a load did to the daemon."""

    commits_a_second: float
    written: int
    """bytes handed to the file system"""
    stored: int
    """bytes of the streams"""
    cpu: float
    """percent of a core"""
    ack_ms: float
    """the median of what it takes until a batch is durable"""


def measure(where: Places, pid: int) -> list[Figure]:
    """Both ratios; the daemon `pid` runs."""
    alone, many = _load(where, pid, 1), _load(where, pid, _RANKS)
    shape = f"{_RANKS} ranks at {_HERTZ} Hz"
    return [
        Figure(f"{shape}: commits a second", many.commits_a_second, "", None, "one rank", alone.commits_a_second),
        Figure(
            f"{shape}: commits to those of one rank",
            many.commits_a_second / alone.commits_a_second, "", _MOST_COMMITS_RATIO,
        ),
        Figure(f"{shape}: bytes written to stored", many.written / many.stored, "", _MOST_WRITTEN_RATIO),
        Figure("one rank: bytes written to stored", alone.written / alone.stored, ""),
        Figure(f"{shape}: the daemon's CPU", many.cpu, "%", None, "one rank", alone.cpu),
        Figure(f"{shape}: until a batch is durable, median", many.ack_ms, "ms", None, "one rank", alone.ack_ms),
    ]  # fmt: skip


class _Rank:
    """A stream that logs at its pace over a connection of its own."""

    def __init__(self, where: Places, rank: int, world: int) -> None:
        endpoint = read_endpoint(where.endpoint)
        assert endpoint is not None
        self.id = f"{world:04x}{rank:08x}"
        self._link = Link(endpoint.socket)
        self._meta = {
            "project": f"commits-{world}", "run": f"run{world}", "name": "commits", "role": "rank", "attempt": "0",
            "rank": rank, "local_rank": rank, "world_size": world, "started_ns": time.time_ns(),
        }  # fmt: skip
        self._said_hello = self.welcomed = False
        self._step = self.head = self.committed = 0
        self._sent: list[tuple[int, float]] = []
        self.ack_seconds: list[float] = []

    def turn(self) -> None:
        """Takes what came, and introduces itself."""
        self._link.flush()
        for message in self._link.receive():
            if isinstance(message, wire.Welcome):
                self.welcomed = True
            elif isinstance(message, wire.Ack):
                self.committed = max(self.committed, message.committed)
                now = time.monotonic()
                while self._sent and self._sent[0][0] <= self.committed:
                    self.ack_seconds.append(now - self._sent.pop(0)[1])
        if self._link.is_clear and not self._said_hello:
            self._said_hello = True
            self._link.send(wire.Hello(self.id, self._meta))

    def log(self) -> None:
        """One call of log()."""
        metrics = {f"train/metric_{i}": random.random() for i in range(_METRICS)}
        body = record.encode(self.head, record.pack(Kind.LOG, time.time_ns(), self._step, 0, metrics))
        self._step += 1
        start, self.head = self.head, self.head + len(body)
        self._link.send(wire.Data(self.id, start, self.head, 0, [0, 0], body))
        self._sent.append((self.head, time.monotonic()))

    def close(self) -> None:
        self._link.close()


def _load(where: Places, pid: int, ranks: int) -> Load:
    streams = [_Rank(where, rank, ranks) for rank in range(ranks)]
    try:
        while not all(stream.welcomed for stream in streams):
            _turn(streams)
        cpu, written, commits, start = cpu_seconds(pid), _written(pid), _commits(where), time.monotonic()
        for i in range(int(_SECONDS * _HERTZ) * ranks):
            while time.monotonic() - start < i / _HERTZ / ranks:
                _turn(streams)
            streams[i % ranks].log()
        while not all(stream.committed == stream.head for stream in streams):
            _turn(streams)
        seconds = time.monotonic() - start
        acks = sorted(one for stream in streams for one in stream.ack_seconds)
        return Load(
            (_commits(where) - commits) / seconds, _written(pid) - written, sum(stream.head for stream in streams),
            (cpu_seconds(pid) - cpu) / seconds * 100, acks[len(acks) // 2] * 1e3,
        )  # fmt: skip
    finally:
        for stream in streams:
            stream.close()


def _turn(streams: list[_Rank]) -> None:
    time.sleep(0.001)
    for stream in streams:
        stream.turn()


def _commits(where: Places) -> int:
    report = control.status(where)
    assert report is not None
    return int(report.daemon["commits"])


def _written(pid: int) -> int:
    with open(f"/proc/{pid}/io", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("wchar"))
