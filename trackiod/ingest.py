"""What to do with a batch that arrived. Pure: offsets in, a verdict out.

The committed offset comes from the database, inside the transaction that will store the batch, so a
duplicate, a replay after a restart, or a second daemon on one folder cannot double or skip a byte.
"""

from __future__ import annotations

from typing import NamedTuple


class Refuse(NamedTuple):
    """The sender still holds what lies before: it shall go on from `committed`."""

    committed: int


class Duplicate(NamedTuple):
    """All of it is stored already."""

    committed: int


class Store(NamedTuple):
    """Store the bytes from offset `start` on. [hole_start, start) is lost for good; empty if they are equal."""

    start: int
    hole_start: int

    @property
    def has_hole(self) -> bool:
        return self.hole_start < self.start


Verdict = Refuse | Duplicate | Store


def judge(committed: int, start: int, end: int, oldest: int) -> Verdict:
    """The verdict on the range [start, end) from a sender that holds nothing before `oldest`."""
    if end <= committed:
        return Duplicate(committed)
    if start <= committed:
        return Store(committed, committed)
    if oldest <= committed:
        return Refuse(committed)
    if oldest < start:
        return Refuse(oldest)
    return Store(start, committed)
