"""Waiting until what is logged is stored, or uploaded: for those who want to know it before they go on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from trackio import inquiry, voice, wire
from trackio.places import Places
from trackio.stream import Stream
from trackio.targets import Wish

_LOOK_SECONDS = 0.3
_ANSWER_SECONDS = 5.0
STORED, UPLOADED = "stored", "uploaded"
_SILENT = "trackiod does not answer; see: trackiod logs"


class Progress(NamedTuple):
    """How far an upload is."""

    rows_waiting: int
    problem: str
    """what keeps it from going on, for now"""
    is_parked: bool
    """nothing of it goes on before somebody does something"""
    is_done: bool


def until(what: str, stream: Stream, project: str, seconds: float) -> None:
    """Waits until all that a stream holds is `stored` by the daemon, or also `uploaded` to the targets, or until the
    time is over. Says in one line if it is not."""
    deadline = time.monotonic() + seconds
    if what not in (STORED, UPLOADED):
        voice.warn_once(f"wait={what}", f"wait={what!r} is neither 'stored' nor 'uploaded'; nothing is waited for.")
    elif not stream.deliver(seconds, is_patient=True):
        voice.warn(f"not everything is stored within {seconds:g} s; it is kept, and stored later.")
    elif what == UPLOADED:
        problem = uploaded(stream.places, project, Wish({}, {}), deadline)
        if problem:
            voice.warn(f"not everything is uploaded: {problem}")


def uploaded(where: Places, project: str, wish: Wish, deadline: float) -> str:
    """Has a project uploaded, to the target wished for or to those that it has, and waits until that is done; returns a
    sentence if it is not."""
    for now in progress(where, project, wish):
        if now.is_done or now.is_parked:
            return "" if now.is_done else now.problem
        if time.monotonic() >= deadline:
            return f"{now.problem} The time is over; it goes on in the background.".strip()
    return ""


def ask(where: Places, project: str, wish: Wish, *, is_retry: bool = False) -> str:
    """Asks the daemon to upload now. Returns a sentence if it will not."""
    answer = inquiry.ask(where, wire.Sync(project, wish.facts, wish.secrets, is_retry), _ANSWER_SECONDS)
    if not isinstance(answer, wire.Edited):
        return _SILENT
    return "" if answer.done else answer.sentence


def progress(where: Places, project: str, wish: Wish, *, is_retry: bool = False) -> Iterator[Progress]:
    """Asks the daemon to upload, and says how far that is, again and again. Another daemon is asked anew: it knows
    neither what was asked of the one before nor a token that only we have."""
    asked: dict[str, int] = {}
    life: Any = None
    while True:
        report = inquiry.ask(where, wire.StatusQuery(), _ANSWER_SECONDS)
        if isinstance(report, wire.StatusReport) and report.daemon.get("started_ns") != life:
            if problem := ask(where, project, wish, is_retry=is_retry):
                yield Progress(0, problem, problem != _SILENT, False)
            else:
                asked, life = {}, report.daemon.get("started_ns")
        elif isinstance(report, wire.StatusReport):
            found = [
                one for one in report.daemon.get("uploads", ())
                if project in ("", *one["projects"]) and wish.facts.get("url", one["target"]) == one["target"]
            ]  # fmt: skip
            asked = asked or {one["target"]: one["asked"] for one in found}
            left = [one for one in found if one["served"] < asked.get(one["target"], 0)]
            problems = [one["problem"] for one in left if one["problem"]]
            is_parked = bool(left) and all(one["state"] == "parked" for one in left)
            yield Progress(sum(one["rows_waiting"] for one in left), " ".join(problems), is_parked, not left)
            time.sleep(_LOOK_SECONDS)
        else:
            yield Progress(0, _SILENT, False, False)
            time.sleep(_LOOK_SECONDS)
