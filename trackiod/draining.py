"""Waiting until nothing of this host would be lost with it: for epilogs and stop hooks (`trackio drain`)."""

from __future__ import annotations

import os
import time
from typing import Any

from trackio import inquiry, wire
from trackio.places import Places
from trackiod import control, library, orphans
from trackiod.errors import TrackiodError

_LOOK_SECONDS = 0.2


def drain(where: Places, seconds: float) -> str:
    """Has everything stored, its files kept and its copies made; starts a daemon for as long as that takes if none
    runs. Returns an empty text, or a sentence that says what still waits after `seconds`, or was not kept."""
    deadline = time.monotonic() + seconds
    is_ours = False
    try:
        if control.status(where) is None:
            if not orphans.find(where) and not os.path.exists(os.path.join(where.live, "store.id")):
                return ""  # nothing was ever logged here
            is_ours = control.start(where, max(1.0, seconds)).is_new
        waiting = _waited(where, deadline)
    except TrackiodError as error:
        waiting = str(error).rstrip(".")
    finally:
        if is_ours:
            control.stop(where, "trackio drain")
    if waiting:
        return f"Not everything is safe yet: {waiting}."
    lost = library.incomplete(where.projects)
    more = f" So are {len(lost) - 1} more; trackio status names them." if lost[1:] else ""
    return f"Everything that was left is stored, but not all was kept. {lost[0]}{more}" if lost else ""


def _waited(where: Places, deadline: float) -> str:
    """Waits for what is there now: what a process logs meanwhile is not waited for. Returns what is not done at the
    deadline, or an empty text."""
    goal: _Goal | None = None
    while True:
        report = control.status(where)
        if report is not None:
            goal = goal or _Goal(where, report)
        waiting = "the daemon does not answer" if report is None or goal is None else goal.waiting(report)
        if not waiting or time.monotonic() >= deadline:
            return waiting
        time.sleep(_LOOK_SECONDS)


class _Goal:
    """What is to be safe."""

    def __init__(self, where: Places, report: wire.StatusReport) -> None:
        self._where = where
        self._heads = {stream["stream"]: stream["head"] for stream in report.streams}
        left = (found for found in orphans.find(where) if found.meta.get("role") != "sampler")
        self._left = {found.id for found in left} - self._heads.keys()
        self._stored: int | None = None
        """how often something had been stored when all of it was"""

    def waiting(self, report: wire.StatusReport) -> str:
        """What is not done yet, the first of it, or an empty text."""
        daemon: dict[str, Any] = report.daemon
        if problem := daemon.get("problem"):
            return str(problem).rstrip(".")
        if self._stored is None and (waiting := self._storing(report)):
            return waiting
        copies = daemon.get("copies")
        if copies is None:
            return ""
        if self._stored is None:
            self._stored = copies["stored"]
            inquiry.ask(self._where, wire.Copy(), control.ANSWER_SECONDS)
        if copies["copied"] >= self._stored:
            return ""
        return str(copies["problem"] or "what was stored last is not copied yet").rstrip(".")

    def _storing(self, report: wire.StatusReport) -> str:
        for one in report.streams:
            if one["stream"] in self._left:  # it lives; the daemon had not met it yet
                self._heads[one["stream"]] = one["head"]
        self._left &= {found.id for found in orphans.find(self._where)} - self._heads.keys()
        if self._left:
            return f"of {len(self._left)} process(es) that ended the data wait to be stored"
        behind = (max(0, self._heads.get(one["stream"], 0) - one["committed"]) for one in report.streams)
        if waiting := sum(behind):
            return f"{waiting:,} bytes wait to be stored"
        if report.daemon["errands"]:
            why = "".join(f" ({file['path']}: {file['problem']})" for file in report.daemon["waiting_files"][:1])
            return f"{report.daemon['errands']} file(s) wait to be kept or alert(s) to be sent{why}"
        return ""
