"""Waking a thread, also from a signal handler that runs in the middle of waking it."""

from __future__ import annotations

import threading


class Wake:
    """As `threading.Event`, whose lock is not re-entrant: there a handler that sets it while its own thread is inside
    `set` waits for itself for ever."""

    def __init__(self) -> None:
        self._condition = threading.Condition()  # of an RLock
        self._is_set = False

    def set(self) -> None:
        with self._condition:
            self._is_set = True
            self._condition.notify_all()

    def clear(self) -> None:
        self._is_set = False

    def is_set(self) -> bool:
        return self._is_set

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until it is set, or this many seconds; returns whether it is set."""
        with self._condition:
            if not self._is_set:
                self._condition.wait(timeout)
            return self._is_set
