"""The commits that a host may make to a target now, on disk: what sends rows and what sends artifacts share them, and
they outlive both."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable

from trackio.places import make_private
from trackiod.uploads import pacing
from trackiod.uploads.pacing import Budget


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
        return max(0, int(self._budget().tokens)) if os.path.exists(self._path) else None

    def seconds_until(self, commits: int) -> float:
        """Until there are so many, or as many as it holds. Raises OSError."""
        if not os.path.exists(self._path):
            self.take(0)  # from now on it fills
        return self._budget().seconds_until(commits, self._hosts)

    def take(self, commits: float = 1) -> None:
        """Before a commit, since one that was taken though nobody heard of it counts too. Raises OSError."""
        make_private(os.path.dirname(self._path))
        with open(f"{self._path}.lock", "w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            now = self._budget()
            with open(f"{self._path}.new", "w", encoding="utf-8") as file:
                json.dump({"tokens": now.tokens - commits, "at": now.at}, file)
                file.flush()
                os.fsync(file.fileno())
            os.rename(f"{self._path}.new", self._path)

    def give_back(self) -> None:
        """A commit that was not taken."""
        self.take(-1)

    def _budget(self) -> Budget:
        now = self._clock()
        try:
            with open(self._path, encoding="utf-8") as file:
                return Budget(**json.load(file)).refilled(now, self._hosts)
        except (OSError, ValueError, TypeError):
            return pacing.first_budget(now, self._hosts, self._node)
