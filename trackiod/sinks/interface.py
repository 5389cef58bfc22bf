"""What a target is to the uploader. Each kind of target is one file beside this one."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol


class Change(NamedTuple):
    """What one commit does: files by their path at the target, each a path here or bytes; and what goes. All or
    nothing, if the target can; else files, then `seals`, then what goes."""

    message: str
    adds: Mapping[str, str | bytes]
    seals: Mapping[str, bytes] = {}
    """files that say that others are there"""
    deletes: Sequence[str] = ()
    """paths that go, if they are there"""
    parent: str = ""
    """the target's state that it is made for; on another one it is refused, and is to be made anew"""


def size_of(data: str | bytes) -> int:
    """Of a file of a change."""
    return os.path.getsize(data) if isinstance(data, str) else len(data)


class Verdict(NamedTuple):
    """What an error means."""

    kind: str
    """`again`: later, as it is; `smaller`: less at once; `rebase`: at once, after another look; `park`: not before
    somebody has done something"""
    sentence: str
    seconds: float | None = None
    """how long the target asks to wait"""


AGAIN, SMALLER, REBASE, PARK = "again", "smaller", "rebase", "park"


class Sink(Protocol):
    """A target that is open."""

    name: str

    @property
    def kind(self) -> str:
        """As a sentence calls it."""

    @property
    def is_atomic(self) -> bool:
        """Whether a change is taken as a whole or not at all."""

    @property
    def title(self) -> str:
        """What readers call the target. Raises what `classify` knows."""

    def prepare(self, *, private: bool) -> None:
        """Makes the target if it is not there. Raises what `classify` knows."""

    def head(self) -> str:
        """The target's state now. Raises what `classify` knows."""

    def read(self, path: str) -> bytes | None:
        """A small file; None if there is none. Raises what `classify` knows."""

    def names(self, folder: str) -> list[str]:
        """The paths of all files below a folder. Raises what `classify` knows."""

    def send(self, change: Change) -> None:
        """Commits. To send what is there already changes nothing. Raises what `classify` knows."""

    def classify(self, error: Exception) -> Verdict:
        """What an error of the others means."""
