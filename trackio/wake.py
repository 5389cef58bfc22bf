"""Waking a thread, also from a signal handler that runs in the middle of waking it, or that raises there."""

from __future__ import annotations

import threading

from trackio.locks import under


class Wake:
    """As `threading.Event`, whose lock is not re-entrant: there a handler that sets it while its own thread is inside
    `set` waits for itself for ever."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._condition = threading.Condition(self._lock)
        self._is_set = False

    def set(self) -> None:
        self._is_set = True  # also where the lock is not to be had: it is found set at the next look
        under(self._lock, self._condition.notify_all, None)

    def clear(self) -> None:
        self._is_set = False

    def is_set(self) -> bool:
        return self._is_set

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until it is set, or this many seconds; returns whether it is set."""
        with self._lock:
            if not self._is_set:
                self._condition.wait(timeout)
            return self._is_set
