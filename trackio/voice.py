"""How the library speaks in somebody's training process: one line on stderr, each matter once.

Never through `warnings` (a user may have turned those into errors) and never raising.
"""

from __future__ import annotations

import sys
import threading

_MOST_MATTERS = 1000
_said: set[str] = set()
_lock = threading.RLock()  # a signal handler may speak in the middle of it
quiet = False


def say(sentence: str) -> None:
    """Prints one line, unless the user asked for quiet."""
    if quiet:
        return
    warn(sentence)


def warn(sentence: str) -> None:
    """Prints one line in any case: something is not as the user expects."""
    try:
        sys.stderr.write(f"trackio: {sentence}\n")
        sys.stderr.flush()
    except Exception:  # noqa: BLE001
        pass  # stderr is closed, absent, or the user's own


def warn_once(matter: str, sentence: str) -> bool:
    """Prints the sentence the first time this matter comes up in the process; False if it was said before, or a
    thousand others were."""
    if matter in _said:
        return False
    with _lock:
        if matter in _said or len(_said) >= _MOST_MATTERS:
            return False
        _said.add(matter)
    warn(sentence)
    return True


def after_fork() -> None:
    """A child has its own lock; what the parent said counts as said."""
    global _lock
    _lock = threading.RLock()
