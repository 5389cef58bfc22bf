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


class _Files:
    """A process's files in /proc, held open: read in half the time, and they never become another process's. Owns the
    descriptors; `close` ends them."""

    def __init__(self, pid: int) -> None:
        """Raises OSError if there is no such process."""
        folder = f"/proc/{pid}"
        self._stat = os.open(f"{folder}/stat", os.O_RDONLY | os.O_CLOEXEC)
        self._io = _opened(f"{folder}/io", os.O_RDONLY)
        self._fds = _opened(f"{folder}/fd", os.O_PATH)
        self._folder = folder

    def stat(self) -> tuple[float, int, int]:
        """Seconds that it ran, its threads, its resident bytes: one file, where psutil reads three. Raises OSError."""
        text = os.pread(self._stat, 4096, 0)
        fields = text[text.rindex(b")") + 2 :].split()  # behind the name, which may hold anything
        return (int(fields[11]) + int(fields[12])) / _TICKS, int(fields[17]), int(fields[21]) * _PAGE

    def open_files(self) -> int | None:
        """None if it may not be known. Raises OSError."""
        if self._fds < 0:
            return None
        return os.fstat(self._fds).st_size or len(os.listdir(f"{self._folder}/fd"))  # Linux before 6.2 tells no size

    def disk_bytes(self) -> tuple[int, int] | None:
        """Bytes read from and written to disks; None if they may not be known. Raises OSError."""
        if self._io < 0:
            return None
        fields = dict(line.split(b": ") for line in os.pread(self._io, 4096, 0).splitlines())
        return int(fields[b"read_bytes"]), int(fields[b"write_bytes"])

    def close(self) -> None:
        for fd in (self._stat, self._io, self._fds):
            if fd >= 0:
                os.close(fd)


class Processes:
    """The processes of the ranks on this node. Owns their files."""

    def __init__(self) -> None:
        self._counters = Counters()
        self._files: dict[str, _Files | None] = {}
        """of each stream's process; None once it is gone"""

    def expect(self, ranks: Iterable[Rank]) -> None:
        """From now on these are read."""
        ranks = list(ranks)
        for stream in self._files.keys() - {rank.stream for rank in ranks}:
            self._let_go(stream)
            del self._files[stream]
            self._counters.forget(f"{stream} ")
        for rank in ranks:
            if rank.stream not in self._files and rank.pid > 0:
                self._files[rank.stream] = _files(rank)

    def read(self, now: float) -> dict[str, float]:
        """What all of them do now."""
        found: dict[str, float] = {}
        for stream, files in self._files.items():
            try:
                if files is not None:
                    found.update(self._of(stream, files, now))
            except (OSError, ValueError, LookupError):
                self._let_go(stream)  # it has ended
        return found

    def _let_go(self, stream: str) -> None:
        files, self._files[stream] = self._files[stream], None
        if files is not None:
            files.close()

    def _of(self, stream: str, files: _Files, now: float) -> Iterator[tuple[str, float]]:
        prefix = f"process/{stream}/"
        ran, threads, resident = files.stat()
        yield f"{prefix}memory", resident / GIB
        yield f"{prefix}threads", threads
        if (growth := self._counters.growth(f"{stream} cpu", ran, now)) is not None:
            yield f"{prefix}cpu", round(100.0 * growth.rate, 2)
        if (count := files.open_files()) is not None:
            yield f"{prefix}files", count
        for name, value in zip(("read", "write"), files.disk_bytes() or (), strict=False):
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


def is_here(pid: int) -> bool:
    """Whether there is a process of that pid in this namespace."""
    return os.path.exists(f"/proc/{pid}")


def holds_device(pid: int) -> bool:
    """Whether a process has a GPU's device file open."""
    folder = f"/proc/{pid}/fd"
    try:
        return any(os.readlink(os.path.join(folder, fd)).startswith("/dev/nvidia") for fd in os.listdir(folder))
    except OSError:
        return False


def _files(rank: Rank) -> _Files | None:
    """The rank's process; None if it is gone, or the pid is another's by now."""
    try:
        files = _Files(rank.pid)
    except OSError:
        return None
    try:
        if psutil.Process(rank.pid).create_time() <= rank.started_ns / 1e9 + _SLACK_SECONDS:
            return files
    except psutil.Error:
        pass
    files.close()
    return None


def _opened(path: str, flags: int) -> int:
    """A descriptor; -1 if it may not be had."""
    try:
        return os.open(path, flags | os.O_CLOEXEC)
    except OSError:
        return -1
