"""Talking to systemd, when it started us: readiness, the watchdog, stopping. Source: man 3 sd_notify."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping


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
