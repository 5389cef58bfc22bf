"""How a process that is not our child ended: pidfd, and its exit status where the kernel tells it.

Linux 6.15 and later keep exit information for whoever holds a pidfd opened while the process lived
(PIDFD_GET_INFO with PIDFD_INFO_EXIT). Elsewhere only the fact of the end is known.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import struct
from typing import NamedTuple

_INFO = struct.Struct("<QQIIIIIIIIIIIi")
_INFO_BYTES = 64
_WANT_EXIT = 0x0F
_HAS_EXIT = 1 << 3
_PIDFD_GET_INFO = (3 << 30) | (_INFO_BYTES << 16) | (0xFF << 8) | 11


class Exit(NamedTuple):
    """The end of a process: by a signal, or with a code; both None if nobody can tell."""

    signal: int | None = None
    code: int | None = None
    note: str = ""
    """what else is known of why"""
    head: int = 0
    """how far its stream had come, where what lies of it may be short"""

    @property
    def state(self) -> str | None:
        """The run state this end alone amounts to; None if it tells nothing."""
        if self.signal is not None:
            return "killed"
        if self.code is not None:
            return "failed" if self.code else "finished"
        return None

    @property
    def cause(self) -> str:
        """The same in words."""
        if self.signal is not None:
            return _signal_name(self.signal) + (f": {self.note}" if self.note else "")
        return "" if self.code is None else f"exit code {self.code}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def open_pidfd(pid: int) -> int:
    """A pidfd, or -1 if the process is gone or the system has none."""
    try:
        return os.pidfd_open(pid) if pid > 0 else -1
    except (OSError, AttributeError):
        return -1


def exit_of(pidfd: int) -> Exit:
    """How the process behind a pidfd ended, as far as the kernel tells."""
    if pidfd < 0:
        return Exit()
    buffer = bytearray(_INFO_BYTES)
    struct.pack_into("<Q", buffer, 0, _WANT_EXIT)
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, buffer)
    except OSError:
        return Exit()
    values = _INFO.unpack_from(buffer)
    mask, status = values[0], values[-1]
    if not mask & _HAS_EXIT:
        return Exit()
    number = status & 0x7F
    return Exit(signal=number) if number else Exit(code=(status >> 8) & 0xFF)


def is_gone(pidfd: int) -> bool:
    """Whether the process behind a pidfd has ended, reaped by its parent or not."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def verdict(state: str | None, explicit: bool, exit: Exit) -> tuple[str, str] | None:
    """The state and cause of a stream whose process is gone, or None if what it said itself stands.

    `state` is what its last FINISH record said, `explicit` whether finish() wrote it. A process that only
    fell out of its interpreter with a non-zero exit code has failed, whatever atexit believed.
    """
    if state is None:
        if exit.state == "finished":
            return "finished", "exit code 0 without finish()"
        return exit.state or "lost", exit.cause or "the process is gone"
    if explicit or state != "finished" or exit.state in (None, "finished"):
        return None
    return str(exit.state), exit.cause
