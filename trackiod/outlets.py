"""Everything that leaves this host, and what comes from others: copies in a folder that all hosts see, uploads to
targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from trackio import wire
from trackio.places import Places
from trackiod.copying import Copying
from trackiod.looking import Looking
from trackiod.uploading import Uploading
from trackiod.work import Work


class Outlets:
    """Called from the loop; never waits, but in `end`."""

    def __init__(self, where: Places, submit: Callable[[Work], None], commits: Mapping[str, int]) -> None:
        """`submit`: hands work to the commit thread; `commits`: how often it has changed each project so far."""
        self._copying = Copying(where)
        self.looking = Looking(where)
        self.uploading = Uploading(where, submit, commits)

    def meet(self, meta: Mapping[str, Any], secrets: Mapping[str, Any]) -> None:
        """A stream said HELLO."""
        if isinstance(meta.get("target"), dict) and meta["role"] == "rank":
            project, hook = str(meta["project"]), meta.get("webhook")
            self.uploading.add(project, meta["target"], secrets, is_whole=False, webhook=hook)

    def check(self, stored: int, ends: int, *, is_busy: bool, now: float) -> None:
        """Starts what it is time for. `stored`: how often something was stored so far; `ends`: how many streams have
        ended; `is_busy`: whether there are streams, whose host is to be known as alive."""
        self._copying.check(stored, ends, is_busy=is_busy, now=now)
        self.uploading.check(ends, now)
        self.looking.check(now)

    def copy(self) -> wire.Edited:
        """Copies as soon as can be: somebody waits for it."""
        self._copying.hurry()
        return wire.Edited(True)

    def sync(self, asked: wire.Sync) -> wire.Edited:
        """Uploads as soon as can be."""
        return self.uploading.sync(asked)

    def facts(self, stored: int) -> dict[str, Any]:
        """What `status` says of both."""
        return {"copies": self._copying.facts(stored), "uploads": self.uploading.facts()}

    @property
    def is_copying(self) -> bool:
        """Whether there is a folder that all hosts see."""
        return self._copying.is_in_use

    def end(self, seconds: float) -> bool:
        """Copies what is stored now, once nothing is written any more. False if it took too long or failed."""
        self.uploading.end()
        self.looking.end()
        return self._copying.end(seconds)
