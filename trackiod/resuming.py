"""What a daemon that starts takes up: streams without an end, batches to fold, files to keep, alerts to send."""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Callable
from typing import Any

from trackio.names import HOST
from trackiod import incoming
from trackiod.databases import Databases
from trackiod.folding import Folding
from trackiod.store import schema
from trackiod.store.reader import own_names
from trackiod.work import Errand, ToKeep, ToSend

log = logging.getLogger("trackiod.resuming")

Open = tuple[str, str, dict[str, Any]]
"""project, stream, meta"""


def take_up(projects: str, databases: Databases, folding: Folding, on_errand: Callable[[Errand], None]) -> list[Open]:
    """The streams of all projects that no end is known of; the rest is handed to `folding` and `on_errand`. What cannot
    be read is logged, and keeps no daemon from starting."""
    found: list[Open] = []
    names, problems = own_names(projects)
    for problem in problems:
        log.error("%s", problem)
    has_samples = os.path.exists(schema.path_of(projects, HOST))
    for project in [*names, *([HOST] if has_samples else [])]:
        try:
            found += _of_project(project, os.path.dirname(projects), databases, folding, on_errand)
        except Exception as error:  # noqa: BLE001 one damaged project must not keep the daemon from starting
            log.error("project %r: %s", project, error)
        databases.close(project)
    return found


def _of_project(
    project: str, live: str, databases: Databases, folding: Folding, on_errand: Callable[[Errand], None]
) -> list[Open]:
    store = databases.get(project)
    try:
        found = [(project, stream, meta) for stream, meta in store.open_streams()]
        if raw := store.raw_streams():
            folding.note(project, raw)
        incoming.remove(live, *store.shelf.settled(incoming.staged(live)))
        for file in store.shelf.files_to_keep():
            on_errand(ToKeep(project, *file))
        for alert in store.shelf.alerts_to_send():
            on_errand(ToSend(project, *alert))
        return found
    except sqlite3.DatabaseError as error:
        if not store.is_damaged(error):
            raise
        databases.set_aside(project, f"{store.path} is damaged ({error}).")  # before anything new is acked into it
        return []
