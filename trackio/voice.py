"""How the library speaks in somebody's training process: one line on stderr, each matter once.

Never through `warnings` (a user may have turned those into errors) and never raising.
"""

from __future__ import annotations

import sys

_MOST_MATTERS = 1000
_said: dict[str, object] = {}
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
    mine = object()
    if len(_said) >= _MOST_MATTERS or _said.setdefault(matter, mine) is not mine:
        return False
    warn(sentence)
    return True
