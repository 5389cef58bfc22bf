"""The commit thread: the one place that writes. Takes work from the loop, gives back outcomes.

Everything that waits for the disk happens here, so the loop never does. All work that has queued up is
committed together, one transaction a project. A full or failing disk rolls back, acks nothing, and the
same work is tried again later; meanwhile the senders keep their data.
"""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from trackio import folder, wire
from trackio.places import COUNTERS
from trackiod import incoming, recovery, resuming
from trackiod.databases import Databases
from trackiod.editing import DELETE_PROJECT, edit
from trackiod.errors import StoreDamaged, StoreError
from trackiod.exits import verdict
from trackiod.folding import Folding
from trackiod.ingest import Duplicate, Refuse, judge
from trackiod.store import finding
from trackiod.store.digest import End
from trackiod.store.project import ProjectStore
from trackiod.work import (
    AlertSent,
    Append,
    Deleted,
    Drain,
    Drained,
    Edit,
    Errand,
    FileKept,
    Find,
    InCommit,
    NotDrained,
    OfStream,
    Raise,
    Refused,
    Register,
    Reply,
    ToKeep,
    ToSend,
    Work,
    joined,
)

log = logging.getLogger("trackiod.committer")

_RETRY_SECONDS = 1.0
_MAX_WORK_A_COMMIT = 512
_PORTION_BYTES = 32 << 20
"""of a long spill in one transaction"""
_DAMAGED = "the spool was damaged or deleted"


class Committer:
    """Owns the thread and every project's writing connection. `stop` commits what is queued first."""

    def __init__(
        self,
        projects: str,
        store_id: str,
        on_outcome: Callable[[], None],
        on_errand: Callable[[Errand], None] = lambda _: None,
        most_sample_bytes: int | None = None,
    ) -> None:
        """`on_outcome` is called in the thread when outcomes wait in `outcomes`, `on_errand` with everything that is to
        be done beside storing, more than once if need be."""
        self.outcomes: deque[Reply | Drained | NotDrained | Deleted] = deque()
        self.problem = ""
        """why nothing can be committed now, or empty"""
        self.commits = 0
        self.of_project: Counter[str] = Counter()
        """commits that changed a project"""
        self._projects = projects
        self._live = os.path.dirname(projects)
        self._store_id = store_id
        self._on_outcome = on_outcome
        self._on_errand = on_errand
        self._databases = Databases(projects, store_id)
        self._folding = Folding(self._databases, most_sample_bytes)
        self._raw_bytes = 0
        """of what the transaction in hand stored, to be folded later"""
        self._errands: list[Errand] = []
        """what is to be done beside storing what the transaction in hand stored"""
        self._work: deque[Work] = deque()
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="commit", daemon=True)

    def start(self) -> None:
        os.makedirs(self._projects, 0o700, exist_ok=True)
        self._thread.start()

    def submit(self, work: Work) -> None:
        self._work.append(work)
        self._wake.set()

    @property
    def backlog(self) -> int:
        """Pieces of work not yet done."""
        return len(self._work)

    def stop(self, seconds: float) -> bool:
        """Commits what is queued, closes the databases; False if the disk took too long."""
        self._stopping = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(seconds)
        return not self._thread.is_alive()

    def open_streams(self) -> list[tuple[str, str, dict[str, Any]]]:
        """(project, stream, meta) of every stream no end is known of. Before `start` only."""
        os.makedirs(self._projects, 0o700, exist_ok=True)
        return resuming.take_up(self._projects, self._databases, self._folding, self._on_errand)

    # -- the thread ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            self._wake.wait(0 if self._work else self._folding.seconds_until_due())
            self._wake.clear()
            while self._work:
                if not self._commit_some():
                    break
                for _ in range(self._folding.slices_beside_ingest()):
                    self._folding.step()
            if self._stopping:
                break
            if self._folding.is_due():
                self._folding.step()
        self._databases.close_all()

    def _commit_some(self) -> bool:
        """Commits what is queued, a project at a time. False if the disk refused."""
        taken = [self._work.popleft() for _ in range(min(len(self._work), _MAX_WORK_A_COMMIT))]
        by_project: dict[str, list[Work]] = {}
        for work in taken:
            by_project.setdefault(work.project, []).append(work)
        problem = ""
        for project, all_items in by_project.items():
            items: list[InCommit] = [work for work in all_items if not isinstance(work, Edit)]
            failed = self._commit(project, items) if items else ""
            for work in all_items:
                if isinstance(work, Edit):
                    answer = edit(self._databases, work)
                    if answer.done and work.action == DELETE_PROJECT:
                        self.outcomes.append(Deleted(work.project))
                    self.outcomes.append(Reply(work.peer, answer))
                    self._note_commit(work.project, work.argument)
                    self._on_outcome()
            if failed:
                problem = failed
                log.warning("%s", failed)
                self._work.extendleft(reversed(items))
        self.problem = problem
        if problem and not self._stopping:
            time.sleep(_RETRY_SECONDS)
        return not problem

    def _commit(self, project: str, items: list[InCommit]) -> str:
        """One transaction over one project's work. Returns why it could not be done, or ""."""
        try:
            store = self._databases.get(project)
        except StoreDamaged as error:
            return self._databases.set_aside(project, str(error))
        except StoreError as error:
            self._refuse(items, str(error))
            return ""
        except (sqlite3.Error, OSError) as error:
            return f"project {project!r} cannot be opened: {error}"
        self._raw_bytes = 0
        self._errands = []
        outcomes: list[Reply | Drained] = []
        after: list[Callable[[], None]] = []
        try:
            with store.transaction():
                for work in joined(items):
                    outcome = self._apply(store, work, after)
                    if outcome is not None:
                        outcomes.append(outcome)
        except sqlite3.Error as error:
            is_damaged = store.is_damaged(error)
            self._databases.close(project)
            if is_damaged:
                return self._databases.set_aside(project, f"{store.path} is damaged ({error}).")
            return f"project {project!r} cannot be written: {error}"
        except Exception:  # the border of the commit thread: one odd piece of work must not stop the others
            log.exception("internal error in project %r", project)
            return self._commit_apart(project, items)
        if not store.is_linked():
            self._databases.close(project)
            return f"the database of project {project!r} was removed; it goes on in a new one."
        self._note_commit(project)
        streams = [work.stream for work in items if isinstance(work, OfStream)]
        self._folding.note(project, streams, self._raw_bytes)
        for act in after:
            act()
        for errand in self._errands:
            self._on_errand(errand)
        self.outcomes.extend(outcomes)
        self._on_outcome()
        return ""

    def _note_commit(self, *projects: str) -> None:
        self.commits += 1
        self.of_project.update(projects)

    def _commit_apart(self, project: str, items: list[InCommit]) -> str:
        """Finds the piece of work that cannot be done by doing each alone; that one is refused."""
        if len(items) == 1:
            self._refuse(items, "internal error in trackiod, see its log.")
            return ""
        for i, work in enumerate(items):
            failed = self._commit(project, [work])
            if failed:
                del items[:i]
                return failed
        return ""

    def _refuse(self, items: list[InCommit], reason: str) -> None:
        """The project cannot be written by us at all: its senders keep their data."""
        log.warning("%s", reason)
        for work in items:
            if isinstance(work, (Register, Append)):
                self.outcomes.append(Reply(work.peer, wire.Refusal(work.stream, reason)))
            elif isinstance(work, Find):
                self.outcomes.append(Reply(work.peer, wire.Found(work.project, work.name)))
            elif isinstance(work, Drain):
                self.outcomes.append(NotDrained(work.stream))
        self._on_outcome()

    def _apply(self, store: ProjectStore, work: InCommit, after: list[Callable[[], None]]) -> Reply | Drained | None:
        match work:
            case Register():
                committed = store.register(work.stream, work.meta)
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
            case Raise():
                stream = store.shelf.raise_alert(time.time_ns(), work.facts)
                self._errands += [ToSend(store.project, *alert) for alert in store.shelf.alerts_to_send(stream)]
                return None
            case AlertSent():
                store.shelf.note_sent(work.stream, work.start, work.sent)
                return None
            case Find():
                run, step = finding.find_run(store, work.name, work.attempt)
                return Reply(work.peer, wire.Found(work.project, work.name, run, step))
            case Drain():
                if not self._drain(store, work):
                    after.append(lambda: self._go_on(work))
                    return None
                after.append(lambda: incoming.remove_strays(self._live, work.stream, store.shelf.waiting_of))
                is_whole = not store.has_holes(work.stream, _DAMAGED)
                after.append(lambda: _remove_all(work.folders) if is_whole else self._set_aside(work))
                return Drained(work.stream)

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

    def _set_aside(self, work: Drain) -> None:
        """Keeps the files of a spool in which something could not be read; all that could is stored."""
        kept = os.path.join(self._live, "damaged", f"{work.stream}-{time.time_ns()}")
        try:
            for number, path in enumerate(work.folders):
                shutil.move(path, f"{kept}-{number}")
            log.error("the spool of stream %s is damaged; its files are kept as %s-*", work.stream, kept)
        except OSError as error:
            log.error("the spool of stream %s is damaged and cannot be set aside: %s", work.stream, error)
            _remove_all(work.folders)

    def _go_on(self, work: Drain) -> None:
        """The next portion, after what waits meanwhile; a daemon that leaves has the next one go on."""
        if not self._stopping:
            self.submit(work)

    def _drain(self, store: ProjectStore, work: Drain) -> bool:
        """A portion of what a dead process left, each record once; with the last its end. False if there is more."""
        portion = 0
        if store.committed(work.stream) is None and not any(map(os.path.isdir, work.folders)):
            return True  # its run was deleted
        position = store.register(work.stream, work.meta)
        for batch in recovery.batches(work.sources(), position):
            if portion >= _PORTION_BYTES:
                return False
            if batch.start > position:
                self._add_hole(store, work.stream, position, batch.start, _DAMAGED)
            self._store_batch(store, work.stream, batch.start, batch.data)
            position = batch.end
            portion += len(batch.data)
        for path in work.folders:
            store.set_refused(work.stream, *recovery.read_counters(os.path.join(path, COUNTERS)))
        state, explicit, last_ns = store.end_of(work.stream)
        ruling = verdict(state, explicit, work.exit)
        if ruling is not None:
            if state is None and ruling[0] == "lost" and work.meta.get("interactive"):
                ruling = ("ended", "the kernel is gone")
            at_ns = time.time_ns() if work.exit.state else last_ns or int(work.meta["started_ns"])
            store.end(work.stream, End(*ruling, explicit=False, time_ns=at_ns))
        return True


def _remove_all(folders: tuple[str, ...]) -> None:
    for path in folders:
        folder.remove(path)
