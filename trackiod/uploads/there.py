"""What of a run is at its target, as the target itself says."""

from __future__ import annotations

from trackiod.errors import StoreError
from trackiod.sinks.interface import Change, Sink
from trackiod.uploads import cursor as cursors
from trackiod.uploads.cursor import Cursor
from trackiod.uploads.run_files import NUMBERED, RunFiles


def cursor_of(sink: Sink, files: RunFiles, remembered: Cursor, *, is_doubtful: bool) -> Cursor:
    """How far a run is uploaded. Where a change may have been taken in part, and was perhaps (`is_doubtful`, or the
    target says other than is remembered here), what the cursor does not know of is taken away: it is made again.
    Raises StoreError for a cursor that means nothing, and what the sink's `classify` knows."""
    text = sink.read(files.cursor_path)
    try:
        there = cursors.from_json(text.decode()) if text else Cursor()
    except ValueError as error:
        raise StoreError(f"{files.cursor_path} at {sink.name} means nothing: {error}") from error
    if not sink.is_atomic and (is_doubtful or there != remembered):
        names = (name for kind in NUMBERED for name in sink.names(files.folder_of(kind)))
        left = [name for name in names if files.is_left_over(name, there)]
        if left:
            sink.send(Change(f"Without {len(left)} files of an upload that was interrupted", {}, deletes=left))
    return there
