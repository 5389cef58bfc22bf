"""Waking a thread, also from a signal handler that runs in the middle of waking it, or that raises there."""

from __future__ import annotations

import threading

_CONTENDED_SECONDS = 0.05


class Wake:
    """As `threading.Event`, whose lock is not re-entrant: there a handler that sets it while its own thread is inside
    `set` waits for itself for ever.

    Signal handlers run in the main thread, so it takes the lock by `with` alone, and of the lock itself: no exception
    can come between. Others wait only a moment for it: what holds the main thread up may wait for them.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._condition = threading.Condition(self._lock)
        self._is_set = False

    def set(self) -> None:
        self._is_set = True
        if threading.get_ident() == threading.main_thread().ident:
            with self._lock:
                self._condition.notify_all()
        elif self._lock.acquire(timeout=_CONTENDED_SECONDS):  # else it is found set when it next looks
            try:
                self._condition.notify_all()
            finally:
                self._lock.release()

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
