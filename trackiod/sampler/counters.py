"""What counters say between two readings. Pure; time is an argument."""

from __future__ import annotations

from typing import NamedTuple


class Growth(NamedTuple):
    """How much a counter grew, in how many seconds."""

    amount: float
    seconds: float

    @property
    def rate(self) -> float:
        """A second."""
        return self.amount / self.seconds


class Counters:
    """The last readings of counters that only grow, by name."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[float, float]] = {}

    def growth(self, name: str, value: float, at: float) -> Growth | None:
        """How much it grew since the reading before, `at` being seconds of a clock that never jumps.

        None the first time, and when it went back: it wrapped or was reset, and nobody knows how far.
        """
        before = self._last.get(name)
        self._last[name] = (value, at)
        if before is None or value < before[0] or at <= before[1]:
            return None
        return Growth(value - before[0], at - before[1])

    def forget(self, prefix: str) -> None:
        """Forgets the counters whose name begins so."""
        for name in [name for name in self._last if name.startswith(prefix)]:
            del self._last[name]
