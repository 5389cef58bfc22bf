"""Many small files of a run become few: one is made anew, from what is stored here, in the place of several. It changes
no row; if what is stored gives another number of rows, the small ones stay."""

from __future__ import annotations

from collections.abc import Sequence

from trackiod.uploads.addition import Addition
from trackiod.uploads.cursor import Cursor, File
from trackiod.uploads.run_files import RunFiles
from trackiod.uploads.target import RunState


def can_merge(cursor: Cursor, most_rows: int) -> bool:
    """Whether some of a run's files would fit into one of so many rows."""
    return bool(_small(cursor.files, most_rows))


def merged(files: RunFiles, state: RunState, most_rows: int) -> Addition | None:
    """What puts one file in the place of several; None if that cannot be."""
    before = state.cursor
    some = _small(before.files, most_rows)
    if not some:
        return None
    start, end, name = some[0].start, some[-1].end, some[0].run
    path, rows = files.written_again(start, end, name)
    if rows != sum(file.rows for file in some):
        return None
    new = File(before.next_number, rows, start, end, name, files.new_tag())
    kept = [file for file in before.files if file not in some]
    kept.insert(before.files.index(some[0]), new)
    after = before._replace(files=tuple(kept), next_number=new.number + 1, tag=new.tag)
    adds: dict[str, str | bytes] = {files.names.path(new.place): path}
    seals = {files.names.cursor_path(after): after.to_json().encode()}
    gone = {*files.names.paths(before)} - {*files.names.paths(after)}
    return Addition(files.project, files.key, adds, state._replace(cursor=after), 0, tuple(sorted(gone)), seals)


def _small(files: Sequence[File], most_rows: int) -> list[File]:
    """The longest stretch of files that fit into one, and were written under one name of the run."""
    best: list[File] = []
    for begin in range(len(files)):
        rows, end = 0, begin
        while end < len(files) and rows + files[end].rows <= most_rows and files[end].run == files[begin].run:
            rows += files[end].rows
            end += 1
        if end - begin > max(1, len(best)):
            best = list(files[begin:end])
    return best
