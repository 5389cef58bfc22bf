"""What of a run is at its target, as the target itself says.

Where changes are not taken as a whole, a cursor is believed as far as its files are there, and files that none speaks
of are taken away: a change that was interrupted left them, or came late, and its rows are sent again.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from itertools import groupby

from trackiod.errors import StoreError
from trackiod.sinks.interface import Change, Sink
from trackiod.uploads import cursor as cursors
from trackiod.uploads.cursor import Cursor
from trackiod.uploads.names import KINDS, Names


def cursor_of(sink: Sink, names: Names, remembered: Cursor) -> Cursor:
    """How far a run is uploaded. Raises StoreError for a cursor that means nothing, and what the sink's `classify`
    knows."""
    if sink.is_atomic:
        return _read(sink, names.cursor_path(Cursor())) or Cursor()
    there = [path for path in sink.names(f"cursors/{names.folder}") if names.is_ours(path)]
    if there == names.paths(remembered)[:1]:
        return remembered
    found, problems = put_right(sink, {names: remembered})
    if names not in found:
        raise StoreError("; ".join(problems))
    return found[names]


def put_right(sink: Sink, runs: Mapping[Names, Cursor]) -> tuple[dict[Names, Cursor], list[str]]:
    """Takes away what does not count of runs, of which these cursors are remembered; returns those that are right, and
    what is wrong with the others. Raises what the sink's `classify` knows."""
    found, problems = {}, []
    for _, some in groupby(sorted(runs), lambda names: names.project):
        of_project = list(some)
        folder = os.path.commonpath([names.folder for names in of_project])
        there = [path for kind in KINDS for path in sink.names(f"{kind}/{folder}")]
        for names in of_project:
            ours = {path for path in there if names.is_ours(path)}
            try:
                found[names] = _put_right(sink, names, ours, runs[names])
            except StoreError as error:
                problems.append(str(error))
    return found, problems


def _put_right(sink: Sink, names: Names, there: set[str], remembered: Cursor) -> Cursor:
    if there and there == {*names.paths(remembered)}:
        return remembered
    known = [remembered]
    for path in sorted(there):
        if path.startswith("cursors/"):
            cursor = _read(sink, path)
            if cursor is None:
                raise StoreError(f"{path} at {sink.name} is listed and cannot be read")
            known.append(cursor)
    cursor = _best(names, there, known)
    wanted = names.paths(cursor)  # what is not listed now is perhaps the next time
    left = sorted(there.difference(wanted))
    seals = {path: cursor.to_json().encode() for path in wanted[:1] if path not in there}
    if left or seals:
        sink.send(Change(f"Without {len(left)} files of an upload that was interrupted", {}, seals, left))
    return cursor


def _best(names: Names, there: set[str], cursors: Iterable[Cursor]) -> Cursor:
    """The latest of those whose files are there, all if possible; a new one if none of them are."""

    def rank(cursor: Cursor) -> tuple[float, int]:
        wanted = names.paths(cursor)[1:]
        return len(there.intersection(wanted)) / len(wanted) if wanted else 0.0, cursor.next_number

    return max((cursor for cursor in cursors if rank(cursor)[0]), key=rank, default=Cursor())


def _read(sink: Sink, path: str) -> Cursor | None:
    text = sink.read(path)
    try:
        return cursors.from_json(text.decode()) if text else None
    except ValueError as error:
        raise StoreError(f"{path} at {sink.name} means nothing: {error}") from error
