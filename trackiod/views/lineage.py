"""Which runs go on with which. Pure.

`resume="allow"` asks for the newest run of that name. Where the client could not learn its id (no daemon
answered), it gave out a new one; readers show both as one run. Decided when reading, so it does not depend
on which of the two reached the store first.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class RunRow(NamedTuple):
    """A run as stored. `resumes`: it asked to go on with the newest earlier run of its name."""

    id: str
    name: str
    group: str | None
    created_ns: int
    resumes: bool


def roots(rows: Iterable[RunRow]) -> dict[str, str]:
    """For each run the id of the run it is shown as: its own, or that of the first in its chain."""
    newest: dict[str, str] = {}
    root_of: dict[str, str] = {}
    for row in sorted(rows, key=lambda row: (row.created_ns, row.id)):
        root = newest.get(row.name, row.id) if row.resumes else row.id
        root_of[row.id] = newest[row.name] = root
    return root_of
