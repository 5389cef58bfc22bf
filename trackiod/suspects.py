"""Databases that look damaged, until a child has looked at them twice.

A file system that fails for a moment, and SQL of ours that cannot be run, look like damage from inside a connection.
So the connection is closed, and a child checks the file, with a pause between two looks; only that project waits
meanwhile. A child, since a check reads the whole file and may hang or crash. Belongs to the commit thread.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple, Protocol

from trackiod.errors import StoreDamaged, StoreError
from trackiod.store import additions, schema

log = logging.getLogger("trackiod.suspects")

_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 1.0, 600.0
_LOOKS = 2
_LEAST_SECONDS = 60.0
_SLOWEST_BYTES_A_SECOND = 5 << 20
_FORGET_SECONDS = 3600.0


class Verdict(IntEnum):
    """What a look at a database found; the exit code of the child."""

    WHOLE = 0
    DAMAGED = 10
    UNKNOWN = 11


def examine(path: str) -> tuple[Verdict, str]:
    """Read all of a database; return whether it is whole, and a sentence if it is not known to be. Never raises."""
    try:
        with closing(schema.open_for_reading(path, is_alone=True)) as connection:
            schema.project_of(connection, path)
            additions.check(connection, path)
            (found,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
    except StoreDamaged as error:
        return Verdict.DAMAGED, str(error)
    except sqlite3.Error as error:
        return (Verdict.DAMAGED if schema.is_damage(error) else Verdict.UNKNOWN), f"{path}: {error}"
    except (StoreError, OSError, UnicodeDecodeError) as error:
        return Verdict.UNKNOWN, str(error)
    return (Verdict.WHOLE, "") if found == "ok" else (Verdict.DAMAGED, f"{path} is damaged ({found}).")


def main(path: str) -> int:
    """The child: says what it found, and ends with that as its exit code."""
    verdict, sentence = examine(path)
    sys.stdout.write(sentence)
    return int(verdict)


class Look(Protocol):
    """One look at a database."""

    def poll(self) -> tuple[Verdict, str] | None:
        """What it found; None while it looks."""

    def close(self) -> None:
        """End it."""


class ChildLook:
    """A look by a child. Owns the process."""

    def __init__(self, path: str) -> None:
        """Raises OSError if no child can be started."""
        size = os.path.getsize(path)
        self._deadline = time.monotonic() + _LEAST_SECONDS + size / _SLOWEST_BYTES_A_SECOND
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-m", "trackiod", "check", path], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, cwd="/",
        )  # fmt: skip

    def poll(self) -> tuple[Verdict, str] | None:
        code = self._child.poll()
        if code is None and time.monotonic() < self._deadline:
            return None
        if code is None:
            self._child.kill()
        out, _ = self._child.communicate()
        if code in list(Verdict):
            return Verdict(code), out.decode(errors="replace")
        return Verdict.UNKNOWN, "the check took too long" if code is None else f"the check ended with code {code}"

    def close(self) -> None:
        self._child.kill()
        self._child.communicate()


class Judged(NamedTuple):
    """What came of a suspicion."""

    project: str
    is_damaged: bool
    sentence: str


@dataclass(slots=True)
class _Suspicion:
    why: str
    due: float
    look: Look | None = None
    damaged: int = 0


class Suspects:
    """Has projects' databases looked at. `close` ends the children."""

    def __init__(
        self, projects: str, look: Callable[[str], Look] = ChildLook, pause_seconds: float = _PAUSE_SECONDS
    ) -> None:
        self._projects = projects
        self._look = look
        self._pause_seconds = pause_seconds
        self._open: dict[str, _Suspicion] = {}
        self._cleared: dict[str, tuple[int, float]] = {}
        """how often a project was found whole, and when last"""

    def add(self, project: str, why: str) -> str:
        """Suspect a project's database, whose connection is closed; return the sentence that says so."""
        if project not in self._open:
            times, _ = self._cleared.get(project, (0, 0.0))
            pause = min(self._pause_seconds * (2**times - 1), _LONGEST_PAUSE_SECONDS)
            self._open[project] = _Suspicion(why.rstrip("."), time.monotonic() + pause)
        return self.sentence(project)

    def sentence(self, project: str) -> str:
        """Why a project waits; empty if it does not."""
        found = self._open.get(project)
        return f"project {project!r} waits until its database was looked at twice ({found.why})." if found else ""

    def was_whole(self, project: str) -> bool:
        """Whether a look at it lately found nothing, so that an error that comes back is not the file's."""
        return project in self._cleared

    @property
    def is_idle(self) -> bool:
        """Whether nothing is looked at."""
        return not self._open

    def step(self) -> list[Judged]:
        """Begin and end looks; return what is known now."""
        now = time.monotonic()
        self._cleared = {p: (n, at) for p, (n, at) in self._cleared.items() if now - at < _FORGET_SECONDS}
        judged = [found for project in list(self._open) if (found := self._step(project, now)) is not None]
        for found in judged:
            del self._open[found.project]
            if not found.is_damaged:
                times, _ = self._cleared.get(found.project, (0, 0.0))
                self._cleared[found.project] = (min(times + 1, 20), now)
        return judged

    def _step(self, project: str, now: float) -> Judged | None:
        suspicion = self._open[project]
        if suspicion.look is None:
            if now < suspicion.due:
                return None
            try:
                suspicion.look = self._look(schema.path_of(self._projects, project))
            except OSError as error:  # no process, no descriptor, or the file is gone
                return Judged(project, False, f"its database cannot be looked at: {error}")
        found = suspicion.look.poll()
        if found is None:
            return None
        suspicion.look = None
        verdict, sentence = found
        if verdict is not Verdict.DAMAGED:
            return Judged(project, False, sentence)
        suspicion.damaged += 1
        if suspicion.damaged >= _LOOKS:
            return Judged(project, True, sentence or f"{suspicion.why}.")
        suspicion.due = now + self._pause_seconds
        return None

    def close(self) -> None:
        for suspicion in self._open.values():
            if suspicion.look is not None:
                suspicion.look.close()
        self._open.clear()
