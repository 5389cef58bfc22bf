"""The commits that a host may make to a target now, on disk: what sends rows and what sends artifacts share them, and
they outlive both.

Artifacts leave one for rows; but where rows take them all, every fifth is theirs: rows wait for them then, as long as
they still ask.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from trackio.places import make_private, replace
from trackiod.uploads import pacing
from trackiod.uploads.pacing import Budget
from trackiod.uploads.target import ARTIFACTS, ROWS

_ROWS_AT_MOST = 4
"""commits one after another while artifacts wait"""
_YIELD_SECONDS = 60.0


class _Content(NamedTuple):
    tokens: float
    at: float
    rows: int = 0
    """commits of rows since the last one of artifacts"""
    asked_at: float = 0.0
    """when artifacts asked in vain"""


class Purse:
    """Of one target. `hosts`, `node`: how many share its commits, and which of them this is."""

    def __init__(self, folder: str, hosts: int, node: int | None, clock: Callable[[], float]) -> None:
        self._path = os.path.join(folder, "budget.json")
        self._hosts = hosts
        self._node = node or 0
        self._clock = clock

    @property
    def left(self) -> int | None:
        """How many at once; None before the first."""
        return max(0, int(self._content().tokens)) if os.path.exists(self._path) else None

    def seconds_until_one(self, lane: str) -> float:
        """Until rows, or artifacts, may commit. Raises OSError."""
        with self._locked():
            content = self._content()
            budget, now = Budget(content.tokens, content.at), content.at
            is_artifacts_turn = content.rows >= _ROWS_AT_MOST
            pause = budget.seconds_until(1 if lane == ROWS or is_artifacts_turn else 2, self._hosts)
            if lane == ARTIFACTS:
                content = content._replace(asked_at=now if pause else 0.0)
            elif is_artifacts_turn and now - content.asked_at < 2 / pacing.rate(self._hosts):
                pause = max(pause, _YIELD_SECONDS)
            self._write(content)
        return pause

    def take(self, lane: str) -> None:
        """Before a commit, since one that was taken though nobody heard of it counts too. Raises OSError."""
        with self._locked():
            content = self._content()
            rows = content.rows + 1 if lane == ROWS else 0
            asked_at = content.asked_at if lane == ROWS else 0.0
            self._write(content._replace(tokens=content.tokens - 1, rows=rows, asked_at=asked_at))

    def give_back(self) -> None:
        """A commit that was not taken. Raises OSError."""
        with self._locked():
            content = self._content()
            self._write(content._replace(tokens=content.tokens + 1))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        make_private(os.path.dirname(self._path))
        with open(f"{self._path}.lock", "w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _content(self) -> _Content:
        """As it is now; a clock that was ahead holds nothing up, since what is read is written with the time of now."""
        now = self._clock()
        try:
            with open(self._path, encoding="utf-8") as file:
                values = json.load(file)
            known = _Content(**{name: value for name, value in values.items() if name in _Content._fields})
            return known._replace(tokens=Budget(known.tokens, known.at).refilled(now, self._hosts).tokens, at=now,
                                  asked_at=min(known.asked_at, now))  # fmt: skip
        except (OSError, ValueError, TypeError, AttributeError):
            return _Content(*pacing.first_budget(now, self._hosts, self._node))

    def _write(self, content: _Content) -> None:
        replace(self._path, json.dumps(content._asdict()).encode(), is_safe=True)
