"""Deleting, moving and renaming, as somebody asked for. Belongs to the commit thread, which is the one that writes."""

from __future__ import annotations

import os
import shutil
import sqlite3

from trackio import wire
from trackio.names import MAX_NAME_CHARS
from trackio.values import clean_text
from trackiod import blobs, catalog
from trackiod.databases import Databases
from trackiod.errors import NotFound, TrackiodError
from trackiod.store import removal, schema
from trackiod.store.reader import ProjectReader
from trackiod.work import Edit

DELETE_PROJECT = "delete_project"


def edit(databases: Databases, work: Edit) -> wire.Edited:
    """Does it; the answer is one sentence if it cannot be done. Never raises."""
    try:
        if not databases.has(work.project):
            raise NotFound("Project", work.project, "", [])
        {DELETE_PROJECT: _delete_project, "delete": _delete, "rename": _rename, "move": _move}[work.action](
            databases, work
        )
        return wire.Edited(True)
    except KeyError:
        return wire.Edited(False, f"trackiod knows no {work.action!r}.")
    except (TrackiodError, sqlite3.Error, OSError) as error:
        return wire.Edited(False, str(error))


def _delete_project(databases: Databases, work: Edit) -> None:
    store = databases.get(work.project)
    if removal.is_running(store.connection):
        raise TrackiodError(f"Project '{work.project}' has a run that is running.")
    databases.note_deleted(schema.database_of(store.connection))
    databases.close(work.project)
    schema.remove(store.path)
    shutil.rmtree(blobs.folder_of(databases.blobs, work.project), ignore_errors=True)


def _runs(databases: Databases, work: Edit) -> list[str]:
    """The ids of the run and of those that go on with it. Raises TrackiodError if it is running."""
    store = databases.get(work.project)
    with ProjectReader(store.path) as reader:
        view = catalog.find_run(reader, work.run)
        ids, streams = view.run_ids, view.streams
    here = {row[0] for row in store.connection.execute("SELECT id FROM streams")}
    if any(stream.id not in here for stream in streams):
        raise TrackiodError(f"Run '{work.run}' of project '{work.project}' also ran on another host: change it there.")
    if removal.is_running(store.connection, ids):
        raise TrackiodError(f"Run '{work.run}' of project '{work.project}' is running.")
    return ids


def _rename(databases: Databases, work: Edit) -> None:
    runs, store = _runs(databases, work), databases.get(work.project)
    name = clean_text(work.argument)[:MAX_NAME_CHARS]
    if not name:
        raise TrackiodError("A run's name cannot be empty.")
    with store.transaction():
        removal.rename(store.connection, runs, name)


def _delete(databases: Databases, work: Edit) -> None:
    runs, store = _runs(databases, work), databases.get(work.project)
    with store.transaction():
        gone = removal.delete(store.connection, runs)
    folder = blobs.folder_of(databases.blobs, work.project)
    for digest, suffix in gone:
        path = blobs.path_in(folder, digest, suffix)
        if os.path.exists(path):
            os.unlink(path)


def _move(databases: Databases, work: Edit) -> None:
    """Copies, then deletes: a daemon that dies between leaves the run in both, and moving it again ends it."""
    target_name = clean_text(work.argument)[:MAX_NAME_CHARS]
    if not target_name or target_name == work.project:
        raise TrackiodError(f"A run cannot be moved from project '{work.project}' to '{target_name}'.")
    runs, source, target = _runs(databases, work), databases.get(work.project), databases.get(target_name)
    if any(facts for _, facts in source.shelf.files_to_keep()):
        raise TrackiodError("Files of this project are still to be kept; try again later.")
    with target.transaction():
        files = removal.copy(source.connection, target.connection, runs)
        for digest, suffix in files:
            old, new = (
                blobs.path_in(blobs.folder_of(databases.blobs, name), digest, suffix)
                for name in (work.project, target_name)
            )
            if os.path.exists(old) and not os.path.exists(new):
                os.makedirs(os.path.dirname(new), 0o700, exist_ok=True)
                os.link(old, new)
    _delete(databases, work)
