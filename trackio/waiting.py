"""Waiting until what is logged is stored, or uploaded: for those who want to know it before they go on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple

from trackio import inquiry, voice, wire
from trackio.places import Places
from trackio.stream import Stream
from trackio.targets import Wish

_LOOK_SECONDS = 0.3
_ANSWER_SECONDS = 5.0
STORED, UPLOADED = "stored", "uploaded"


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
        problem = ask(stream.places, project, Wish({}, {})) or uploaded(stream.places, project, deadline)
        if problem:
            voice.warn(f"not everything is uploaded: {problem}")


def uploaded(where: Places, project: str, deadline: float, target: str = "") -> str:
    """Waits until what was asked for is done, to one target or to all; returns a sentence if it is not."""
    for now in progress(where, project, target):
        if now.is_done or now.is_parked:
            break
        if time.monotonic() >= deadline:
            return f"{now.problem} The time is over; it goes on in the background.".strip()
    return "" if now.is_done else now.problem


def ask(where: Places, project: str, wish: Wish, *, is_retry: bool = False) -> str:
    """Asks the daemon to upload now: to the target wished for, or to those that the project has. Returns a sentence if
    it will not."""
    answer = inquiry.ask(where, wire.Sync(project, wish.facts, wish.secrets, is_retry), _ANSWER_SECONDS)
    if not isinstance(answer, wire.Edited):
        return "trackiod does not answer; see: trackiod logs"
    return "" if answer.done else answer.sentence


def progress(where: Places, project: str, target: str = "") -> Iterator[Progress]:
    """How far what was asked for is, again and again: of one target, or of all that the project has."""
    asked: dict[str, int] = {}
    while True:
        report = inquiry.ask(where, wire.StatusQuery(), _ANSWER_SECONDS)
        if isinstance(report, wire.StatusReport):
            found = [
                one for one in report.daemon.get("uploads", ())
                if project in ("", *one["projects"]) and target in ("", one["target"])
            ]  # fmt: skip
            asked = asked or {one["target"]: one["asked"] for one in found}
            left = [one for one in found if one["served"] < asked.get(one["target"], 0)]
            problems = [one["problem"] for one in left if one["problem"]]
            is_parked = bool(left) and all(one["state"] == "parked" for one in left)
            yield Progress(sum(one["rows_waiting"] for one in left), " ".join(problems), is_parked, not left)
        else:
            yield Progress(0, "trackiod does not answer.", False, False)
        time.sleep(_LOOK_SECONDS)
