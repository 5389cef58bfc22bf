"""The commit thread: the one place that writes. Takes work from the loop, gives back outcomes.

Everything that waits for the disk happens here, so the loop never does. What has queued up for a project is committed
together, when `Backlog` says so. A full or failing disk rolls back, acks nothing, and is tried again later with a part
of the work; meanwhile the senders keep their data.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import sqlite3
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from typing import Any

from trackio import wire
from trackio.lookup import is_there
from trackio.places import COUNTERS
from trackiod import aside, incoming, recovery, resuming
from trackiod.backlog import Backlog
from trackiod.causes import cause_of, is_refusal
from trackiod.databases import BeingChecked, Databases
from trackiod.editing import DELETE_PROJECT, edit
from trackiod.errors import StoreDamaged, StoreError
from trackiod.exits import Exit, verdict
from trackiod.folding import Folding
from trackiod.ingest import Duplicate, Refuse, judge
from trackiod.store import finding, schema
from trackiod.store.digest import End
from trackiod.store.project import ProjectStore
from trackiod.suspects import Suspects
from trackiod.threads import Threads
from trackiod.troubles import Troubles
from trackiod.work import (
    AlertSent,
    Append,
    Deleted,
    Drain,
    Drained,
    Edit,
    Errand,
    Failing,
    FileKept,
    FileWaits,
    Find,
    InCommit,
    MoveAside,
    MovedAside,
    NotDrained,
    OfStream,
    Raise,
    Refused,
    Register,
    Reply,
    Settled,
    TakenUp,
    TakeUp,
    ToKeep,
    ToSend,
    Trouble,
    Work,
    joined,
    trouble_of,
)

log = logging.getLogger("trackiod.committer")

_PORTION_BYTES = 32 << 20
"""of a long spill in one transaction"""
_LOOK_SECONDS = 0.1
_MOST_REFUSALS = 1
"""of what SQLite cannot run, before the piece of work is sought that asks for it"""
_DAMAGED = "the spool was damaged or deleted"
_UNUSABLE = (sqlite3.ProgrammingError, sqlite3.InterfaceError, OverflowError, TypeError, ValueError, KeyError)
"""What facts of a stream raise that are not of their types."""


class Committer:
    """Owns the thread and every project's writing connection. `stop` commits what is queued first."""

    def __init__(
        self,
        projects: str,
        store_id: str,
        on_outcome: Callable[[], None],
        on_errand: Callable[[Errand], None] = lambda _: None,
        most_sample_bytes: int | None = None,
        on_settled: Callable[[Settled], None] = lambda _: None,
        suspects: Suspects | None = None,
    ) -> None:
        """`on_outcome` is called in the thread when outcomes wait in `outcomes`, `on_errand` with everything that is to
        be done beside storing, more than once if need be, `on_settled` when what came of it is stored."""
        self.outcomes: deque[Reply | Drained | NotDrained | MovedAside | Deleted | Failing | TakenUp] = deque()
        self.problem = ""
        """why something cannot be committed now, or empty"""
        self.commits = 0
        self.of_project: Counter[str] = Counter()
        """commits that changed a project"""
        self._projects = projects
        self._live = os.path.dirname(projects)
        self._store_id = store_id
        self._on_outcome = on_outcome
        self._on_errand = on_errand
        self._on_settled = on_settled
        self._suspects = suspects or Suspects(projects)
        self._databases = Databases(projects, store_id, self._suspects)
        self._folding = Folding(self._databases, most_sample_bytes)
        self._refused_by_sqlite: Counter[str] = Counter()
        """how often in a row SQLite could not run what a project's work asks for"""
        self._raw_bytes = 0
        """of what the transaction in hand stored, to be folded later"""
        self._errands: list[Errand] = []
        """what is to be done beside storing what the transaction in hand stored"""
        self._backlog = Backlog()
        self._backlog_lock = threading.Lock()
        self._troubles = Troubles()
        self._missing: resuming.Missing | None = None
        self._wake = threading.Event()
        self._stopping = False
        self._thread: threading.Thread | None = None

    def start(self, threads: Threads) -> None:
        """Starts the thread. Raises CannotStart."""
        self._thread = threads.start("commit", self._run)

    def submit(self, work: Work) -> None:
        """Takes work from any thread."""
        with self._backlog_lock:
            is_sooner = self._backlog.add(work, time.monotonic())
        if is_sooner:
            self._wake.set()

    def submit_batch(self, work: Append) -> bool:
        """The same; False if it is not taken now: commits of its project fail, or the disk is behind."""
        with self._backlog_lock:
            if self._backlog.room(work.project) < len(work.data.body):
                return False
            is_sooner = self._backlog.add(work, time.monotonic())
        if is_sooner:
            self._wake.set()
        return True

    def room(self, project: str) -> int:
        """How many bytes of batches of a project would be taken now."""
        with self._backlog_lock:
            return self._backlog.room(project)

    @property
    def backlog(self) -> int:
        """Pieces of work not yet done."""
        with self._backlog_lock:
            return len(self._backlog)

    def stop(self, seconds: float) -> bool:
        """Commits what is queued, closes the databases; False if the disk took too long."""
        self._stopping = True
        self._wake.set()
        if self._thread is None:
            return True
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def open_streams(self) -> list[tuple[str, str, dict[str, Any]]]:
        """(project, stream, meta) of every stream no end is known of. Before `start` only."""
        os.makedirs(self._projects, 0o700, exist_ok=True)
        found = resuming.take_up(self._projects, self._databases, self._suspects, self._folding, self._on_errand)
        self._missing = found.missing
        for project in found.unread:
            self.submit(TakeUp(project))
        return found.open_streams

    # -- the thread ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping:
            self._wait()
            self._judge()
            while self._commit_next():
                for _ in range(self._folding.slices_beside_ingest()):
                    self._folding.step()
            if self._folding.is_due() and not self._stopping:
                self._folding.step()
            self._find_missing()
        self.commit_all()
        self._suspects.close()
        self._databases.close_all()

    def _judge(self) -> None:
        """What is known by now of databases that looked damaged."""
        for judged in self._suspects.step():
            if judged.is_damaged:
                self._note_failure(judged.project, self._databases.set_aside(judged.project, judged.sentence))
            else:
                what = judged.sentence or "it is whole"
                log.warning("the database of project %r looked damaged: %s; it goes on", judged.project, what)

    def _wait(self) -> None:
        with self._backlog_lock:
            until_due = self._backlog.seconds_until_due(time.monotonic())
            until_look = None if self._missing is None else self._missing.seconds_until_due(time.monotonic())
        looking = None if self._suspects.is_idle else _LOOK_SECONDS
        seconds = [s for s in (until_due, until_look, self._folding.seconds_until_due(), looking) if s is not None]
        self._wake.wait(min(seconds, default=None))
        self._wake.clear()

    def _find_missing(self) -> None:
        """Takes up projects that could not be read when the daemon started."""
        now = time.monotonic()
        if self._missing is None or self._missing.seconds_until_due(now) != 0.0:
            return
        try:
            for project in self._missing.look(now):
                self.submit(TakeUp(project))
        except OSError as error:
            log.warning("projects cannot be looked for: %s", error)

    def commit_all(self) -> None:
        """Commits what is queued, whether it is due or not; what fails stays queued. In the thread, or without it."""
        with self._backlog_lock:
            self._backlog.hurry(is_last_try=True)
        self._judge()
        while self._commit_next():
            with self._backlog_lock:
                self._backlog.hurry()

    def _commit_next(self) -> bool:
        """Commits the work that is due of one project. False if none is."""
        with self._backlog_lock:
            taken = self._backlog.take(time.monotonic())
        if not taken:
            return False
        project = taken[0].project
        items: list[InCommit] = [work for work in taken if not isinstance(work, (Edit, MoveAside))]
        try:
            failed = self._commit(project, items) if items else ""
            for work in taken:
                if isinstance(work, Edit):
                    self._edit(work)
                elif isinstance(work, MoveAside):
                    self._move_aside(work)
        except Exception as error:  # the border of the commit thread: one project must not stop the others
            log.exception("internal error in project %r", project)
            failed = f"project {project!r} cannot be committed: internal error ({type(error).__name__}), see the log."
        with self._backlog_lock:
            if failed:
                self._backlog.put_back(project, items, math.inf if self._stopping else time.monotonic())
            else:
                self._backlog.done(project, time.monotonic())
                self._refused_by_sqlite.pop(project, None)
        if failed:
            self._note_failure(project, failed)
            self.outcomes.append(Failing(project))
        self.problem = self._troubles.summary
        self._on_outcome()
        return True

    def _edit(self, work: Edit) -> None:
        answer = edit(self._databases, work)
        if answer.done and work.action == DELETE_PROJECT:
            self.outcomes.append(Deleted(work.project))
        self.outcomes.append(Reply(work.peer, answer))
        self._note_commit(work.project, work.argument)

    def _note_failure(self, project: str, sentence: str) -> None:
        if message := self._troubles.note(project, sentence, time.monotonic()):
            log.warning("%s", message)

    def _commit(self, project: str, items: list[InCommit]) -> str:
        """One transaction over one project's work. Returns why it could not be done, or ""."""
        try:
            store = self._databases.get(project)
        except BeingChecked as error:
            return str(error)
        except StoreDamaged as error:
            return self._suspects.add(project, str(error))
        except StoreError as error:
            self._refuse(project, items, str(error))
            return ""
        except (sqlite3.Error, OSError) as error:
            path = schema.path_of(self._projects, project)
            return f"project {project!r} cannot be opened: {cause_of(error, path)}."
        self._raw_bytes = 0
        self._errands = []
        outcomes: list[Reply | Drained | NotDrained] = []
        after: list[Callable[[], None]] = []
        try:
            with store.transaction():
                for work in joined(items):
                    outcome = self._apply(store, work, after)
                    if outcome is not None:
                        outcomes.append(outcome)
        except sqlite3.Error as error:
            return self._on_sqlite_error(store, items, error)
        except StoreDamaged as error:
            self._databases.close(project)
            return self._suspects.add(project, str(error))
        except OSError as error:  # of a file beside the database, as the address of a webhook
            return f"project {project!r} cannot be written: {cause_of(error, error.filename or store.path)}."
        except Exception:  # the border of the commit thread: one odd piece of work must not stop the others
            log.exception("internal error in project %r", project)
            return self._commit_apart(project, items, "internal error in trackiod, see its log.")
        if not store.is_linked():
            self._databases.close(project)
            return f"the database of project {project!r} was removed; it goes on in a new one."
        self._act(project, lambda: store.cut_log(time.monotonic()))
        self._note_commit(project)
        if message := self._troubles.clear(project, time.monotonic()):
            log.info("%s", message)
        streams = [work.stream for work in items if isinstance(work, OfStream)]
        self._folding.note(project, streams, self._raw_bytes)
        after += [partial(self._on_settled, work) for work in items if isinstance(work, Settled)]
        after += [partial(self._on_errand, errand) for errand in self._errands]
        for act in after:
            self._act(project, act)
        self.outcomes.extend(outcomes)
        self._on_outcome()
        return ""

    @staticmethod
    def _act(project: str, act: Callable[[], None]) -> None:
        """Does what follows a commit, which is not undone if that fails."""
        try:
            act()
        except Exception:  # the border of the commit thread
            log.exception("internal error after a commit of project %r", project)

    def _note_commit(self, *projects: str) -> None:
        self.commits += 1
        self.of_project.update(projects)

    def _on_sqlite_error(self, store: ProjectStore, items: list[InCommit], error: sqlite3.Error) -> str:
        """What looks like damage is looked at by a child. What SQLite cannot run is tried once more by a new
        connection; then the work is sought that asks for it. All else may pass. Returns why it waits, or ""."""
        project, is_ours = store.project, is_refusal(error)
        looks_damaged = store.looks_damaged(error) and not (is_ours and self._suspects.was_whole(project))
        self._databases.close(project)
        if looks_damaged:
            return self._suspects.add(project, f"{store.path} looks damaged: {error}")
        if is_ours:
            self._refused_by_sqlite[project] += 1
            if self._refused_by_sqlite[project] > _MOST_REFUSALS:
                return self._commit_apart(project, items, f"SQLite cannot store it: {error}.")
        return f"project {project!r} cannot be written: {cause_of(error, store.path)}."

    def _commit_apart(self, project: str, items: list[InCommit], reason: str) -> str:
        """Finds the piece of work that cannot be done by doing each alone; that one is refused, and of a batch the
        record is set aside that cannot be stored."""
        if len(items) == 1:
            (work,) = items
            if not isinstance(work, Append):
                self._refuse(project, items, reason, lasts=True)
                return ""
            halves = work.halves()
            if not halves:
                return self._set_record_aside(work, reason)
            return self._commit_apart(project, list(halves), reason)
        for i, work in enumerate(items):
            failed = self._commit(project, [work])
            if failed:
                del items[:i]
                return failed
        return ""

    def _set_record_aside(self, work: Append, reason: str) -> str:
        """Keeps a record that cannot be stored as a file; its sender goes on behind it."""
        data, path = work.data, schema.path_of(self._projects, work.project)
        try:
            kept = aside.keep(self._live, f"{data.stream}-{data.start}", bytes(data.body))
            store = self._databases.get(work.project)
            with store.transaction():
                committed = store.committed(data.stream) or 0
                if committed == data.start:
                    self._add_hole(store, data.stream, data.start, data.end, reason)
                    committed = data.end
        except (sqlite3.Error, OSError) as error:
            return f"project {work.project!r} cannot be written: {cause_of(error, path)}."
        log.error("a record of stream %s cannot be stored: %s It is kept as %s", data.stream, reason, kept)
        self._note_commit(work.project)
        self.outcomes.append(Reply(work.peer, wire.Ack(data.stream, committed, rewind=committed < data.start)))
        return ""

    def _refuse(self, project: str, items: list[InCommit], reason: str, *, lasts: bool = False) -> None:
        """The project cannot be written by us at all, or this work cannot be done: its senders keep their data.
        `lasts`: it is the work itself, so trying again gives the same."""
        self._note_failure(project, reason)
        for work in items:
            if isinstance(work, (Register, Append)):
                self.outcomes.append(Reply(work.peer, wire.Refusal(work.stream, reason)))
            elif isinstance(work, Find):
                self.outcomes.append(Reply(work.peer, wire.Found(work.project, work.name)))
            elif isinstance(work, Drain):
                self.outcomes.append(NotDrained(work.stream, Trouble(reason, lasts=lasts)))
            elif isinstance(work, Settled):
                self._on_settled(work)  # the next daemon does it again
        self._on_outcome()

    def _apply(
        self, store: ProjectStore, work: InCommit, after: list[Callable[[], None]]
    ) -> Reply | Drained | NotDrained | None:
        match work:
            case Register():
                committed = store.register(work.stream, work.meta, time.time_ns())
                return Reply(work.peer, wire.Welcome(work.stream, committed, self._store_id))
            case Append():
                return Reply(work.peer, self._append(store, work.data))
            case Refused():
                store.set_refused(work.stream, work.records, work.points)
                return None
            case FileKept():
                store.shelf.note_file(work.file, *work[3:])
                after.append(lambda: incoming.remove(self._live, work.file))
                return None
            case FileWaits():
                store.shelf.pass_over(work.file)
                return None
            case Raise():
                stream = store.shelf.raise_alert(time.time_ns(), work.facts)
                self._errands += [ToSend(store.project, *alert) for alert in store.shelf.alerts_to_send(stream)]
                return None
            case AlertSent():
                kept = store.shelf.note_sent(work.stream, work.start, work.sent)
                after.append(lambda: store.shelf.addresses.forget(kept))
                return None
            case TakeUp():
                found = resuming.of_store(store, self._live, self._databases, self._folding, self._on_errand)
                after.append(lambda: self.outcomes.append(TakenUp(found)))
                return None
            case Find():
                run, step = finding.find_run(store, work.name, work.attempt)
                return Reply(work.peer, wire.Found(work.project, work.name, run, step))
            case Drain():
                return self._apply_drain(store, work, after)

    def _apply_drain(
        self, store: ProjectStore, work: Drain, after: list[Callable[[], None]]
    ) -> Drained | NotDrained | None:
        """What cannot be read is no reason to undo what else is in this transaction, nor what was stored so far."""
        try:
            is_done = self._drain(store, work)
        except OSError as error:
            return NotDrained(work.stream, trouble_of(error))
        if not is_done:
            after.append(lambda: self._go_on(work))
            return None
        after.append(lambda: incoming.remove_strays(self._live, work.stream, store.shelf.waiting_of))
        is_whole = not store.has_holes(work.stream, _DAMAGED)
        after.append(lambda: self._clear(work, is_whole=is_whole))
        return None

    def _append(self, store: ProjectStore, data: wire.Data) -> wire.Message:
        committed = store.committed(data.stream)
        if committed is None:
            return wire.Unknown(data.stream)
        if len(data.body) != data.end - data.start:
            return wire.Ack(data.stream, committed, rewind=True)
        if any(data.refused):
            store.set_refused(data.stream, *data.refused[:2])
        ruling = judge(committed, data.start, data.end, data.oldest)
        if isinstance(ruling, Duplicate):
            return wire.Ack(data.stream, ruling.committed)
        if isinstance(ruling, Refuse):
            return wire.Ack(data.stream, ruling.committed, rewind=True)
        if ruling.has_hole:
            self._add_hole(store, data.stream, ruling.hole_start, ruling.start, "the store was replaced")
        self._store_batch(store, data.stream, ruling.start, bytes(data.body[ruling.start - data.start :]))
        return wire.Ack(data.stream, data.end)

    def _store_batch(self, store: ProjectStore, stream: str, start: int, body: bytes) -> None:
        stored = self._folding.store_batch(store, stream, start, body)
        self._raw_bytes += stored.raw_bytes
        self._errands += [ToKeep(store.project, f"{stream}/{number}", facts) for number, facts in stored.files]
        if stored.has_alerts:
            self._errands += [ToSend(store.project, *alert) for alert in store.shelf.alerts_to_send(stream)]

    @staticmethod
    def _add_hole(store: ProjectStore, stream: str, start: int, end: int, cause: str) -> None:
        store.add_hole(stream, start, end, cause, time.time_ns())
        store.skip_to(stream, end)

    def _clear(self, work: Drain, *, is_whole: bool) -> None:
        """All that could be read is stored: the folders go, and are kept where something could not."""
        try:
            if is_whole:
                for path in work.folders:
                    aside.remove(path)
            else:
                aside.move(self._live, work.stream, filter(is_there, work.folders), "its spool is damaged")
        except OSError as error:
            self.outcomes.append(NotDrained(work.stream, trouble_of(error)))
        else:
            self.outcomes.append(Drained(work.stream))

    def _move_aside(self, work: MoveAside) -> None:
        """Moves a stream's folders out of the way; its run ends with what is stored and a counted gap."""
        try:
            if work.meta is not None:
                self._end_with_gap(work, work.meta)
            paths = aside.move(self._live, work.stream, filter(is_there, work.folders), work.cause)
        except OSError as error:
            self.outcomes.append(MovedAside(work.stream, (), trouble_of(error)))
        except (sqlite3.Error, StoreError) as error:
            self.outcomes.append(MovedAside(work.stream, (), Trouble(str(error))))
        else:
            self.outcomes.append(MovedAside(work.stream, paths))

    def _end_with_gap(self, work: MoveAside, meta: dict[str, Any]) -> None:
        store = self._databases.get(work.project)
        try:
            with store.transaction():
                position = store.register(work.stream, meta, time.time_ns())
                store.add_hole(work.stream, position, max(position + 1, work.head), work.cause, time.time_ns())
                self._end(store, work.stream, meta, work.exit)
        except _UNUSABLE as error:
            log.error("stream %s cannot be stored, and its run is not known: %s", work.stream, error)
            return
        self._note_commit(work.project)

    def _go_on(self, work: Drain) -> None:
        """The next portion, after what waits meanwhile; a daemon that leaves has the next one go on."""
        if not self._stopping:
            self.submit(work)

    def _drain(self, store: ProjectStore, work: Drain) -> bool:
        """A portion of what a dead process left, each record once; with the last its end. False if there is more.
        Raises OSError where something cannot be read: what is stored so far stays, and nothing is removed."""
        portion = 0
        if store.committed(work.stream) is None and not any(map(is_there, work.folders)):
            return True  # its run was deleted
        position = store.register(work.stream, work.meta, time.time_ns())
        sources = work.sources()
        for batch in recovery.batches(sources, position):
            if portion >= _PORTION_BYTES:
                return False
            if batch.start > position:
                self._add_hole(store, work.stream, position, batch.start, _DAMAGED)
            if batch.data:
                self._store_batch(store, work.stream, batch.start, batch.data)
            position = batch.end
            portion += len(batch.data)
        if work.exit.head > position:
            self._add_hole(store, work.stream, position, work.exit.head, "its spool was cut short")
        if recovery.ranges(sources) != recovery.ranges(work.sources()):
            raise OSError(errno.ESTALE, "what lies there changed while it was read", *work.folders[:1])
        for path in work.folders:
            store.set_refused(work.stream, *recovery.read_counters(os.path.join(path, COUNTERS)))
        self._end(store, work.stream, work.meta, work.exit)
        return True

    @staticmethod
    def _end(store: ProjectStore, stream: str, meta: dict[str, Any], exit: Exit) -> None:
        """The end of a stream whose process is gone, if what it said itself does not stand."""
        state, explicit, last_ns = store.end_of(stream)
        ruling = verdict(state, explicit, exit)
        if ruling is None:
            return
        if state is None and ruling[0] == "lost" and meta.get("interactive"):
            ruling = ("ended", "the kernel is gone")
        at_ns = time.time_ns() if exit.state else last_ns or int(meta["started_ns"])
        store.end(stream, End(*ruling, explicit=False, time_ns=at_ns))
