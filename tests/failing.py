"""Make chosen system calls of real processes fail or hang, on and off while they run: `standin/failing.c`, preloaded.

    failing = Failing(tmp_path)
    host.extra |= failing.environ
    with failing.fail("read", errno.EIO, path="/project.db", process="trackiod"):
        ...

A trainer never hands its LD_PRELOAD to the daemon that it starts; `Host.start()` does, where it is in `extra`.
A rule catches all calls of its group; all of its conditions must hold; several rules add up. What catches nothing
shows in `Rule.hits`, so a test can wait until a fault really came.
"""

from __future__ import annotations

import atexit
import functools
import mmap
import os
import shutil
import struct
import subprocess
import tempfile
import threading
from pathlib import Path
from types import TracebackType

import pytest
import standin

SOURCE = Path(standin.__file__).with_name("failing.c")

CALLS = (
    "open", "read", "write", "fsync", "stat", "unlink", "rename", "listdir", "mkdir", "link", "ftruncate", "fallocate",
    "mmap", "fork", "thread", "accept", "socket", "connect", "fcntl", "flock", "ioctl", "pipe", "event", "dup",
)  # fmt: skip
"""Groups of calls, in the order of `enum call`: "read" is also pread, readv and the reading half of sendfile and
copy_file_range, "write" the writing one; "fsync" also fdatasync; "stat" also access; "unlink" also rmdir; "listdir"
is opendir and readdir; "fork" also vfork and posix_spawn; "thread" is pthread_create; "event" eventfd and epoll."""
_ALIASES = {"pread": "read", "pwrite": "write", "fdatasync": "fsync", "rmdir": "unlink", "truncate": "ftruncate"}

_MAX_RULES = 64
_RULE = struct.Struct("=IiqqqQ256s216s")
_FIRST_RULE = 512


@functools.cache
def build() -> Path:
    """Build the library, once in each process that runs tests."""
    compiler = standin.compiler()
    if compiler is None:
        pytest.skip("needs a C compiler for tests/standin/failing.c")
    folder = Path(tempfile.mkdtemp(prefix="trackio-failing-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    library = folder / "libfailing.so"
    options = ["-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-ldl", "-lpthread"]
    subprocess.run([compiler, "-o", str(library), str(SOURCE), *options], check=True)
    return library


class Rule:
    """One rule; as a context manager it ends with the block."""

    def __init__(self, failing: Failing, index: int) -> None:
        self._failing = failing
        self._index = index

    @property
    def hits(self) -> int:
        """How many calls it has caught, in all processes."""
        return self._failing._hits(self._index)

    def end(self) -> None:
        """End this rule alone; calls that hang are made."""
        self._failing._set_active(self._index, False)

    def __enter__(self) -> Rule:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.end()


class Failing:
    """The rules for processes that were started with `environ`. None holds at first."""

    def __init__(self, folder: Path) -> None:
        self._library = build()
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, self._path = tempfile.mkstemp(prefix="failing-", dir=folder)
        with open(descriptor, "r+b") as file:
            file.truncate(_FIRST_RULE + _MAX_RULES * _RULE.size)
            self._map = mmap.mmap(file.fileno(), 0)
        self._used = 0
        self._lock = threading.Lock()

    @property
    def environ(self) -> dict[str, str]:
        """What a process needs in its environment."""
        preloaded = " ".join(filter(None, [str(self._library), os.environ.get("LD_PRELOAD", "")]))
        return {"LD_PRELOAD": preloaded, "TRACKIO_TEST_FAILING": self._path}

    def fail(
        self, call: str, error: int, path: str = "", *, after: int = 0, count: int = -1, process: str = ""
    ) -> Rule:
        """Make calls fail with an errno.

        Args:
            call: One of `CALLS`.
            error: The errno.
            path: A part of the path, or of what /proc/self/fd says of a descriptor; empty: any.
            after: So many calls are made first; all processes count together.
            count: So many calls fail; below 0: all, until `heal()`.
            process: A part of the command line, words with one blank between them.
        """
        return self._add(call, error, 0, path, after, count, process)

    def hang(
        self, call: str, seconds: float, path: str = "", *, after: int = 0, count: int = -1, process: str = ""
    ) -> Rule:
        """Make calls wait before they are made, at most until `heal()`; the rest is as in `fail()`."""
        return self._add(call, 0, seconds, path, after, count, process)

    def heal(self) -> None:
        """End all rules; calls that hang are made at once."""
        with self._lock:
            struct.pack_into("=Q", self._map, 0, 0)

    def _add(self, call: str, error: int, seconds: float, path: str, after: int, count: int, process: str) -> Rule:
        number = CALLS.index(_ALIASES.get(call, call))
        where, whose = os.fsencode(path), os.fsencode(process)
        assert len(where) < 256 and len(whose) < 216, "too long for a rule"
        with self._lock:
            active = self._active()
            # the slot that was free for longest, so that a caught call that still reads its rule reads the old one
            order = [(self._used + i) % _MAX_RULES for i in range(_MAX_RULES)]
            index = next(i for i in order if not active >> i & 1)
            self._used = index + 1
            milliseconds = int(seconds * 1000)
            at = _FIRST_RULE + index * _RULE.size
            _RULE.pack_into(self._map, at, number, error, milliseconds, after, count, 0, where, whose)
            struct.pack_into("=Q", self._map, 0, active | 1 << index)
        return Rule(self, index)

    def _active(self) -> int:
        return int(struct.unpack_from("=Q", self._map, 0)[0])

    def _set_active(self, index: int, is_active: bool) -> None:
        with self._lock:
            others = self._active() & ~(1 << index)
            struct.pack_into("=Q", self._map, 0, others | is_active << index)

    def _hits(self, index: int) -> int:
        return int(_RULE.unpack_from(self._map, _FIRST_RULE + index * _RULE.size)[5])
