"""How the library speaks in somebody's training process: one line on stderr, each matter once.

Never through `warnings` (a user may have turned those into errors) and never raising.
"""

from __future__ import annotations

import sys

from trackio.interrupts import hand_on

_MOST_MATTERS = 1000
_LINE_ENDS = "\x85\u2028\u2029"
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
        sys.stderr.write(f"trackio: {escaped(sentence)}\n")
        sys.stderr.flush()
    except Exception as error:  # noqa: BLE001
        hand_on(error)  # else stderr is closed, absent, or the user's own


def warn_once(matter: str, sentence: str) -> bool:
    """Prints the sentence the first time this matter comes up in the process; False if it was said before, or a
    thousand others were."""
    mine = object()
    if len(_said) >= _MOST_MATTERS or _said.setdefault(matter, mine) is not mine:
        return False
    warn(sentence)
    return True


def escaped(text: str, keep: str = "") -> str:
    """Write what a terminal obeys or hides as escapes: `\\x1b` for ESC, also C1, bidi overrides, what has no width,
    ends of lines and lone surrogates, but for what is to `keep`. Names and texts of users may hold any of them."""
    if text.isprintable():
        return text
    return "".join(c if is_harmless(c) or c in keep else c.encode("unicode_escape").decode() for c in text)


def is_harmless(character: str) -> bool:
    """Whether a terminal shows it, and does nothing else: what can be printed, and spaces of any width."""
    return character.isprintable() or (character.isspace() and character > " " and character not in _LINE_ENDS)
