"""Reading the ranks' processes. One that is gone, or another user's, is absent."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import psutil

from trackiod.sampler.counters import Counters
from trackiod.sampler.table import GIB, MIB

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_SLACK_SECONDS = 5.0


class Rank(NamedTuple):
    """A rank's process, as the daemon knows it."""

    stream: str
    project: str
    run: str
    name: str
    rank: int
    pid: int
    """in this PID namespace; 0 where it has none"""
    started_ns: int
    """when its stream was opened; a process of that pid that began later is another one"""


class _Stat(NamedTuple):
    """What `/proc/<pid>/stat` says."""

    started: int
    """in ticks since the host started: with the pid it tells a process from every other"""
    seconds: float
    """that it ran"""
    threads: int
    resident: int
    """bytes"""


class Processes:
    """The processes of the ranks on this node."""

    def __init__(self) -> None:
        self._counters = Counters()
        self._known: dict[str, tuple[int, int]] = {}
        """pid and start of each stream's process"""

    def expect(self, ranks: Iterable[Rank]) -> None:
        """From now on these are read."""
        ranks = list(ranks)
        for stream in self._known.keys() - {rank.stream for rank in ranks}:
            del self._known[stream]
            self._counters.forget(f"{stream} ")
        for rank in ranks:
            if rank.stream not in self._known and (started := _started(rank)) is not None:
                self._known[rank.stream] = (rank.pid, started)

    def read(self, now: float) -> dict[str, float]:
        """What all of them do now."""
        found: dict[str, float] = {}
        for stream, (pid, started) in self._known.items():
            try:
                found.update(self._of(stream, pid, started, now))
            except (OSError, ValueError, LookupError):
                continue  # it is gone or ending, or another user's
        return found

    def _of(self, stream: str, pid: int, started: int, now: float) -> Iterator[tuple[str, float]]:
        prefix = f"process/{stream}/"
        stat = _stat(pid)
        if stat.started != started:
            return
        yield f"{prefix}memory", stat.resident / GIB
        yield f"{prefix}threads", stat.threads
        if (growth := self._counters.growth(f"{stream} cpu", stat.seconds, now)) is not None:
            yield f"{prefix}cpu", round(100.0 * growth.rate, 2)
        try:
            yield f"{prefix}files", _open_files(pid)
            counters = _disk_bytes(pid)
        except PermissionError:
            return
        for name, value in zip(("read", "write"), counters, strict=True):
            growth = self._counters.growth(f"{stream} {name}", value, now)
            if growth is not None:
                yield f"{prefix}{name}_mb_per_sec", growth.rate / MIB


@functools.lru_cache(maxsize=1024)
def inner_pids(pid: int) -> list[int]:
    """A process's pids in the namespaces it is in below that of /proc, its own last; empty if it cannot be read."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            line = next((line for line in file if line.startswith("NSpid:")), "")
    except OSError:
        return []
    return [int(field) for field in line.split()[2:]]


def holds_device(pid: int) -> bool:
    """Whether a process has a GPU's device file open."""
    folder = f"/proc/{pid}/fd"
    try:
        return any(os.readlink(os.path.join(folder, fd)).startswith("/dev/nvidia") for fd in os.listdir(folder))
    except OSError:
        return False


def _started(rank: Rank) -> int | None:
    """When the rank's process started, in ticks; None if it is gone, or the pid is another's by now."""
    try:
        began = psutil.Process(rank.pid).create_time() if rank.pid > 0 else None
        if began is None or began > rank.started_ns / 1e9 + _SLACK_SECONDS:
            return None
        return _stat(rank.pid).started
    except (psutil.Error, OSError, ValueError, LookupError):
        return None


def _stat(pid: int) -> _Stat:
    """One file, where psutil reads three for the same. Raises OSError."""
    with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
        text = file.read(4096)
    fields = text[text.rindex(b")") + 2 :].split()  # behind the name, which may hold anything
    seconds = (int(fields[11]) + int(fields[12])) / _TICKS
    return _Stat(int(fields[19]), seconds, int(fields[17]), int(fields[21]) * _PAGE)


def _open_files(pid: int) -> int:
    folder = f"/proc/{pid}/fd"
    return os.stat(folder).st_size or len(os.listdir(folder))  # Linux before 6.2 tells no size


def _disk_bytes(pid: int) -> tuple[int, int]:
    """Bytes read from and written to disks."""
    with open(f"/proc/{pid}/io", "rb", buffering=0) as file:
        fields = dict(line.split(b": ") for line in file.read(4096).splitlines())
    return int(fields[b"read_bytes"]), int(fields[b"write_bytes"])
