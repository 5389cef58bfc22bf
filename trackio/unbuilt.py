"""Upstream's media and tables, which are not built yet: scripts and trainers may make them and log them.

`log()` leaves them out and says so once per key, as it does with every value it cannot store. Knows nothing else.
"""

from __future__ import annotations

from typing import Any


class Unbuilt:
    """Takes whatever upstream's class takes, and keeps nothing."""

    def __init__(self, *contents: Any, **named: Any) -> None:
        pass


class Image(Unbuilt):
    """A picture: not built yet."""


class Table(Unbuilt):
    """Rows and columns: not built yet. TRL makes one of the completions it is told to log."""


class Trace(Unbuilt):
    """A conversation: not built yet."""
