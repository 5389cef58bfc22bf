"""What is blocked or was set aside in a data folder, and putting it right (`trackiod repair`)."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from trackio import inquiry, wire
from trackio.lookup import list_folder
from trackio.places import Places
from trackiod import control
from trackiod.errors import TrackiodError

_ANSWER_SECONDS = 60.0


class Findings(NamedTuple):
    """What is not as it should be."""

    blocked: list[dict[str, Any]]
    """streams that cannot be stored now, as the daemon says"""
    spools: list[str]
    """folders of streams that were set aside"""

    def lines(self) -> list[str]:
        """A sentence for each, and what to do."""
        lines = [
            f"Blocked: stream {one['stream'] or one['path']}: {one['sentence']}."
            f" Move it out of the way: trackiod repair --set-aside {one['stream']}"
            for one in self.blocked
        ]
        return lines + [f"Set aside: what a process left, in {path}" for path in self.spools]


def look(where: Places) -> Findings:
    """Return what is blocked or was set aside. Changes nothing."""
    report = control.status(where)
    folders = [os.path.join(parent, "damaged") for parent in (where.live, *where.roots)]
    spools = [os.path.join(folder, name) for folder in folders for name in sorted(list_folder(folder))]
    return Findings((report.daemon.get("blocked") or []) if report else [], spools)


def set_aside(where: Places, stream: str) -> str:
    """Have the daemon move a stream's folders out of the way; start one for that if none runs. Return the sentence that
    says where they are. Raises TrackiodError."""
    is_ours = control.start(where).is_new
    try:
        answer = inquiry.ask(where, wire.SetAside(stream), _ANSWER_SECONDS)
    finally:
        if is_ours:
            control.stop(where, "trackiod repair")
    if not isinstance(answer, wire.Edited):
        raise TrackiodError("trackiod does not answer; look at: trackiod logs")
    if not answer.done:
        raise TrackiodError(answer.sentence)
    return answer.sentence
