"""The live streams the daemon knows, and whether their processes still live.

Alive means: somebody holds the lock on the stream's owner file. Silence is not death. A stream whose spool
is private memory has no owner file; there the peer's pid counts.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import stat
import time
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgpack

from trackio import folder
from trackio.lookup import is_there, list_folder, unless_absent
from trackio.names import HOST
from trackio.places import OWNER
from trackio.segment import PREFIX, is_cut
from trackiod import descriptors, orphans
from trackiod.exits import Exit, exit_of, is_gone, open_pidfd
from trackiod.recovery import Source, held, read_folder

_TEXTS = ("project", "run", "name", "role", "attempt")
_NUMBERS = ("rank", "started_ns", "local_rank", "world_size")
_MAX_TEXT_CHARS = 4096
_MOST_META_BYTES = 1 << 20
_INT64 = range(1 << 63)
_INT31 = range(1 << 31)
_COUNTS = {"rank", "local_rank", "world_size"}
_MOST_PATH_BYTES = 4096
_TEXT, _MAP, _TRUTH = (str,), (dict,), (bool,)
_OPTIONAL: dict[str, tuple[type, ...]] = {
    "boot_id": _TEXT, "cgroup": _TEXT, "client": _TEXT, "cuda_visible_devices": _TEXT, "data": _TEXT, "group": _TEXT,
    "host": _TEXT, "job_type": (str, list), "launcher": _TEXT, "notes": (str, list), "process": _TEXT, "resume": _TEXT,
    "tags": (str, list), "weakness": _TEXT, "sampling": _MAP, "target": _MAP, "webhook": (list,), "spool": (str, bytes),
    "hosted": _TRUTH, "interactive": _TRUTH, "is_first_namespace": _TRUTH, "named": _TRUTH, "format": (int,),
    "monotonic_ns": (int,), "pid": (int,), "restarts": (int,),
}  # fmt: skip
"""what a stream may say of itself, and of which type"""
_COLLECT_SECONDS = 3.0
_SILENT_SECONDS = 30.0


def problem_in(meta: dict[str, Any]) -> str:
    """What is wrong with a stream's facts, or empty. A peer may send anything, and a disk may give anything back: what
    reaches SQL or a path is of its type and size, and what is not known here can be stored."""
    for name in _TEXTS:
        value = meta.get(name)
        if not isinstance(value, str) or not 0 < len(value) <= _MAX_TEXT_CHARS:
            return f"{name} is missing or not a text"
    for name in _NUMBERS:
        if type(meta.get(name)) is not int or meta[name] not in (_INT31 if name in _COUNTS else _INT64):
            return f"{name} is missing or not a number"
    if meta["role"] not in ("rank", "worker", "sampler"):
        return "role is neither rank, worker nor sampler"
    if (meta["role"] == "sampler") != (meta["project"] == HOST):
        return "only samplers log to the node"
    if "stream" in meta and not (isinstance(meta["stream"], str) and orphans.is_id(meta["stream"])):
        return "stream is not the id of one"
    try:
        size = len(msgpack.packb(meta))
    except (ValueError, TypeError, OverflowError, RecursionError) as error:  # nested too deep, for one
        return f"it cannot be stored ({type(error).__name__})"
    return "it is too large" if size > _MOST_META_BYTES else ""


def usable(meta: dict[str, Any]) -> dict[str, Any]:
    """What a stream says of itself, without what cannot be what it is called: that costs itself, and no more."""
    return {name: value for name, value in meta.items() if _is_usable(name, value)}


def _is_usable(name: Any, value: Any) -> bool:
    types = _OPTIONAL.get(name)
    if types is None or value is None:
        return isinstance(name, str)
    if type(value) not in types:
        return False
    if type(value) is list:
        return all(type(item) in (str, int) for item in value)
    return type(value) is not int or value in _INT64


def path_of(spool: Any) -> str:
    """The folder that a stream names; empty for what is not a path of one."""
    if not isinstance(spool, (bytes, str)) or len(spool) > _MOST_PATH_BYTES:
        return ""
    path = os.fsdecode(spool)
    return path if os.path.isabs(path) and "\0" not in path else ""


@dataclass(slots=True)
class LiveStream:
    """One stream whose process lived when last looked at. Owns descriptors; `close` ends them."""

    id: str
    meta: dict[str, Any]
    peer: Any = None
    pid: int = 0
    head: int = 0
    committed: int = 0
    refused: tuple[int, int] = (0, 0)
    heard_at: float = field(default_factory=time.monotonic)
    met_at: float = field(default_factory=time.monotonic)
    folders: list[str] = field(default_factory=list)
    pidfd: int = -1
    _dead_since: float | None = None
    _unwatched: dict[str, None] = field(default_factory=dict)
    _owners: dict[str, int] = field(default_factory=dict)
    _segments: dict[str, int] = field(default_factory=dict)

    @property
    def project(self) -> str:
        return str(self.meta["project"])

    @property
    def role(self) -> str:
        return str(self.meta["role"])

    @property
    def name(self) -> str:
        return f"{self.meta['role']} {self.meta['rank']}"

    def watch(self, path: str) -> None:
        """Holds on to a folder of the stream: its owner file and, from now on, its segments."""
        if path and path not in self.folders:
            self._unwatched[path] = None
            self._watch_more()

    def _watch_more(self) -> None:
        """Opens the owner files that are not open yet. One that cannot be opened now is tried again."""
        for path in list(self._unwatched):
            owner = os.path.join(path, OWNER)
            try:
                fd = unless_absent(partial(_open_plain, owner, os.O_RDWR), owner)
            except OSError:
                continue
            del self._unwatched[path]
            if fd is not None:
                self.folders.append(path)
                self._owners[path] = fd
                self.hold_segments()

    def hold_segments(self) -> None:
        """Keeps the segments open, so that what an epilog unlinks can still be read after a kill."""
        if self._unwatched:
            self._watch_more()
        for path in self.folders:
            if path in self._owners:
                try:
                    self._hold_segments(path)
                except OSError:
                    continue  # it is looked at again in half a second; what is held stays

    def _hold_segments(self, path: str) -> None:
        names = {os.path.join(path, name) for name in list_folder(path) if name.startswith(PREFIX)}
        for name in names - self._segments.keys():
            with contextlib.suppress(OSError):  # it is tried again, and does not keep the others from being held
                fd = descriptors.unless_short(_open_plain(name, os.O_RDONLY), descriptors.FOR_COMFORT)
                if fd < 0:
                    return  # what is held against an epilog must not cost others their connection
                self._segments[name] = fd
        if os.fstat(self._owners[path]).st_nlink:  # else somebody cleaned up, and ours are the only copies
            for name in [n for n in self._segments if os.path.dirname(n) == path and n not in names]:
                os.close(self._segments.pop(name))

    def is_alive(self, peer_pid: int = 0) -> bool:
        """Whether the process lives; learns its pid in our namespace on the way."""
        if not self._owners:
            self._know(self.pid or peer_pid)
            return self._peer_is_alive()
        for fd in self._owners.values():
            try:
                holder = folder.holder(fd)
            except OSError:  # that it cannot be asked is not an answer
                return self._peer_is_alive()
            if holder is not None:
                self._know(holder)
                return True
        return False

    def _peer_is_alive(self) -> bool:
        """Without an owner file: by the peer's pidfd, else its pid, else, across PID namespaces, its words."""
        if self.pidfd >= 0:
            return not is_gone(self.pidfd)
        if self.pid > 0:
            try:
                return is_there(f"/proc/{self.pid}")
            except OSError:
                return True
        return time.monotonic() - self.heard_at < _SILENT_SECONDS

    def _know(self, pid: int) -> None:
        if pid > 0 and pid != self.pid:
            if self.pidfd >= 0:
                os.close(self.pidfd)
            self.pid, self.pidfd = pid, descriptors.unless_short(open_pidfd(pid), descriptors.FOR_COMFORT)

    def is_settled(self, now: float) -> bool:
        """Whether the exit of a process found dead is known, or will not be any more: its parent has yet to
        collect it, and may never."""
        if self._dead_since is None:
            self._dead_since = now
        waited = now - self._dead_since
        return self.pidfd < 0 or self.exit().state is not None or waited > _COLLECT_SECONDS

    def exit(self) -> Exit:
        """How the process ended, once it has."""
        exit = exit_of(self.pidfd)
        cut = next(filter(self._is_cut, self._segments), "") if exit.signal == signal.SIGBUS else ""
        return exit._replace(note=f"its spool file {cut} was cut short", head=self.head) if cut else exit

    def _is_cut(self, path: str) -> bool:
        try:
            return is_cut(self._segments[path])
        except OSError:
            return False

    def sources(self) -> list[Source]:
        """Everything the process left, behind the descriptors we hold and in the folders. Raises OSError."""
        found = [source for path, fd in self._segments.items() for source in held(fd, path)]
        for path in self.folders:
            found += read_folder(path)
        return found

    def close(self) -> None:
        for fd in (*self._owners.values(), *self._segments.values(), self.pidfd):
            if fd >= 0:
                os.close(fd)
        self._owners.clear()
        self._segments.clear()
        self.pidfd = -1

    def report(self, now: float) -> dict[str, Any]:
        """What `status` shows of it."""
        return {
            "stream": self.id,
            "project": self.project,
            "run": self.meta["run"],
            "rank": self.meta["rank"],
            "role": self.meta["role"],
            "pid": self.pid,
            "head": self.head,
            "committed": self.committed,
            "lag_bytes": max(0, self.head - self.committed),
            "refused_records": self.refused[0],
            "refused_points": self.refused[1],
            "silent_seconds": round(now - self.heard_at, 1),
            "weakness": str(self.meta.get("weakness", "")),
        }


def _open_plain(path: str, how: int) -> int:
    """A descriptor of a plain file; of nothing else, which might hold the loop up. Raises OSError."""
    fd = os.open(path, how | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "it is not a plain file", path)
    return fd
