"""Waiting until nothing of this host would be lost with it: for epilogs and stop hooks (`trackio drain`)."""

from __future__ import annotations

import os
import time
from typing import Any

from trackio import inquiry, wire
from trackio.places import Places
from trackiod import control, orphans
from trackiod.errors import TrackiodError

_LOOK_SECONDS = 0.2
_NOT_COPIED = "what was stored last is not copied yet"


def drain(where: Places, seconds: float) -> str:
    """Has everything stored, its files kept and its copies made; starts a daemon for as long as that takes if none
    runs. Returns an empty text, or after `seconds` a sentence that says what still waits."""
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
    return waiting and f"Not everything is safe yet: {waiting}."


def _waited(where: Places, deadline: float) -> str:
    """Waits; returns what is not done at the deadline, or an empty text."""
    inquiry.ask(where, wire.Copy(), control.ANSWER_SECONDS)
    is_asked_again = False
    while True:
        report = control.status(where)
        waiting = "the daemon does not answer" if report is None else _waiting(where, report)
        if not waiting:
            return ""
        if waiting == _NOT_COPIED and not is_asked_again:
            is_asked_again = True  # for what was stored meanwhile
            inquiry.ask(where, wire.Copy(), control.ANSWER_SECONDS)
        if time.monotonic() >= deadline:
            return waiting
        time.sleep(_LOOK_SECONDS)


def _waiting(where: Places, report: wire.StatusReport) -> str:
    """What is not done yet, the first of it, or an empty text."""
    daemon: dict[str, Any] = report.daemon
    if problem := daemon.get("problem"):
        return str(problem).rstrip(".")
    live = {stream["stream"] for stream in report.streams}
    left = [found for found in orphans.find(where) if found.id not in live and found.meta.get("role") != "sampler"]
    if left:
        return f"of {len(left)} process(es) that ended the data wait to be stored"
    if behind := sum(stream["lag_bytes"] for stream in report.streams):
        return f"{behind:,} bytes wait to be stored"
    if daemon["errands"]:
        return f"{daemon['errands']} file(s) wait to be kept or alert(s) to be sent"
    copies = daemon.get("copies")
    if copies and (copies["problem"] or copies["is_behind"]):
        return str(copies["problem"] or _NOT_COPIED).rstrip(".")
    return ""
