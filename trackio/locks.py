"""Taking a lock that a signal handler may meet.

Handlers run in the main thread, wherever it is, and may raise, log, or wait for another thread. So that thread takes a
re-entrant lock by `with` alone, which no exception can come between; every other waits only a moment for it, since what
holds the main thread up may wait for that other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
CONTENDED_SECONDS = 0.05


def under(lock: threading.RLock, act: Callable[[], T], otherwise: T) -> T:
    """What `act` returns under the lock, or `otherwise` where another thread had it for too long."""
    if threading.get_ident() == threading.main_thread().ident:
        with lock:
            return act()
    if not lock.acquire(timeout=CONTENDED_SECONDS):
        return otherwise
    try:
        return act()
    finally:
        lock.release()
