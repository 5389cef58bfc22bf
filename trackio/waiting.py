"""`finish(wait=...)`: for those who want to know that a run is stored, or uploaded, before they go on."""

from __future__ import annotations

import time

from trackio import inquiry, voice, wire
from trackio.stream import Stream

_LOOK_SECONDS = 0.3
_ANSWER_SECONDS = 5.0
STORED, UPLOADED = "stored", "uploaded"


def until(what: str, stream: Stream, project: str, seconds: float) -> None:
    """Waits until all that a stream holds is `stored` by the daemon, or also `uploaded` to the targets, or until the
    time is over. Says in one line if it is not."""
    deadline = time.monotonic() + seconds
    if what not in (STORED, UPLOADED):
        voice.warn_once(f"wait={what}", f"wait={what!r} is neither 'stored' nor 'uploaded'; nothing is waited for.")
    elif not stream.deliver(seconds):
        voice.say(f"not everything is stored within {seconds:g} s; it is kept, and stored later.")
    elif what == UPLOADED:
        problem = _not_uploaded(stream, project, deadline)
        if problem:
            voice.say(f"not everything is uploaded: {problem}")


def _not_uploaded(stream: Stream, project: str, deadline: float) -> str:
    answer = inquiry.ask(stream.places, wire.Sync(project, {}, {}), _ANSWER_SECONDS)
    if isinstance(answer, wire.Edited) and not answer.done:
        return answer.sentence
    asked: dict[str, int] = {}
    while True:
        report = inquiry.ask(stream.places, wire.StatusQuery(), _ANSWER_SECONDS)
        if isinstance(report, wire.StatusReport):
            targets = [one for one in report.daemon.get("uploads", ()) if project in one["projects"]]
            for one in targets:
                if one["state"] == "parked":
                    return str(one["problem"])
            asked = asked or {one["target"]: one["asked"] for one in targets}
            if all(one["served"] >= asked.get(one["target"], 0) for one in targets):
                return ""
        if time.monotonic() >= deadline:
            return "the time is over; it goes on in the background."
        time.sleep(_LOOK_SECONDS)
