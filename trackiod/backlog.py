"""What waits to be committed, a queue for each project, and when each is due. Pure: time is an argument.

A commit costs an fsync, pages that many streams share, and a page of the index for each stream that is in it. So the
batches of a project wait for each other: it commits twenty times a second where few ranks log, ten or five times where
many do. What somebody waits for is due at once and takes along what is queued.
A project whose commits fail is tried again at growing intervals, with one batch: its senders keep the others.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from trackio.record import Kind, kind_of_last
from trackiod.work import Append, Drain, Edit, Find, Raise, Refused, Register, Work

COMMIT_SECONDS = 0.1
FEW_COMMIT_SECONDS = 0.05
MANY_COMMIT_SECONDS = 0.2
"""Between two commits of a project; a dying host loses what arrived within it, too. After few batches it is less than
the 100 ms in which many loops log: a rank would else wait for its own last commit for ever."""
_FEW, _MANY = 4, 32
MOST_BYTES = 64 << 20
"""Of all projects: more batches are not taken while a disk is slow or hangs."""
_SOON_BYTES = 2 << 20
"""Of a project: so much is worth a commit of its own, and a sender waits for its window."""
_MOST_WORK_A_COMMIT = 2048
_WORK_BYTES = 1024
"""What a batch takes in memory beside its bytes."""
_RETRY_SECONDS, _LONGEST_RETRY_SECONDS = 0.5, 2.0
_MOST_QUESTIONS = 256
"""Of a project that fails: who asked first has given up."""
_URGENT = (Register, Drain, Find, Edit, Raise)


class _Entry(NamedTuple):
    """A piece of work, what it takes in memory, and whether somebody waits for it."""

    work: Work
    size: int
    is_urgent: bool


class _Queue:
    """One project's work, in the order in which it came."""

    __slots__ = ("bytes", "entries", "failures", "may_commit_at", "taken_at", "urgent", "urgent_at")

    def __init__(self) -> None:
        self.entries: deque[_Entry] = deque()
        self.bytes = self.urgent = self.failures = 0
        self.may_commit_at = self.taken_at = -math.inf
        self.urgent_at = math.inf

    def push(self, work: Work, now: float) -> int:
        """Returns the size of the work."""
        entry = _Entry(work, size_of(work), is_urgent(work))
        self.entries.append(entry)
        self.bytes += entry.size
        self.urgent += entry.is_urgent
        if entry.is_urgent:
            self.urgent_at = min(self.urgent_at, now)
        return entry.size

    def pop(self, count: int, now: float) -> list[_Entry]:
        """The oldest entries. Those that stay have waited since `now`."""
        taken = [self.entries.popleft() for _ in range(min(count, len(self.entries)))]
        self.bytes -= sum(entry.size for entry in taken)
        self.urgent -= sum(entry.is_urgent for entry in taken)
        self.urgent_at = now if self.urgent else math.inf
        return taken

    def drop(self, index: int) -> int:
        """Returns the size of what is dropped."""
        entry = self.entries[index]
        del self.entries[index]
        self.bytes -= entry.size
        self.urgent -= entry.is_urgent
        return entry.size

    def due_at(self) -> float:
        """When to commit; never while nothing waits."""
        if not self.entries:
            return math.inf
        if self.failures:
            return self.may_commit_at
        if self.bytes >= _SOON_BYTES or len(self.entries) >= _MOST_WORK_A_COMMIT:
            return -math.inf
        return min(self.may_commit_at, self.urgent_at if self.urgent else math.inf)


class Backlog:
    """Decides what is committed next. Not for several threads at once."""

    def __init__(self) -> None:
        self.bytes = 0
        """of batches that wait or are being committed"""
        self._queues: dict[str, _Queue] = {}
        self._in_hand = 0

    def __len__(self) -> int:
        return sum(len(queue.entries) for queue in self._queues.values())

    def add(self, work: Work, now: float) -> bool:
        """Take work; True if something is due earlier than before."""
        queue = self._queues.setdefault(work.project, _Queue())
        before = queue.due_at()
        if queue.failures:
            self._make_room(queue, work)
        self.bytes += queue.push(work, now)
        if isinstance(work, Edit):
            queue.may_commit_at = min(queue.may_commit_at, now)  # a deletion may be what makes room
        return queue.due_at() < before

    def _make_room(self, queue: _Queue, work: Work) -> None:
        """Drop what `work` repeats: processes repeat themselves for as long as a project fails."""
        if isinstance(work, (Register, Refused)):
            is_old = [
                type(old) is type(work) and getattr(old, "stream", "") == work.stream for old, *_ in queue.entries
            ]
        elif isinstance(work, Find):
            is_question = [isinstance(entry.work, Find) for entry in queue.entries]
            is_old = is_question if sum(is_question) >= _MOST_QUESTIONS else []
        else:
            return
        if True in is_old:
            self.bytes -= queue.drop(is_old.index(True))

    def room(self, project: str) -> int:
        """Return how many bytes of a project may be added: none while its commits fail."""
        return 0 if self.is_failing(project) else max(0, MOST_BYTES - self.bytes)

    def is_failing(self, project: str) -> bool:
        """Whether the last commit of a project failed."""
        queue = self._queues.get(project)
        return queue is not None and queue.failures > 0

    def seconds_until_due(self, now: float) -> float | None:
        """Return how long nothing is to be committed; None for ever."""
        due_at = min((queue.due_at() for queue in self._queues.values()), default=math.inf)
        return None if due_at == math.inf else max(0.0, due_at - now)

    def take(self, now: float) -> list[Work]:
        """Return work of one project to be committed together; nothing if none is due. Projects take turns.

        It is in hand until `done` or `put_back`.
        """
        due = [queue for queue in self._queues.values() if queue.due_at() <= now]
        if not due:
            return []
        queue = min(due, key=lambda queue: queue.taken_at)
        queue.taken_at = now
        taken = queue.pop(_MOST_WORK_A_COMMIT, now)
        self._in_hand = sum(entry.size for entry in taken)
        queue.may_commit_at = now + pause_after(len(taken))
        return [entry.work for entry in taken]

    def done(self, project: str, now: float) -> None:
        """Note that what is in hand is committed."""
        self._settle()
        queue = self._queues.get(project)
        if queue is not None:
            queue.failures = 0
        for name in [n for n, q in self._queues.items() if not q.entries and not q.failures and q.may_commit_at <= now]:
            del self._queues[name]

    def put_back(self, project: str, items: Iterable[Work], now: float) -> int:
        """Take back what could not be committed, without the project's batches after the first. Return how many
        batches were dropped."""
        self._settle()
        queue = self._queues.setdefault(project, _Queue())
        self.bytes -= queue.bytes
        waiting = [*items, *(entry.work for entry in queue.pop(len(queue.entries), now))]
        batches = [index for index, work in enumerate(waiting) if isinstance(work, Append)]
        dropped = set(batches[1:])
        for index, work in enumerate(waiting):
            if index not in dropped:
                self.bytes += queue.push(work, now)
        queue.failures += 1
        queue.may_commit_at = now + min(_RETRY_SECONDS * 2 ** min(queue.failures - 1, 16), _LONGEST_RETRY_SECONDS)
        return len(dropped)

    def hurry(self, *, is_last_try: bool = False) -> None:
        """Make all that waits due, since the daemon leaves; with `is_last_try` also what failed."""
        for queue in self._queues.values():
            if is_last_try or not queue.failures:
                queue.may_commit_at = -math.inf

    def _settle(self) -> None:
        self.bytes -= self._in_hand
        self._in_hand = 0


def pause_after(pieces: int) -> float:
    """Return how long a project is not committed after a commit of so many pieces of work."""
    if pieces <= _FEW:
        return FEW_COMMIT_SECONDS
    return COMMIT_SECONDS if pieces < _MANY else MANY_COMMIT_SECONDS


def size_of(work: Work) -> int:
    """Return what a batch takes in memory; other work is not counted."""
    return len(work.data.body) + _WORK_BYTES if isinstance(work, Append) else 0


def is_urgent(work: Work) -> bool:
    """Whether somebody waits for it. A process that ends gives its last batch a moment."""
    if isinstance(work, Append):
        return kind_of_last(work.data.body, work.data.start) == Kind.FINISH
    return isinstance(work, _URGENT)
