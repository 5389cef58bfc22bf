"""Which runs are to be looked at again at a target that may take changes in part, or late. Pure: time is an argument.

A run is in doubt from the moment a change of it begins: it is looked at before anything else if nobody knows how that
ended, and once more when nothing of it can be on its way any longer; one that goes on for days is looked at in between.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

SETTLED_SECONDS = 600.0
"""after a change, from which on nothing of it is on its way"""

Run = tuple[str, str]
"""project and run"""


class Doubt(NamedTuple):
    """About one run."""

    project: str
    run: str
    since: float
    last: float
    """when its last change began"""
    is_taken: bool = False
    """whether somebody knows that this was taken"""

    @property
    def whose(self) -> Run:
        return self.project, self.run


def begun(doubts: Sequence[Doubt], runs: Collection[Run], now: float) -> tuple[Doubt, ...]:
    """A change of these runs begins."""
    since = {one.whose: one.since for one in doubts}
    others = (one for one in doubts if one.whose not in runs)
    return (*others, *(Doubt(*run, since.get(run, now), now) for run in sorted(runs)))


def taken(doubts: Sequence[Doubt], runs: Collection[Run]) -> tuple[Doubt, ...]:
    """The change was."""
    return tuple(one._replace(is_taken=True) if one.whose in runs else one for one in doubts)


def due(doubts: Sequence[Doubt], now: float) -> list[Doubt]:
    """Those to look at now."""
    return [one for one in doubts if not one.is_taken or one.since < now - SETTLED_SECONDS]


def looked(doubts: Sequence[Doubt], seen: Collection[Doubt], now: float) -> tuple[Doubt, ...]:
    """After that."""
    kept = [one for one in doubts if one not in seen]
    for one in seen:
        if not one.is_taken:
            kept.append(one._replace(since=now, last=now, is_taken=True))
        elif one.last >= now - SETTLED_SECONDS:
            kept.append(one._replace(since=one.last))
    return tuple(kept)


def look_at(doubts: Sequence[Doubt]) -> float:
    """When to look at the next; 0: never."""
    return min((one.since + SETTLED_SECONDS for one in doubts), default=0.0)
