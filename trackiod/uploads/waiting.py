"""What waits for a target, as far as this host knows: asks the project's databases and what is remembered, and nobody
else."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import NamedTuple

import msgpack

from trackio.places import Places
from trackiod.errors import StoreError
from trackiod.store import parts, removal, schema
from trackiod.uploads import artifact_files, merging
from trackiod.uploads.artifact_files import Version
from trackiod.uploads.run_files import SYSTEM_SECONDS
from trackiod.uploads.source import is_running, key_of, points_of
from trackiod.uploads.target import ARTIFACTS, ROWS, Folder, RunState, Target

SAMPLES_SECONDS = 15.0
"""until a run's last samples are looked for again"""
MERGES = "merges"
ROW_PHASES = (ROWS, MERGES)
"""what is sent, the first that has something first"""
_MANY_FILES = 24
"""of a run that goes on, from which on they are merged"""


class Project(NamedTuple):
    """One whose runs go to the target."""

    name: str
    connection: sqlite3.Connection
    runs: dict[str, str]
    """those that do, each with what changes whenever it does"""
    other: str = ""
    """the store that this was copied of; empty: this host's own"""

    def key(self, run: str) -> str:
        """What is remembered of a run, or an artifact, is called."""
        return key_of(run, self.other)


class Waiting:
    """For one target. `clock`: seconds since 1970."""

    def __init__(self, where: Places, folder: Folder, target: Target, clock: Callable[[], float]) -> None:
        self._places = where
        self._folder = folder
        self._target = target
        self._clock = clock
        self.problems: list[str] = []
        self.sent: set[tuple[str, str]] = set()
        """runs of which all rows were sent, by project and key: a run that logs all the time is sent once"""
        self.again_at = 0.0
        """when to look again for what was not there yet; 0: not"""

    def reset(self) -> None:
        self.problems, self.again_at = [], 0.0

    def projects(self) -> Iterator[Project]:
        """Those that can be read, with their databases open."""
        for project, is_whole in self._target.projects.items():
            path = schema.path_of(self._places.projects, project)
            try:
                if os.path.exists(path):  # else it was deleted
                    with closing(schema.connect_for_reading(path)) as connection:
                        yield Project(project, connection, self._runs(connection, is_whole))
                for store in schema.others_stores(path) if is_whole and self._target.takes_others else ():
                    with closing(schema.open_others(path, store)) as connection:
                        yield Project(project, connection, parts.tokens(connection), store)
            except (StoreError, sqlite3.Error) as error:
                self.problems.append(f"Of project '{project}' something cannot be read: {error}")

    def _runs(self, connection: sqlite3.Connection, is_whole: bool) -> dict[str, str]:
        tokens = parts.tokens(connection)
        if is_whole:
            return tokens
        metas = connection.execute("SELECT run, meta FROM streams WHERE role = 'rank'")
        ours = {run for run, meta in metas if self._target.is_meant(msgpack.unpackb(meta).get("target"))}
        return {run: token for run, token in tokens.items() if run in ours}

    def is_news(self, phase: str, most_rows: int) -> bool:
        """Whether there may be something to commit."""
        if phase == ARTIFACTS:
            return next(self.artifacts(), None) is not None
        return any(
            self.is_due(project, run, self._folder.read_run(project.name, project.key(run)), phase, most_rows)
            for project in self.projects()
            for run in project.runs
        )

    def is_due(self, project: Project, run: str, state: RunState | None, phase: str, most_rows: int) -> bool:
        """Whether a run may have something to send."""
        if phase == ROWS and (project.name, project.key(run)) in self.sent:
            return False
        if phase == MERGES:
            return self._may_merge(project.connection, run, state, most_rows)
        return self._has_news(project.connection, run, state, project.runs[run])

    def _has_news(self, connection: sqlite3.Connection, run: str, state: RunState | None, token: str) -> bool:
        now = self._clock()
        if state is None or state.token != token:
            return True
        if not state.is_whole:
            self.again_at = now + SAMPLES_SECONDS
            return now - state.system_at >= SAMPLES_SECONDS
        return now - state.system_at >= SYSTEM_SECONDS and is_running(connection, run)

    @staticmethod
    def _may_merge(connection: sqlite3.Connection, run: str, state: RunState | None, most_rows: int) -> bool:
        if state is None or state.is_merged or not merging.can_merge(state.cursor, most_rows):
            return False
        return len(state.cursor.files) >= _MANY_FILES or not is_running(connection, run)

    def artifacts(self) -> Iterator[tuple[Project, Version, RunState | None]]:
        """The versions of artifacts that are not at the target."""
        for project in self.projects():
            for version in artifact_files.versions(project.connection, project.runs):
                state = self._folder.read_run(project.name, project.key(version.key))
                is_here = not project.other or artifact_files.is_here(self._places, project.name, version)
                if is_here and (state is None or state.token != version.digest):
                    yield project, version, state

    def is_live(self) -> bool:
        """Whether a run of these projects goes on."""
        return any(removal.is_running(project.connection) for project in self.projects())

    def count(self) -> int:
        """How many points are stored and not at the target."""
        waiting = 0
        for project in self.projects():
            for run in project.runs:
                state = self._folder.read_run(project.name, project.key(run))
                waiting += points_of(project.connection, run) - (state.cursor.rows if state else 0)
        return waiting
