"""What the daemon does for the processes beside storing: keeps their files, sends their alerts (`sending`).

It may hang, so each kind has threads and children. The store remembers what is open; the next daemon does it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

from trackio.places import Places
from trackiod.keepers import KEEPERS, Keepers
from trackiod.leases import Leases
from trackiod.sending import Sending
from trackiod.threads import Threads
from trackiod.work import Errand, FileKept, Settled, ToKeep, Work

_STOP_SECONDS = 5.0


class Errands:
    """Takes errands from any thread, gives their ends to `submit`."""

    def __init__(self, places: Places, submit: Callable[[Work], None]) -> None:
        self._submit = submit
        self._open: set[tuple[Any, ...]] = set()
        self.incomplete: Counter[str] = Counter()
        """files that were not kept whole, by their streams, since this daemon runs"""
        self.leases = Leases(places.incoming, lambda: self._keepers.hurry())
        self._keepers = Keepers(places, self.leases, self._done)
        self._sending = Sending(places, self._done)

    def start(self, threads: Threads) -> None:
        """Start the threads. Raises CannotStart."""
        threads.start("leases", self.leases.run)
        for place in range(KEEPERS):
            threads.start(f"keep {place}", partial(self._keepers.run, place))
        threads.start("send", self._sending.run)

    def take(self, errand: Errand) -> None:
        """Does it soon; one that is in hand already is not taken twice."""
        key = _key(errand)
        if key in self._open:
            return
        self._open.add(key)
        if isinstance(errand, ToKeep):
            self._keepers.take(errand)
        else:
            self._sending.take(errand)

    @property
    def backlog(self) -> int:
        """Errands of which is not stored yet that they are done."""
        return len(self._open)

    def _done(self, errand: Errand, work: Work) -> None:
        """It is done, and stays open until that is stored (`settle`)."""
        self._submit(work)

    def settle(self, work: Settled) -> None:
        """What came of an errand is stored."""
        place = work.file if isinstance(work, FileKept) else (work.stream, work.start)
        if isinstance(work, FileKept) and work.state != "kept" and (work.project, place) in self._open:
            self.incomplete[work.stream] += 1
        self._open.discard((work.project, place))

    @property
    def stuck(self) -> int:
        """How many of these were tried so often that a daemon with nothing else to do leaves them to its successor."""
        return self._keepers.stuck

    @property
    def waiting(self) -> list[dict[str, Any]]:
        """The files that could not be kept yet, and why."""
        return self._keepers.waiting

    def stop(self) -> None:
        """End the children; what is not done is done by the next daemon."""
        self._sending.stop()
        self._keepers.stop(_STOP_SECONDS)
        self.leases.stop()


def _key(errand: Errand) -> tuple[Any, ...]:
    place = errand.file if isinstance(errand, ToKeep) else (errand.stream, errand.facts["start"])
    return (errand.project, place)
