"""The state of a run from the states of its streams. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from trackiod.views.attempts import Place, Stream

_GRAVITY = ("failed", "killed", "lost", "ended", "finished")
"""The gravest comes first: it is the run's state, and the first stream that had it, by time, is the cause."""


class RunState(NamedTuple):
    """running, finished, failed, killed, lost or ended, and why, in words."""

    state: str
    cause: str


def run_state(streams: Sequence[Stream], places: dict[str, Place]) -> RunState:
    """The state of the latest attempt; its ranks decide, forked workers do not."""
    ranks = [s for s in streams if s.role == "rank"]
    if not ranks:
        return RunState("running" if any(s.state is None for s in streams) else "finished", "")
    latest = max(places[s.id].attempt for s in ranks)
    ranks = [s for s in ranks if places[s.id].attempt == latest]
    if any(s.state is None for s in ranks):
        return RunState("running", "")
    first = min(ranks, key=lambda s: (_gravity(s.state), s.ended_ns or 0, s.rank))
    cause = first.cause
    if len(ranks) > 1 and first.state != "finished":
        cause = f"rank {first.rank}" + (f": {cause}" if cause else "")
    return RunState(str(first.state), cause)


def _gravity(state: str | None) -> int:
    return _GRAVITY.index(state) if state in _GRAVITY else len(_GRAVITY)
