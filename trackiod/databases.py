"""The projects' databases that are open for writing. Belongs to the commit thread."""

from __future__ import annotations

import logging
import os
import time

from trackio.lookup import is_there
from trackio.places import append, make_private
from trackiod import descriptors
from trackiod.errors import StoreError
from trackiod.store import schema
from trackiod.store.project import ProjectStore
from trackiod.suspects import Suspects

log = logging.getLogger("trackiod.databases")


class BeingChecked(StoreError):
    """The database looked damaged, and a child looks at it."""


class Databases:
    """Opens each project's database when it is first asked for. Owns the connections; `close_all` ends them."""

    def __init__(self, projects: str, store_id: str, suspects: Suspects | None = None) -> None:
        self._projects = projects
        self._store_id = store_id
        self._suspects = suspects or Suspects(projects)
        self._stores: dict[str, ProjectStore] = {}

    def get(self, project: str) -> ProjectStore:
        """The project's store. Raises StoreError, sqlite3.Error or OSError; BeingChecked while somebody else looks at
        the file."""
        if waiting := self._suspects.sentence(project):
            raise BeingChecked(waiting)
        store = self._stores.get(project)
        if store is not None and not store.is_linked():
            self.close(project)
            store = None
        if store is None:
            if descriptors.are_short(descriptors.FOR_STREAMS):
                self._close_idle()
            store = ProjectStore(self._projects, project, self._store_id)
        self._stores.pop(project, None)
        self._stores[project] = store  # the last is the one that was used last
        return store

    def has(self, project: str) -> bool:
        """Whether the project's database is there. Raises OSError."""
        return is_there(schema.path_of(self._projects, project))

    @property
    def blobs(self) -> str:
        """The folder of all projects' files."""
        return os.path.join(os.path.dirname(self._projects), "blobs")

    def note_deleted(self, database: str) -> None:
        """That a database is about to be removed because its user says so: its copies are to go too (`sinks`)."""
        folder = os.path.join(os.path.dirname(self._projects), "deleted")
        make_private(folder)
        os.close(append(os.path.join(folder, database)))

    def close(self, project: str) -> None:
        """Ends the connection; the next `get` opens another."""
        store = self._stores.pop(project, None)
        if store is not None:
            store.close()

    def _close_idle(self) -> None:
        """Ends all but the connection that was used last: each takes three descriptors, and is opened again if need
        be."""
        for project in list(self._stores)[:-1]:
            self.close(project)

    def close_all(self) -> None:
        for project in list(self._stores):
            self.close(project)

    def set_aside(self, project: str, why: str) -> str:
        """Renames a damaged database and says so; the project goes on in a new one."""
        self.close(project)
        path = schema.path_of(self._projects, project)
        aside = f"{path}.damaged-{time.time_ns()}"
        try:
            for side in schema.SIDES:
                if is_there(path + side):
                    os.rename(path + side, aside + side)
        except OSError as error:
            return f"{why} It cannot be set aside: {error}"
        log.error("%s It is kept as %s; the project goes on in a new one.", why, aside)
        return f"{why} It is kept as {aside}."
