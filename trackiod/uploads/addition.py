"""What a run, or a version of an artifact, adds to a change of a target."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from trackiod.uploads.target import RunState


class Addition(NamedTuple):
    """Files, and how far the run is uploaded once they are taken."""

    project: str
    run: str
    adds: dict[str, str | bytes]
    state: RunState
    rows: int
    deletes: tuple[str, ...] = ()
    seals: Mapping[str, bytes] = {}
    """what says that the files are there"""

    @property
    def is_news(self) -> bool:
        """Whether there is something to send; else only the state is another."""
        return bool(self.adds or self.seals)
