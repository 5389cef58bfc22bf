"""When which probe is read: each at its interval, a slow one so rarely that it takes a fifth of the time at most.
Pure; time is an argument, in seconds of a clock that never jumps."""

from __future__ import annotations

_SHARE = 0.2


class Pace:
    """The turns of one probe."""

    def __init__(self, interval: float, now: float) -> None:
        self.interval = interval
        self._due = now
        self._took = 0.0

    def is_due(self, now: float) -> bool:
        return now >= self._due

    @property
    def due(self) -> float:
        """When its next turn is."""
        return self._due

    def done(self, started: float, ended: float) -> None:
        """It was read. The next turn is one period after this one was due, or, had it been missed, at the next
        such moment: turns are skipped, never made up for."""
        self._took = ended - started
        period = max(self.interval, self._took / _SHARE)
        missed = max(0, int((ended - self._due) // period))
        self._due += (missed + 1) * period

    def change(self, interval: float, now: float) -> None:
        """Another interval, from the last turn on."""
        if interval != self.interval:
            self._due = min(self._due, now + interval)
            self.interval = interval
