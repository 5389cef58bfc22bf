"""Taking a lock that a signal handler may meet.

Handlers run in the main thread, wherever it is, and may raise, log, or wait for another thread. So that thread takes a
re-entrant lock by `with` alone, which no exception comes between before Python 3.14, and from then on gives it back
where one did; every other waits only a moment for it, since what holds the main thread up may wait for that other.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
CONTENDED_SECONDS = 0.05


def under(lock: threading.RLock, act: Callable[[], T], otherwise: T) -> T:
    """What `act` returns under the lock, or `otherwise` where another thread had it for too long."""
    if threading.get_ident() == threading.main_thread().ident:
        try:
            with lock:
                return act()
        except BaseException:
            free(lock)
            raise
    if not lock.acquire(timeout=CONTENDED_SECONDS):
        return otherwise
    try:
        return act()
    finally:
        lock.release()


def free(lock: threading.RLock) -> None:
    """Gives back a lock that the main thread was about to use, if `with` took it and a handler raised before its block
    began. Called by who has `lock` as its local name; nothing is done where one further out has it."""
    frame = sys._getframe(1).f_back
    while frame is not None:
        is_ours = str(frame.f_globals.get("__name__")).startswith("trackio.")
        if is_ours and frame.f_locals.get("lock") is lock:
            return
        frame = frame.f_back
    try:
        while True:
            lock.release()
    except RuntimeError:
        pass  # it is not taken, or by another thread
