"""The uploader: sends what waits for one target, and goes. A child of the daemon (`python -m trackiod upload ID LANE`).

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
from collections.abc import Callable, Collection, Iterator, Sequence

from trackio import places, settings
from trackio.places import Places, make_private
from trackiod import elsewhere
from trackiod.errors import StoreError, TrackiodError
from trackiod.sinks import open_sink
from trackiod.sinks.directory import store_id
from trackiod.sinks.interface import AGAIN, PARK, REBASE, SMALLER, Change, Sink, Verdict, size_of
from trackiod.uploads import artifact_files, doubts, merging, pacing, tables, there
from trackiod.uploads.addition import Addition
from trackiod.uploads.card import card
from trackiod.uploads.cursor import Cursor
from trackiod.uploads.doubts import Doubt
from trackiod.uploads.names import Names
from trackiod.uploads.purse import Purse
from trackiod.uploads.run_files import MOST_ROWS, RunFiles
from trackiod.uploads.source import Source
from trackiod.uploads.target import ARTIFACTS, ROWS, Folder, RunState, Status, Target
from trackiod.uploads.waiting import MERGES, ROW_PHASES, SAMPLES_SECONDS, Project, Waiting

_MOST_FILES = 20
"""of rows, in a commit"""
_LEAST_ROWS = 1000
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES}
_TRIES = 5
"""at once, where the target has changed meanwhile"""


def main(id_: str, lane: str) -> int:
    """Sends what waits: rows or artifacts. What it needs to know and nobody may see comes on stdin, as JSON: `token`;
    and `is_retry`."""
    os.nice(5)
    ours, _ = settings.of_this_process()
    where = places.of(ours)
    job = json.load(sys.stdin)
    folder = Folder(where, id_, lane)
    target = folder.read_target()
    if target is None:
        return 1
    if any(target.projects.values()) and target.takes_others:
        elsewhere.look(where)
    make_private(folder.path)
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
    """One target's, of the rows or of the artifacts, as `folder` says. `clock`: seconds since 1970."""

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
        self._waiting = Waiting(where, folder, target, clock)
        self._purse = Purse(folder.of_target, target.hosts, target.node, clock)
        self._phases = ROW_PHASES if folder.lane == ROWS else (ARTIFACTS,)
        self.status = folder.read_status()

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
            if verdict.kind == SMALLER and not self._is_smallest:
                self._most_rows = max(_LEAST_ROWS, self._most_rows // 4)
                self._most_files = max(1, self._most_files // 4)
            elif verdict.kind == REBASE and attempt < _TRIES:
                self.status = self.status._replace(is_prepared=False)
            else:
                self._fail(verdict)
                break
        self._folder.write_status(self.status)
        return self.status

    @property
    def _is_smallest(self) -> bool:
        """Whether a commit holds as little as it can."""
        return self._most_rows <= _LEAST_ROWS and self._most_files <= 1

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
        self.status = self.status._replace(is_behind=True, rows_waiting=self._count())
        first: tuple[Addition, ...] = ()
        if not self.status.is_prepared:
            self._sink.prepare(private=self._target.private)
            first = self._first_files()
        self._waiting.reset()
        self._look_again()
        idle: set[str] = set()
        while phase := self._next_phase(idle):
            if not self._may_commit():
                self.status = self.status._replace(has_artifacts=self._has_artifacts())
                return
            parent = self._sink.head() if phase != ARTIFACTS else ""  # whose paths hold one content only
            additions = self._next_artifacts() if phase == ARTIFACTS else self._next_additions(phase)
            if any(one.is_news for one in additions):
                self._commit([*first, *additions], parent, phase)
                first = ()
            else:
                idle.add(phase)
        now, again_at = self._clock(), self._waiting.again_at
        self.status = self.status._replace(
            failures=0, problem="; ".join(dict.fromkeys(self._waiting.problems[:3])),
            rows_waiting=self._count(), has_artifacts=self._has_artifacts(), is_behind=again_at > 0,
            is_live=self._folder.lane == ROWS and self._waiting.is_live(),
            next_at=max(again_at, now + self._pause()),
        )  # fmt: skip

    def _next_phase(self, idle: Collection[str]) -> str:
        return next(
            (one for one in self._phases if one not in idle and self._waiting.is_news(one, self._most_rows)), ""
        )

    def _first_files(self) -> tuple[Addition, ...]:
        """The card and a file without rows for each kind, since what loads them wants at least one; nothing where the
        repository has a card. One without may have lost more: each run's cursor there is looked at again."""
        if self._folder.lane != ROWS or self._sink.read("README.md") is not None:
            return ()
        self._folder.forget_runs()
        self._other_folder().forget_runs()
        files = tables.empty_files(self._folder.scratch("first"))
        about = {"README.md": card(self._sink.kind, self._sink.title).encode()}
        return (Addition("", "", {**files}, RunState(Cursor()), 0, seals=about),)

    def _look_again(self) -> None:
        """At what was perhaps taken in part, or late."""
        now = self._clock()
        due = doubts.due(self.status.doubts, now)
        if not due:
            return
        states = {one: self._folder.read_run(*one.whose) or RunState(Cursor()) for one in due}
        runs = {Names(*one.whose, self._store): state.cursor for one, state in states.items()}
        found, problems = there.put_right(self._sink, runs)
        self._waiting.problems += problems
        for (one, state), (names, cursor) in zip(states.items(), runs.items(), strict=True):
            if found.get(names, cursor) != cursor:
                state = state._replace(cursor=found[names], token="", is_merged=False)
                self._folder.write_run(*one.whose, state)
        self._note(doubts.looked(self.status.doubts, due, now))

    def _note(self, known: tuple[Doubt, ...]) -> None:
        """What is to be looked at again."""
        self.status = self.status._replace(doubts=known, look_at=doubts.look_at(known))
        self._folder.write_status(self.status)

    def _count(self) -> int:
        return self._waiting.count() if self._folder.lane == ROWS else 0

    def _has_artifacts(self) -> bool:
        """Whether the other child has something to do, as far as this one sees."""
        if self._folder.lane != ROWS:
            return False
        waiting = Waiting(self._places, self._other_folder(), self._target, self._clock)
        return next(waiting.artifacts(), None) is not None

    def _other_folder(self) -> Folder:
        """What is remembered of the artifacts."""
        return Folder(self._places, self._target.id, ARTIFACTS)

    def _may_commit(self) -> bool:
        """Whether the target's pace allows it; else it is noted when it will."""
        pause = self._pause()
        if pause > 0:
            self.status = self.status._replace(next_at=self._clock() + pause, problem="")
        return pause <= 0

    def _pause(self) -> float:
        """Seconds until the next commit."""
        return self._purse.seconds_until_one(self._folder.lane)

    def _commit(self, additions: Sequence[Addition], parent: str, phase: str) -> None:
        deletes = {path for one in additions for path in one.deletes}
        adds = {path: data for one in additions for path, data in one.adds.items() if path not in deletes}
        seals = {path: data for one in additions for path, data in one.seals.items() if path not in deletes}
        deletes -= {path for one in additions for path in (*one.adds, *one.seals)}
        rows = sum(one.rows for one in additions)
        of_runs = [one for one in additions if one.project]
        runs = {(one.project, one.run) for one in of_runs}
        sent = (*adds.values(), *seals.values())
        size = sum(map(size_of, sent))
        what = f"{len(runs)} run{'s' * (len(runs) > 1)}"
        message = f"{rows:,} rows of {what}" if rows else f"Facts and files of {what}"
        self._purse.take(self._folder.lane)
        if phase != ARTIFACTS and not self._sink.is_atomic:
            self._note(doubts.begun(self.status.doubts, runs, self._clock()))
        tables.give_back()  # before the target's library takes its own
        try:
            self._sink.send(Change(message, adds, seals, sorted(deletes), parent))
        except Exception as error:
            kind = self._sink.classify(error).kind
            if kind == REBASE:
                self._purse.give_back()
            if kind == SMALLER and phase == MERGES and self._is_smallest:
                self._leave_small(of_runs)
            raise
        for one in of_runs:
            self._folder.write_run(one.project, one.run, one.state)
            if one.state.token and phase == ROWS:
                self._waiting.sent.add((one.project, one.run))  # what it logs meanwhile goes with the next upload
        now = self._clock()
        self._note(doubts.taken(self.status.doubts, runs))
        self.status = self.status._replace(
            is_prepared=True, last_commit_at=now, commits=self.status.commits + 1, failures=0, problem="",
            rows=self.status.rows + rows, bytes=self.status.bytes + size,
            rows_waiting=max(0, self.status.rows_waiting - rows),
        )  # fmt: skip
        self._folder.write_status(self.status)

    def _leave_small(self, additions: Collection[Addition]) -> None:
        """The files of these runs are as large as the target takes them."""
        for one in additions:
            state = self._folder.read_run(one.project, one.run)
            if state is not None:
                self._folder.write_run(one.project, one.run, state._replace(is_merged=True))

    # -- what waits --------------------------------------------------------------------------------------------------

    def _source(self, project: Project, scratch: str) -> Source:
        store = project.other[:12] or self._store
        return Source(
            self._places, project.connection, project.name, self._target, store, scratch,
            is_atomic=self._sink.is_atomic, other=project.other,
        )  # fmt: skip

    def _next_artifacts(self) -> list[Addition]:
        """The next files of one version."""
        for project, version, state in self._waiting.artifacts():
            source = self._source(project, "")
            manifest = self._sink.read(f"{artifact_files.folder_of(project.name, version)}/manifest.json")
            if state is None and manifest is not None:
                state = RunState(Cursor(), version.digest)
                self._folder.write_run(project.name, project.key(version.key), state)
                continue
            addition, problems = artifact_files.next_files(source, version, state)
            self._waiting.problems += problems
            return [addition]
        return []

    def _next_additions(self, phase: str) -> list[Addition]:
        """What the next commit holds; nothing if nothing waits."""
        scratch = self._folder.scratch("next")
        found: list[Addition] = []
        now = self._clock()
        for project in self._waiting.projects():
            source = self._source(project, scratch)
            for run, token in project.runs.items():
                state = self._folder.read_run(project.name, project.key(run))
                is_full = len(found) >= self._most_files
                if is_full or not self._waiting.is_due(project, run, state, phase, self._most_rows):
                    continue
                try:
                    files = RunFiles(source, run)
                    more = self._merged(files, state) if phase == MERGES else self._new(files, state, token)
                    found += itertools.islice(more, self._most_files - len(found))
                    self._waiting.problems += files.problems
                except (StoreError, sqlite3.Error) as error:
                    problem = f"Run {run} of project '{project.name}' cannot be uploaded: {error}"
                    self._waiting.problems.append(problem)
        for one in found:
            if not one.is_news:
                self._folder.write_run(one.project, one.run, one.state)
            if not one.state.is_whole:
                self._waiting.again_at = now + SAMPLES_SECONDS
        return found

    def _new(self, files: RunFiles, state: RunState | None, token: str) -> Iterator[Addition]:
        state = self._right(files, state or RunState(Cursor()))
        yield from files.additions(state, token, self._most_rows, self._clock())

    def _right(self, files: RunFiles, state: RunState) -> RunState:
        """What is remembered of a run, put right by what its target says."""
        cursor = there.cursor_of(self._sink, files.names, state.cursor)
        if cursor == state.cursor:
            return state
        return state._replace(cursor=cursor, token="", files=() if not cursor.streams else state.files)

    def _merged(self, files: RunFiles, state: RunState | None) -> Iterator[Addition]:
        """What puts one file of a run in the place of several; tried once after each upload."""
        assert state is not None
        now = self._right(files, state)
        addition = merging.merged(files, now, self._most_rows) if now == state else None
        yield addition or Addition(files.project, files.key, {}, now._replace(is_merged=now == state), 0)
