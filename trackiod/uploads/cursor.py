"""How far a run of one store is uploaded. Pure; the same JSON lies on this host and, from the same commit as the rows
it speaks of, at the target: whoever goes on there, goes on from where it is.

A stream's records have offsets that only grow, so "everything below this offset" says exactly which rows are there,
whatever they are kept in: raw, in columns, in a copy of the store.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any, NamedTuple

VERSION = 1


class Place(NamedTuple):
    """Which of a run's files."""

    kind: str
    number: int
    """of the change that it came with"""
    tag: str = ""
    """of the change too, and of no other one, where changes are not taken whole"""


class File(NamedTuple):
    """A file of rows at the target."""

    number: int
    rows: int
    start: dict[str, int]
    """the offsets its rows begin at, by stream"""
    end: dict[str, int]
    run: str = ""
    """what the run was called when they were written"""
    tag: str = ""

    @property
    def place(self) -> Place:
        return Place("metrics", self.number, self.tag)


class Cursor(NamedTuple):
    """What of a run is at the target."""

    next_number: int = 0
    """of the next change"""
    streams: dict[str, int] = {}
    """everything below is there, by stream"""
    samples: dict[str, int] = {}
    """times in ns up to which a sampler's are there, by its stream"""
    rows: int = 0
    files: tuple[File, ...] = ()
    tag: str = ""
    """of the change that it came with"""
    others: tuple[Place, ...] = ()
    """files beside those of points, where changes have tags: what is not named here does not count"""

    def to_json(self) -> str:
        return json.dumps({"version": VERSION, **self._asdict(), "files": [file._asdict() for file in self.files]})

    def grown(self, file: File, made: Collection[str] = ()) -> Cursor:
        """After a change that brings a file of points, which may be empty, and one of each of these kinds."""
        files = (*self.files, file) if file.rows else self.files
        others: tuple[Place, ...] = ()
        if file.tag:
            kept = (place for place in self.others if place.kind != "runs" or "runs" not in made)
            others = (*kept, *(Place(kind, file.number, file.tag) for kind in made))
        is_named = bool(file.tag or file.rows or {*made} - {"runs"})  # else it writes what is there already
        return self._replace(
            next_number=file.number + is_named, streams={**self.streams, **file.end}, rows=self.rows + file.rows,
            files=files, tag=file.tag, others=others,
        )  # fmt: skip


def from_json(text: str) -> Cursor:
    """Raises ValueError for anything else than a cursor of this version or an earlier one; what a later release added
    to it is ignored."""
    try:
        values: dict[str, Any] = json.loads(text)
        version = values.pop("version")
        if version > VERSION:
            raise ValueError(f"it was written by a newer trackio (version {version})")
        files = tuple(File(**_known(file, File._fields)) for file in values.pop("files"))
        others = tuple(Place(*place[: len(Place._fields)]) for place in values.pop("others", ()))
        return Cursor(**_known(values, Cursor._fields), files=files, others=others)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"it is no cursor ({error})") from error


def _known(values: dict[str, Any], fields: Collection[str]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name in fields}
