"""Many small files of a run become few: one is made anew, from what is stored here, in the place of several. It changes
no row; if what is stored gives another number of rows, the small ones stay."""

from __future__ import annotations

from collections.abc import Sequence

from trackiod.uploads.addition import Addition
from trackiod.uploads.cursor import Cursor, File
from trackiod.uploads.run_files import MOST_ROWS, RunFiles
from trackiod.uploads.target import RunState


def can_merge(cursor: Cursor) -> bool:
    """Whether some of a run's files would fit into one."""
    return bool(_small(cursor.files))


def merged(files: RunFiles, state: RunState, there: Sequence[str]) -> Addition | None:
    """What puts one file in the place of several; None if that cannot be. `there`: the paths at the target."""
    some = _small(state.cursor.files)
    if not some:
        return None
    number = state.cursor.next_number
    start, end, name = some[0].start, some[-1].end, some[0].run
    path, rows = files.written_again(start, end, name)
    if rows != sum(file.rows for file in some):
        return None
    kept = [file for file in state.cursor.files if file not in some]
    kept.insert(state.cursor.files.index(some[0]), File(number, rows, start, end, name))
    cursor = state.cursor._replace(files=tuple(kept), next_number=number + 1)
    adds: dict[str, str | bytes] = {files.path("metrics", number): path}
    seals = {files.cursor_path: cursor.to_json().encode()}
    old = [files.path("metrics", file.number) for file in some]
    gone = tuple(path for path in old if path in there)
    return Addition(files.project, files.run, adds, state._replace(cursor=cursor), 0, gone, seals)


def _small(files: Sequence[File]) -> list[File]:
    """The longest stretch of files that fit into one, and were written under one name of the run."""
    best: list[File] = []
    for begin in range(len(files)):
        rows, end = 0, begin
        while end < len(files) and rows + files[end].rows <= MOST_ROWS and files[end].run == files[begin].run:
            rows += files[end].rows
            end += 1
        if end - begin > max(1, len(best)):
            best = list(files[begin:end])
    return best
