"""Finding projects and runs in the data folder, a page at a time. Needs no daemon."""

from __future__ import annotations

import os
from collections.abc import Sequence

from trackiod.answers import RunView
from trackiod.errors import NotFound, StoreError
from trackiod.store import schema
from trackiod.store.reader import ProjectReader, project_names
from trackiod.views.attempts import Stream, need_starts
from trackiod.views.lineage import RunRow

PAGE = 1000
_SUGGESTED = 100


def open_project(projects: str, project: str) -> ProjectReader:
    """The project's database. Raises NotFound or StoreError."""
    path = schema.readable_path(projects, project)
    if not os.path.exists(path):
        if aside := schema.asides(schema.path_of(projects, project)):
            raise StoreError(aside[0])
        raise NotFound("Project", project, "", project_names(projects)[0])
    return ProjectReader(path)


def runs(reader: ProjectReader, most: int = PAGE, before: str | None = None) -> list[RunView]:
    """The newest runs of a project, or those older than the run `before`, oldest first; those that go on
    with another are part of it. Raises NotFound."""
    last = None
    if before is not None:
        last = reader.root_of(before)
        if last is None:
            raise _no_run(reader, before)
    return views(reader, reader.roots(most, last)[::-1])


def views(reader: ProjectReader, roots: Sequence[RunRow]) -> list[RunView]:
    """These runs as readers see them, in the same order."""
    going_on = reader.names_that_go_on({root.name for root in roots})
    families = [reader.members(root) if root.name in going_on else [root] for root in roots]
    by_run: dict[str, list[Stream]] = {}
    for stream in reader.streams([row.id for rows in families for row in rows]):
        by_run.setdefault(stream.run, []).append(stream)
    of_families = [[s for row in rows for s in by_run.get(row.id, [])] for rows in families]
    starts = reader.starts({s.run for streams in of_families if need_starts(streams) for s in streams})
    return [
        RunView(reader, rows, [s._replace(start=starts.get(s.id, s.start)) for s in streams])
        for rows, streams in zip(families, of_families, strict=True)
    ]


def find_run(reader: ProjectReader, run: str) -> RunView:
    """A run by id, or the newest by name. Raises NotFound."""
    root = reader.root_of(run) or reader.newest_named(run)
    if root is None:
        raise _no_run(reader, run)
    return views(reader, [root])[0]


def lately(reader: ProjectReader, ended: int) -> list[RunView]:
    """The runs that run, and those that ended last."""
    ids = [*reader.running(), *(reader.ended_last(ended) if ended else [])]
    roots = {root.id: root for root in map(reader.root_of, ids) if root is not None}
    return views(reader, list(roots.values()))


def _no_run(reader: ProjectReader, run: str) -> NotFound:
    known = [row.name for row in reader.roots(_SUGGESTED)][::-1]
    return NotFound("Run", run, f" in project '{reader.project}'", known)
