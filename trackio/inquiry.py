"""One question to the daemon, one answer, over a connection of its own."""

from __future__ import annotations

import time

from trackio import places, voice, wire
from trackio.link import ForeignPeer, Link, LinkError
from trackio.places import Places

Question = (
    wire.Find
    | wire.StatusQuery
    | wire.Stop
    | wire.Edit
    | wire.SamplerQuery
    | wire.Copy
    | wire.Sync
    | wire.Protect
    | wire.SetAside
)


def ask(where: Places, question: Question, seconds: float) -> wire.Message | None:
    """The daemon's answer, or None if there is no daemon or it does not answer in time. Never raises."""
    endpoint = places.read_endpoint(where.endpoint)
    if endpoint is None and (problem := places.endpoint_problem(where.endpoint)):
        _distrust(problem)
    if endpoint is None or endpoint.boot_id != places.boot_id():
        return None
    try:
        link = Link(endpoint.socket)
    except ForeignPeer as error:
        _distrust(str(error))
        return None
    except LinkError:
        return None
    try:
        return _exchange(link, question, time.monotonic() + seconds)
    except LinkError:
        return None
    finally:
        link.close()


def _distrust(problem: str) -> None:
    voice.warn_once("distrust", f"{problem}; it is not asked.")


def _exchange(link: Link, question: Question, deadline: float) -> wire.Message | None:
    asked = False
    while (left := deadline - time.monotonic()) > 0:
        link.wait(left)
        if answers := link.receive():
            return answers[0]
        link.flush()
        if link.is_clear and not asked:
            link.send(question)
            asked = True
    return None
