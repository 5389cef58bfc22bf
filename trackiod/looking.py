"""What other hosts have copied is taken in before a run is sought that goes on (`elsewhere`): by a child, since a file
server may hang. Whoever asks waits a little, and is answered in any case."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Callable

from trackio.places import Places
from trackiod import children

log = logging.getLogger("trackiod.looking")

_FRESH_SECONDS = 5.0
"""what was taken in so short ago need not be looked for again"""
_PATIENCE_SECONDS = 4.0
"""for one look; the asking process waits five"""


class Looking:
    """Owns the child. Called from the loop; never waits."""

    def __init__(self, where: Places) -> None:
        self._places = where
        self._child: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._seen_at: float | None = None
        self._asked: list[Callable[[], None]] = []

    @property
    def is_waited_for(self) -> bool:
        return bool(self._asked)

    def first(self, then: Callable[[], None], now: float) -> None:
        """Calls `then` once other hosts' copies are taken in; at once where there are none."""
        if not self._places.shared or (self._seen_at is not None and now - self._seen_at < _FRESH_SECONDS):
            then()
            return
        if self._child is None:
            self._start(now)
        self._asked.append(then)

    def check(self, now: float) -> None:
        """Looks after the child."""
        if self._child is not None and (code := self._child.poll()) is not None:
            self._child = None
            self._seen_at = now if code == 0 else None
        if self._child is None or now - self._started_at > _PATIENCE_SECONDS:
            asked, self._asked = self._asked, []
            for then in asked:
                then()

    def end(self) -> None:
        """What it takes in can be taken in again."""
        if self._child is not None:
            self._child.kill()

    def _start(self, now: float) -> None:
        self._started_at = now
        try:
            self._child = children.start(self._places, "look")
        except OSError as error:
            log.warning("what other hosts copied cannot be looked at: %s", error)
