"""What the files of a run are called at a target. Pure.

Where a change is taken whole or not at all, its files are called by their number, and those that say how things are now
by nothing: made again, it writes the same paths. Elsewhere every change has a tag, so that no name is used twice: what
comes late can neither replace nor take away what counts.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from trackio.names import derived_id
from trackiod.uploads.cursor import Cursor, Place

KINDS = ("cursors", "metrics", "system", "alerts", "runs")
"""of files whose names have a number and a tag"""
_NAMED_BY_RUN = {"cursors": ".json", "runs": ".parquet"}
_PLAIN = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")


def folder_of(project: str, run: str) -> str:
    """What a run's folders at a target are called: by project and id, where these are names everywhere."""
    return f"{_plain('project', project)}/{_plain('run', run)}"


def _plain(what: str, name: str) -> str:
    return name if _PLAIN.fullmatch(name) else derived_id(what, name)


class Names(NamedTuple):
    """Of one store's files of a run."""

    project: str
    run: str
    store: str

    @property
    def folder(self) -> str:
        return folder_of(self.project, self.run)

    def path(self, place: Place) -> str:
        """Of a file."""
        name = self.store
        if place.tag:
            name += f"-{place.number:06d}-{place.tag}"
        elif place.kind not in _NAMED_BY_RUN:
            name += f"-{place.number:06d}"
        return f"{place.kind}/{self.folder}/{name}{_NAMED_BY_RUN.get(place.kind, '.parquet')}"

    def cursor_path(self, cursor: Cursor) -> str:
        return self.path(Place("cursors", cursor.next_number - 1, cursor.tag))

    def paths(self, cursor: Cursor) -> list[str]:
        """All that a cursor speaks of, itself too."""
        if not cursor.next_number:
            return []
        metrics = [self.path(file.place) for file in cursor.files]
        return [self.cursor_path(cursor), *metrics, *map(self.path, cursor.others)]

    def is_ours(self, path: str) -> bool:
        """Whether a path at the target is that of such a file."""
        kind, _, rest = path.partition("/")
        return kind in KINDS and rest.startswith(f"{self.folder}/{self.store}-")
