"""Talking to systemd, when it started us: the socket it passes, readiness, the watchdog, stopping.

Sources: man 3 sd_notify, man 3 sd_listen_fds.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, MutableMapping

from trackio.places import MAX_SOCKET_PATH_BYTES
from trackiod.errors import SocketUnusable

_FIRST_FD = 3


def passed_socket(environ: MutableMapping[str, str]) -> socket.socket | None:
    """The listening socket that was passed to this process (LISTEN_FDS), or None. Raises SocketUnusable.

    The variables are taken out of `environ`: they are for nobody else. The socket's path is not ours to remove.
    """
    pid, count = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdecimal() or int(count) == 0:
        return None
    if int(count) != 1:
        raise SocketUnusable(f"systemd passed {count} sockets; trackiod answers on one: check ListenStream=.")
    try:
        listener = socket.socket(fileno=_FIRST_FD)
        listens = bool(listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except OSError as error:
        raise SocketUnusable(f"What systemd passed is no socket ({error.strerror or error}).") from error
    path = listener.getsockname()
    is_ours = listens and listener.family == socket.AF_UNIX and listener.type == socket.SOCK_STREAM
    if (
        not is_ours
        or not isinstance(path, str)
        or not path.startswith("/")
        or len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES
    ):
        raise SocketUnusable(
            f"systemd passed {path!r}, which is no listening AF_UNIX stream socket with a path: check ListenStream=."
        )
    listener.set_inheritable(False)
    listener.setblocking(False)
    return listener


class Notifier:
    """Sends states to the socket in NOTIFY_SOCKET; without one it does nothing. Never raises."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        path = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + path[1:] if path.startswith("@") else path
        self.watchdog_seconds = self._watchdog(environ)
        """how often to feed the watchdog: half its limit; None if there is none"""

    @staticmethod
    def _watchdog(environ: Mapping[str, str]) -> float | None:
        limit, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
        if not limit.isdecimal() or (pid and pid != str(os.getpid())):
            return None
        return int(limit) / 2e6

    def send(self, state: str) -> None:
        """One or more `NAME=value` lines."""
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify:
                notify.sendto(state.encode(), self._address)
        except OSError:
            return
