"""When runs go where they outlive this host, and the child that carries them (`trackiod.sinks`). It may hang on a file
server; nobody waits for it but a daemon that stops, and that not for long.
"""

from __future__ import annotations

import logging
import subprocess
import time
from typing import Any

from trackio.places import Places
from trackiod import children

log = logging.getLogger("trackiod.copying")

EVERY_SECONDS = 60.0
_FIRST_SECONDS = 5.0
_SOON_SECONDS = 1.0
_SHARE = 0.05
"""of the time may be spent with copying: what takes long is done more rarely"""
_PATIENCE_SECONDS = 600.0
"""after which it is said that the copy takes long; it goes on, since the first one of a large store may"""
_UNKNOWN = -1
"""what a daemon before this one has copied"""
_LONGEST_PAUSE_SECONDS = 120.0
"""a host that is silent for long counts as gone (`elsewhere`)"""


class Copying:
    """Owns the child. Called from the loop; never waits, but in `end`."""

    def __init__(self, where: Places) -> None:
        self._places = where
        self._child: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._due_at = time.monotonic() + _FIRST_SECONDS
        self._ends = 0
        self._took = self._ended_at = 0.0
        """of the last copy"""
        self._failures = 0
        self._is_asked_again = False
        self._problem = ""
        self._copied_at: float | None = None
        self._stored = self._copying = 0
        self._copied = _UNKNOWN
        """how often something was stored: so far, before the copy in hand, before the last one"""

    def check(self, stored: int, ends: int, *, is_busy: bool, now: float) -> None:
        """Starts the child when it is time. `stored`: how often something was stored so far; `ends`: how many streams
        have ended; `is_busy`: whether there are streams, whose host is to be known as alive."""
        if not self._places.shared:
            return
        self._stored = stored
        if self._child is not None:
            self._look_after(self._child, now)
            return
        if ends != self._ends and not self._failures:
            self._ends = ends
            soon = max(now + _SOON_SECONDS, self._ended_at + min(self._took / _SHARE, _LONGEST_PAUSE_SECONDS))
            self._due_at = min(self._due_at, soon)
        if now >= self._due_at and (is_busy or self._is_behind):
            self._start(now)

    @property
    def is_in_use(self) -> bool:
        """Whether there is a folder that all hosts see."""
        return bool(self._places.shared)

    @property
    def _is_behind(self) -> bool:
        return self._stored != self._copied

    def hurry(self) -> None:
        """Copies as soon as can be: somebody waits for it."""
        self._due_at = 0.0
        self._is_asked_again = self._child is not None

    def facts(self, stored: int) -> dict[str, Any] | None:
        """What `status` says of it; None where nothing is copied."""
        if not self._places.shared:
            return None
        self._stored = stored
        ago = None if self._copied_at is None else round(time.monotonic() - self._copied_at, 1)
        return {
            "folder": self._places.shared,
            "copied_seconds_ago": ago,
            "is_behind": self._is_behind,
            "stored": self._stored,
            "copied": self._copied,
            "problem": self._problem,
        }

    def end(self, seconds: float) -> bool:
        """Copies what is stored now, once nothing is written any more. False if it took too long or failed."""
        if not self._places.shared:
            return True
        deadline = time.monotonic() + seconds
        if self._child is not None:
            self._child.kill()
        self._start(time.monotonic())
        if self._child is None:
            return False
        try:
            return self._child.wait(max(0.0, deadline - time.monotonic())) == 0
        except subprocess.TimeoutExpired:
            self._child.kill()
            return False

    def _start(self, now: float) -> None:
        try:
            self._child = children.start(self._places, "copy", stderr=children.PIPE)
        except OSError as error:
            self._note(str(error), now)
            return
        self._started_at, self._copying = now, self._stored

    def _look_after(self, child: subprocess.Popen[bytes], now: float) -> None:
        code = child.poll()
        if code is None:
            if now - self._started_at > _PATIENCE_SECONDS:
                self._problem = f"Copying to {self._places.shared} takes longer than {_PATIENCE_SECONDS:g} s."
            return
        assert child.stderr is not None
        said = child.stderr.read().decode(errors="replace").strip().splitlines()
        child.stderr.close()
        self._child = None
        self._note("" if code == 0 else (said[-1] if said else f"the child ended with {code}"), now)
        if self._is_asked_again:  # while it ran: what was stored meanwhile may be missing
            self._is_asked_again, self._due_at = False, 0.0

    def _note(self, problem: str, now: float) -> None:
        if problem and problem != self._problem:
            log.warning("runs are not copied: %s", problem)
        self._problem = problem
        self._failures = self._failures + 1 if problem else 0
        self._took, self._ended_at = now - self._started_at, now
        pause = max(EVERY_SECONDS, self._took / _SHARE)
        if problem:
            pause = 5.0 * 2 ** min(self._failures, 5)
        else:
            self._copied_at, self._copied = now, self._copying
        self._due_at = now + min(pause, _LONGEST_PAUSE_SECONDS)
