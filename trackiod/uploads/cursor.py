"""How far a run of one store is uploaded. Pure; the same JSON lies on this host and, from the same commit as the rows
it speaks of, at the target: whoever goes on there, goes on from where it is.

A stream's records have offsets that only grow, so "everything below this offset" says exactly which rows are there,
whatever they are kept in: raw, in columns, in a copy of the store.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from trackio.names import derived_id

VERSION = 1
_PLAIN = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")


class File(NamedTuple):
    """A file of rows at the target."""

    number: int
    rows: int
    start: dict[str, int]
    """the offsets its rows begin at, by stream"""
    end: dict[str, int]
    run: str = ""
    """what the run was called when they were written"""


class Cursor(NamedTuple):
    """What of a run is at the target."""

    next_number: int = 0
    """of the file that is written next; a file that was perhaps taken is written again under its number"""
    streams: dict[str, int] = {}
    """everything below is there, by stream"""
    samples: dict[str, int] = {}
    """times in ns up to which a sampler's are there, by its stream"""
    rows: int = 0
    files: tuple[File, ...] = ()

    def to_json(self) -> str:
        return json.dumps({"version": VERSION, **self._asdict(), "files": [file._asdict() for file in self.files]})

    def grown(self, file: File) -> Cursor:
        """With one more file, which may be empty."""
        files = (*self.files, file) if file.rows else self.files
        return self._replace(streams={**self.streams, **file.end}, rows=self.rows + file.rows, files=files)


def from_json(text: str) -> Cursor:
    """Raises ValueError for anything else than a cursor of this or an earlier release."""
    try:
        values: dict[str, Any] = json.loads(text)
        version = values.pop("version")
        if version > VERSION:
            raise ValueError(f"it was written by a newer trackio (version {version})")
        files = tuple(File(**file) for file in values.pop("files"))
        return Cursor(files=files, **values)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"it is no cursor ({error})") from error


def folder_of(project: str, run: str) -> str:
    """What a run's folders at a target are called: by project and id, where these are names everywhere."""
    return "/".join(
        name if _PLAIN.fullmatch(name) else derived_id(what, name)
        for what, name in (("project", project), ("run", run))
    )


def path_of(project: str, run: str, store: str) -> str:
    """Where the cursor of a run of a store lies at a target."""
    return f"cursors/{folder_of(project, run)}/{store}.json"
