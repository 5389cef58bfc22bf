"""Waiting until nothing of this host would be lost with it: for epilogs and stop hooks (`trackio drain`)."""

from __future__ import annotations

import time
from typing import Any

from trackio import inquiry, wire
from trackio.places import Places
from trackiod import control, orphans
from trackiod.sinks import directory

_LOOK_SECONDS = 0.2


def drain(where: Places, seconds: float) -> str:
    """Has everything stored, its files kept and its copies made; starts a daemon for as long as that takes if data wait
    and none runs. Returns an empty text, or after `seconds` a sentence that says what still waits. Raises TrackiodError
    or OSError."""
    deadline = time.monotonic() + seconds
    report = control.status(where)
    is_ours = False
    if report is None:
        if not orphans.find(where):
            if where.shared:
                directory.copy_out(where)
            return ""
        is_ours = control.start(where, max(1.0, deadline - time.monotonic())).is_new
    try:
        return _waited(where, deadline)
    finally:
        if is_ours:
            control.stop(where, "trackio drain")


def _waited(where: Places, deadline: float) -> str:
    inquiry.ask(where, wire.Copy(), control.ANSWER_SECONDS)
    is_asked_again = False
    while True:
        report = control.status(where)
        waiting = "the daemon does not answer" if report is None else _waiting(where, report)
        if not waiting:
            return ""
        if waiting == _NOT_COPIED and not is_asked_again:
            is_asked_again = True  # what was stored meanwhile
            inquiry.ask(where, wire.Copy(), control.ANSWER_SECONDS)
        if time.monotonic() >= deadline:
            return f"Not everything is safe yet: {waiting}."
        time.sleep(_LOOK_SECONDS)


_NOT_COPIED = "what was stored last is not copied yet"


def _waiting(where: Places, report: wire.StatusReport) -> str:
    """What is not done yet, the first of it, or an empty text."""
    daemon: dict[str, Any] = report.daemon
    if problem := daemon.get("problem"):
        return str(problem)
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
