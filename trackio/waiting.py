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
_GONE_SECONDS = 30.0
"""of silence, after which no daemon is waited for any more"""
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
    life = silent_since = None
    while True:
        report, problem = inquiry.ask(where, wire.StatusQuery(), _ANSWER_SECONDS), _SILENT
        if isinstance(report, wire.StatusReport):
            if report.daemon["started_ns"] == life:
                yield _progress(report, project, wish, asked)
                time.sleep(_LOOK_SECONDS)
                continue
            problem = ask(where, project, wish, is_retry=is_retry)
            if not problem:
                life, silent_since = report.daemon["started_ns"], None
                asked.clear()
                continue
        silent_since = silent_since or time.monotonic()
        is_gone = time.monotonic() - silent_since > _GONE_SECONDS
        yield Progress(0, problem, problem != _SILENT or is_gone, False)
        time.sleep(_LOOK_SECONDS)


def _progress(report: wire.StatusReport, project: str, wish: Wish, asked: dict[str, int]) -> Progress:
    """`asked` is kept from look to look: what was asked of each target when they began."""
    found = [
        one for one in report.daemon.get("uploads", ())
        if project in ("", *one["projects"]) and wish.facts.get("url", one["target"]) == one["target"]
    ]  # fmt: skip
    if not asked:
        asked.update({one["target"]: one["asked"] for one in found})
    left = [one for one in found if one["served"] < asked.get(one["target"], 0)]
    problems = [one["problem"] for one in left if one["problem"]]
    is_parked = bool(left) and all(one["state"] == "parked" for one in left)
    return Progress(sum(one["rows_waiting"] for one in left), " ".join(problems), is_parked, not left)
