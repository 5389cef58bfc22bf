"""The uploader: sends what waits for one target, and goes. A child of the daemon (`python -m trackiod upload ID`).

Each commit holds runs' new rows, their cursors and what is known of them now. A run's cursor lies beside its rows, so
the target itself says what it has: a commit whose answer was lost is seen, or made again under the same names.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import json
import os
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import msgpack

from trackio import places, settings
from trackio.places import Places
from trackiod.errors import StoreError, TrackiodError
from trackiod.sinks import open_sink
from trackiod.sinks.directory import store_id
from trackiod.sinks.interface import AGAIN, PARK, REBASE, SMALLER, Change, Sink, Verdict, size_of
from trackiod.store import parts, schema
from trackiod.uploads import artifact_files, merging, pacing, tables, there
from trackiod.uploads.addition import Addition
from trackiod.uploads.artifact_files import Version
from trackiod.uploads.card import card
from trackiod.uploads.cursor import Cursor
from trackiod.uploads.run_files import MOST_ROWS, SYSTEM_SECONDS, RunFiles
from trackiod.uploads.source import Source, is_running, points_of
from trackiod.uploads.target import Folder, RunState, Status, Target

_MOST_FILES = 20
"""of rows, in a commit"""
_LEAST_ROWS = 1000
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES}
_TRIES = 5
"""at once, where the target has changed meanwhile"""
_SAMPLES_SECONDS = 15.0
"""until a run's last samples are looked for again"""
_ROWS, _MERGES, _ARTIFACTS = _PHASES = ("rows", "merges", "artifacts")
"""what is sent, the first that has something first"""
_MANY_FILES = 24
"""of a run that goes on, from which on they are merged"""


def main(id_: str) -> int:
    """Sends what waits. What it needs to know and nobody may see comes on stdin, as JSON: `token`; and `is_retry`."""
    os.nice(5)
    ours, _ = settings.of_this_process()
    where = places.find(ours.data_dir, ours.spool_dir, ours.shared_dir)
    job = json.load(sys.stdin)
    folder = Folder(where, id_)
    target = folder.read_target()
    if target is None:
        return 1
    with open(os.path.join(folder.path, "lock"), "w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return 1  # one that outlived its daemon is at it; this one has sent nothing
        try:
            sink = open_sink(target.url, job.get("token"))
        except TrackiodError as error:
            folder.write_status(folder.read_status()._replace(problem=str(error), parked=str(error)))
            return 0
        Uploader(where, folder, target, sink).upload(is_retry=bool(job.get("is_retry")))
    return 0


class Uploader:
    """One target's. `clock`: seconds since 1970."""

    def __init__(
        self, where: Places, folder: Folder, target: Target, sink: Sink, clock: Callable[[], float] = time.time
    ) -> None:
        self._places = where
        self._folder = folder
        self._target = target
        self._sink = sink
        self._clock = clock
        self._store = store_id(where)[:12]
        self._most_rows, self._most_files = MOST_ROWS, _MOST_FILES
        self._again_at = 0.0
        self._problems: list[str] = []
        self.status = folder.read_status()
        self._is_doubtful = self.status.is_sending

    def upload(self, *, is_retry: bool = False) -> Status:
        """Sends what waits, as far as the target's pace allows; returns how it stands then, which is also written.
        Raises OSError if it cannot be written."""
        if is_retry:
            self.status = self.status._replace(parked="", problem="", failures=0, next_at=0.0, is_prepared=False)
        attempt = 0
        while not self.status.parked:
            verdict = self._tried()
            attempt += 1
            if verdict is None:
                break
            if verdict.kind == SMALLER and (self._most_rows > _LEAST_ROWS or self._most_files > 1):
                self._most_rows = max(_LEAST_ROWS, self._most_rows // 4)
                self._most_files = max(1, self._most_files // 4)
            elif verdict.kind == REBASE and attempt < _TRIES:
                self.status = self.status._replace(is_prepared=False)
            else:
                self._fail(verdict)
                break
        self._folder.write_status(self.status)
        return self.status

    def _tried(self) -> Verdict | None:
        """Sends; returns what went wrong, if something did."""
        try:
            self._send_all()
        except (StoreError, sqlite3.Error) as error:
            return Verdict(AGAIN, f"What is stored cannot be read: {error}")
        except Exception as error:  # noqa: BLE001  whatever the target's library raises
            if isinstance(error, OSError) and error.errno in _DISK:
                return Verdict(AGAIN, f"Files for the upload cannot be written here: {os.strerror(error.errno)}.")
            return self._sink.classify(error)
        return None

    def _fail(self, verdict: Verdict) -> None:
        failures = self.status.failures + 1
        self.status = self.status._replace(
            failures=failures, problem=verdict.sentence, parked=verdict.sentence if verdict.kind == PARK else "",
            next_at=self._clock() + pacing.pause_after(failures, verdict.seconds),
        )  # fmt: skip

    # -- sending -----------------------------------------------------------------------------------------------------

    def _send_all(self) -> None:
        self.status = self.status._replace(is_behind=True, rows_waiting=self._count_waiting())
        first: dict[str, str | bytes] = {}
        if not self.status.is_prepared:
            self._sink.prepare(private=self._target.private)
            first = self._first_files()
        self._problems, self._again_at = [], 0.0
        idle: set[str] = set()
        while (phase := next((phase for phase in _PHASES if phase not in idle and self._is_news(phase)), "")) != "":
            if not self._may_commit():
                return
            parent = self._sink.head()
            additions = self._next_artifacts() if phase == _ARTIFACTS else self._next_additions(phase)
            if any(one.is_news for one in additions):
                self._commit(additions, first, parent)
                first = {}
            else:
                idle.add(phase)
        now = self._clock()
        self._is_doubtful = False
        self.status = self.status._replace(
            failures=0, problem="; ".join(dict.fromkeys(self._problems[:3])), rows_waiting=self._count_waiting(),
            is_behind=self._again_at > 0, is_sending=False,
            next_at=max(self._again_at, now + self._budget().seconds_until_one(self._target.hosts)),
        )  # fmt: skip

    def _first_files(self) -> dict[str, str | bytes]:
        """The card and a file without rows for each kind, since what loads them wants at least one; nothing where the
        repository has a card. One without may have lost more: each run's cursor there is looked at again."""
        if self._sink.read("README.md") is not None:
            return {}
        self._folder.forget_runs()
        files = tables.empty_files(self._folder.scratch("first"))
        return {"README.md": card(self._sink.kind, self._sink.title).encode(), **files}

    def _budget(self) -> pacing.Budget:
        now, hosts = self._clock(), self._target.hosts
        if self.status.tokens is None:
            return pacing.first_budget(now, hosts, self._target.node or 0)
        return pacing.Budget(self.status.tokens, self.status.tokens_at).refilled(now, hosts)

    def _may_commit(self) -> bool:
        """Whether there is a token of the budget; else it is noted when there will be one."""
        budget = self._budget()
        pause = budget.seconds_until_one(self._target.hosts)
        self.status = self.status._replace(tokens=budget.tokens, tokens_at=budget.at)
        if pause > 0:
            self.status = self.status._replace(next_at=self._clock() + pause, problem="")
        return pause <= 0

    def _spend(self, tokens: float) -> None:
        """Takes a token of the budget, or gives it back, and writes that down: before the commit, since one that was
        taken though nobody heard of it counts too."""
        left = self._budget().tokens - tokens
        self.status = self.status._replace(tokens=left, tokens_at=self._clock(), is_sending=True)
        self._folder.write_status(self.status)

    def _commit(self, additions: list[Addition], first: dict[str, str | bytes], parent: str) -> None:
        adds = {**first, **{path: data for one in additions for path, data in one.adds.items()}}
        seals = {path: data for one in additions for path, data in one.seals.items()}
        rows = sum(one.rows for one in additions)
        runs = len({(one.project, one.run) for one in additions})
        sent = (*adds.values(), *seals.values())
        size = sum(map(size_of, sent))
        message = f"{rows:,} rows of {runs} run{'s' * (runs > 1)}" if rows else f"Facts and files of {runs} run(s)"
        self._spend(1)
        tables.give_back()  # before the target's library takes its own
        try:
            deletes = [path for one in additions for path in one.deletes]
            self._sink.send(Change(message, adds, seals, deletes, parent))
        except Exception as error:
            self._is_doubtful = True
            if self._sink.classify(error).kind == REBASE:
                self._spend(-1)  # it was not taken
            raise
        for one in additions:
            self._folder.write_run(one.project, one.run, one.state)
        self.status = self.status._replace(
            is_prepared=True, is_sending=self._is_doubtful,
            last_commit_at=self._clock(), commits=self.status.commits + 1, failures=0, problem="",
            rows=self.status.rows + rows, bytes=self.status.bytes + size,
            rows_waiting=max(0, self.status.rows_waiting - rows),
        )  # fmt: skip
        self._folder.write_status(self.status)

    # -- what waits --------------------------------------------------------------------------------------------------

    def _databases(self) -> Iterator[tuple[str, sqlite3.Connection, dict[str, str]]]:
        """Each project with its database and the runs that go to this target, with what changes whenever one does."""
        for project, is_whole in self._target.projects.items():
            path = schema.path_of(self._places.projects, project)
            if not os.path.exists(path):
                continue  # it was deleted
            try:
                with closing(schema.connect_for_reading(path)) as connection:
                    schema.check_version(connection, path)
                    yield project, connection, self._runs(connection, is_whole)
            except (StoreError, sqlite3.Error) as error:
                self._problems.append(f"Of project '{project}' something cannot be read: {error}")

    def _is_news(self, phase: str) -> bool:
        """Whether there may be something to commit; asks nobody."""
        if phase == _ARTIFACTS:
            return next(self._artifacts(), None) is not None
        return any(
            self._is_due(connection, run, self._folder.read_run(project, run), token, phase)
            for project, connection, runs in self._databases()
            for run, token in runs.items()
        )

    def _is_due(self, connection: sqlite3.Connection, run: str, state: RunState | None, token: str, phase: str) -> bool:
        if phase == _MERGES:
            return self._may_merge(connection, run, state)
        return self._has_news(connection, run, state, token)

    def _artifacts(self) -> Iterator[tuple[Source, Version, RunState | None]]:
        """The versions of artifacts that are not at the target, as far as this host knows."""
        for project, connection, runs in self._databases():
            source = Source(self._places, connection, project, self._target, self._store, "")
            for version in artifact_files.versions(connection, runs):
                state = self._folder.read_run(project, version.key)
                if state is None or state.token != version.digest:
                    yield source, version, state

    def _next_artifacts(self) -> list[Addition]:
        """The next files of one version."""
        for source, version, state in self._artifacts():
            manifest = self._sink.read(f"{artifact_files.folder_of(source.project, version)}/manifest.json")
            if state is None and manifest is not None:
                state = RunState(Cursor(), version.digest)
                self._folder.write_run(source.project, version.key, state)
                continue
            addition, problems = artifact_files.next_files(source, version, state)
            self._problems += problems
            return [addition]
        return []

    def _next_additions(self, phase: str) -> list[Addition]:
        """What the next commit holds; nothing if nothing waits."""
        scratch = self._folder.scratch("next")
        found: list[Addition] = []
        now = self._clock()
        for project, connection, runs in self._databases():
            source = Source(self._places, connection, project, self._target, self._store, scratch)
            for run, token in runs.items():
                state = self._folder.read_run(project, run)
                if len(found) >= self._most_files or not self._is_due(connection, run, state, token, phase):
                    continue
                try:
                    files = RunFiles(source, run)
                    more = self._merged(files, state) if phase == _MERGES else self._new(files, state, token)
                    found += itertools.islice(more, self._most_files - len(found))
                    self._problems += files.problems
                except (StoreError, sqlite3.Error) as error:
                    self._problems.append(f"Run {run} of project '{project}' cannot be uploaded: {error}")
        for one in found:
            if not one.is_news:
                self._folder.write_run(one.project, one.run, one.state)
            if not one.state.is_whole:
                self._again_at = now + _SAMPLES_SECONDS
        return found

    def _count_waiting(self) -> int:
        """How many points are stored and not at the target, as far as this host knows."""
        waiting = 0
        for project, connection, runs in self._databases():
            for run in runs:
                state = self._folder.read_run(project, run)
                waiting += points_of(connection, run) - (state.cursor.rows if state else 0)
        return waiting

    def _runs(self, connection: sqlite3.Connection, is_whole: bool) -> dict[str, str]:
        """The runs that go to this target, with what changes whenever one does."""
        tokens = parts.tokens(connection)
        if is_whole:
            return tokens
        metas = connection.execute("SELECT run, meta FROM streams WHERE role = 'rank'")
        ours = {run for run, meta in metas if self._target.is_meant(msgpack.unpackb(meta).get("target"))}
        return {run: token for run, token in tokens.items() if run in ours}

    def _has_news(self, connection: sqlite3.Connection, run: str, state: RunState | None, token: str) -> bool:
        now = self._clock()
        if state is None or state.token != token:
            return True
        if not state.is_whole:
            self._again_at = now + _SAMPLES_SECONDS
            return now - state.system_at >= _SAMPLES_SECONDS
        return now - state.system_at >= SYSTEM_SECONDS and is_running(connection, run)

    @staticmethod
    def _may_merge(connection: sqlite3.Connection, run: str, state: RunState | None) -> bool:
        if state is None or state.is_merged or not merging.can_merge(state.cursor):
            return False
        return len(state.cursor.files) >= _MANY_FILES or not is_running(connection, run)

    def _new(self, files: RunFiles, state: RunState | None, token: str) -> Iterator[Addition]:
        state = state or RunState(Cursor())
        cursor = self._cursor_of(files, state)
        if cursor != state.cursor:
            state = state._replace(cursor=cursor, token="", files=() if not cursor.streams else state.files)
        yield from files.additions(state, token, self._most_rows, self._clock())

    def _cursor_of(self, files: RunFiles, state: RunState) -> Cursor:
        return there.cursor_of(self._sink, files, state.cursor, is_doubtful=self._is_doubtful)

    def _merged(self, files: RunFiles, state: RunState | None) -> Iterator[Addition]:
        """What puts one file of a run in the place of several; tried once after each upload."""
        assert state is not None
        addition = None
        if self._cursor_of(files, state) == state.cursor:
            addition = merging.merged(files, state, self._sink.names(files.folder_of("metrics")))
        if addition is None:
            addition = Addition(files.project, files.run, {}, state._replace(is_merged=True), 0)
        yield addition
