"""What a daemon that starts takes up: streams without an end, batches to fold, files to keep, alerts to send."""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from trackio.names import HOST
from trackiod import incoming
from trackiod.databases import Databases
from trackiod.errors import StoreDamaged
from trackiod.folding import Folding
from trackiod.store import schema
from trackiod.store.project import ProjectStore
from trackiod.store.reader import own_names
from trackiod.suspects import Suspects
from trackiod.work import Errand, ToKeep, ToSend

log = logging.getLogger("trackiod.resuming")

_LOOK_AGAIN_SECONDS = 1.0
_LONGEST_LOOK_AGAIN_SECONDS = 600.0

Open = tuple[str, str, dict[str, Any]]
"""project, stream, meta"""


class TakenUp(NamedTuple):
    """The streams that no end is known of, or that left a folder of staged files, the projects that could not be opened
    now, and those not found yet."""

    open_streams: list[Open]
    unread: list[str]
    missing: Missing


class Missing:
    """Databases that do not say their project at start, as one that cannot be opened: they are asked again, ever more
    rarely."""

    def __init__(self, projects: str, names: Iterable[str], *, is_any: bool, now: float) -> None:
        """`names`: the projects that are known; `is_any`: whether there are others."""
        self._projects = projects
        self._known = set(names)
        self._pause = _LOOK_AGAIN_SECONDS
        self._at = now + self._pause if is_any else None

    def seconds_until_due(self, now: float) -> float | None:
        """How long not to look; None for ever."""
        return None if self._at is None else max(0.0, self._at - now)

    def look(self, now: float) -> list[str]:
        """The projects that can be read now and could not be before. Raises OSError."""
        self._pause = min(2 * self._pause, _LONGEST_LOOK_AGAIN_SECONDS)
        self._at = now + self._pause
        names, problems = own_names(self._projects)
        found = [name for name in names if name not in self._known]
        self._known.update(found)
        if not problems:
            self._at = None
        return found


def take_up(
    projects: str, databases: Databases, suspects: Suspects, folding: Folding, on_errand: Callable[[Errand], None]
) -> TakenUp:
    """Take up all projects; what is to be done in them is handed to `folding` and `on_errand`. What cannot be read is
    logged, and keeps no daemon from starting."""
    names, problems = own_names(projects)
    found = TakenUp([], [], Missing(projects, names, is_any=bool(problems), now=time.monotonic()))
    for problem in problems:
        log.error("%s", problem)
    has_samples = os.path.exists(schema.path_of(projects, HOST))
    for project in [*names, *([HOST] if has_samples else [])]:
        try:
            store = databases.get(project)
            found.open_streams.extend(of_store(store, os.path.dirname(projects), databases, folding, on_errand))
        except StoreDamaged as error:  # nothing new is acked into it before it was looked at
            log.warning("%s", suspects.add(project, str(error)))
            found.unread.append(project)
        except (sqlite3.Error, OSError) as error:
            log.warning("project %r cannot be opened now: %s", project, error)
            found.unread.append(project)
        except Exception as error:  # noqa: BLE001 one damaged project must not keep the daemon from starting
            log.error("project %r: %s", project, error)
        databases.close(project)
    return found


def of_store(
    store: ProjectStore, live: str, databases: Databases, folding: Folding, on_errand: Callable[[Errand], None]
) -> list[Open]:
    """Take up one project. Raises StoreDamaged, sqlite3.Error or OSError."""
    project = store.project
    try:
        found = [(project, stream, meta) for stream, meta in store.open_streams()]
        if raw := store.raw_streams():
            folding.note(project, raw)
        incoming.remove(live, *store.shelf.settled(incoming.staged(live)))
        found += [(project, stream, meta) for stream, meta in store.ended_streams(incoming.streams(live))]
        errands: list[Errand] = [ToKeep(project, *file) for file in store.shelf.files_to_keep()]
        store.shelf.wait_again()
        errands += [ToSend(project, *alert) for alert in store.shelf.alerts_to_send()]
    except sqlite3.DatabaseError as error:
        if not store.looks_damaged(error):
            raise
        raise StoreDamaged(f"{store.path} is damaged ({error}).") from error
    for errand in errands:
        on_errand(errand)
    return found
