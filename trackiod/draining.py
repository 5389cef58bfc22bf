"""Waiting until nothing of this host would be lost with it: for epilogs and stop hooks (`trackio drain`)."""

from __future__ import annotations

import os
import time
from typing import Any

from trackio import inquiry, wire
from trackio.lookup import is_there, sentence_of
from trackio.places import Places
from trackiod import control, library, orphans
from trackiod.errors import TrackiodError

_LOOK_SECONDS = 0.2
_BLOCKED_TRIES = 3


def drain(where: Places, seconds: float) -> str:
    """Has everything stored, its files kept and its copies made; starts a daemon for as long as that takes if none
    runs. Returns an empty text, or a sentence that says what still waits after `seconds`, or was not kept."""
    deadline = time.monotonic() + seconds
    is_ours = False
    try:
        if control.status(where) is None:
            if not any(_left_in(where)) and not is_there(os.path.join(where.live, "store.id")):
                return ""  # nothing was ever logged here
            is_ours = control.start(where, max(1.0, seconds)).is_new
        waiting = _waited(where, deadline)
    except TrackiodError as error:
        waiting = str(error).rstrip(".")
    except OSError as error:
        waiting = sentence_of(error)
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
        is_late = time.monotonic() >= deadline
        if not waiting or is_late:
            blocked = _blocked_sentence(report, 1 if is_late else _BLOCKED_TRIES) if report is not None else ""
            return blocked or waiting
        time.sleep(_LOOK_SECONDS)


class _Goal:
    """What is to be safe."""

    def __init__(self, where: Places, report: wire.StatusReport) -> None:
        self._where = where
        self._heads = {stream["stream"]: stream["head"] for stream in report.streams}
        self._left = _left_in(where) - self._heads.keys()
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
        self._left &= _left_in(self._where) - self._heads.keys()
        blocked = _blocked(report, _BLOCKED_TRIES)
        waiting = self._left - {one["stream"] or one["path"] for one in blocked}
        if waiting and all(one["stream"] for one in blocked):  # else a folder of streams cannot be listed there
            return f"of {len(waiting)} process(es) that ended the data wait to be stored"
        behind = (max(0, self._heads.get(one["stream"], 0) - one["committed"]) for one in report.streams)
        if size := sum(behind):
            return f"{size:,} bytes wait to be stored"
        if report.daemon["errands"]:
            why = "".join(f" ({file['path']}: {file['problem']})" for file in report.daemon["waiting_files"][:1])
            return f"{report.daemon['errands']} file(s) wait to be kept or alert(s) to be sent{why}"
        return ""


def _left_in(where: Places) -> set[str]:
    """The streams that lie on this host, but for samplers', and the folders of streams that cannot be read."""
    scan = orphans.scan(where)
    found = {found.id for found in scan.found if found.meta.get("role") != "sampler"}
    return found | scan.unreadable.keys() | {damaged.id for damaged in scan.damaged}


def _blocked(report: wire.StatusReport, least_tries: int) -> list[dict[str, Any]]:
    """What the daemon has tried to store so often, and tries on at growing intervals."""
    blocked: list[dict[str, Any]] = report.daemon.get("blocked") or []
    return [one for one in blocked if one["tries"] >= least_tries]


def _blocked_sentence(report: wire.StatusReport, least_tries: int) -> str:
    """What cannot be read or stored, so that nobody waits for it any more; an empty text if nothing."""
    blocked = _blocked(report, least_tries)
    if not blocked:
        return ""
    first = blocked[0]
    who = f"stream {first['stream']} of project {first['project']!r}" if first["project"] else "what a process left"
    more = f", and {len(blocked) - 1} more" if len(blocked) > 1 else ""
    return f"{who} cannot be stored: {first['sentence']}{more} (see: trackiod repair)"
