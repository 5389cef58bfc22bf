"""The threads that have staged files kept, each by a child of its own (`keeper`), and when a file is tried again.

A file that cannot be kept now waits, ever longer, while others are kept; it is never given up. One that somebody waits
for with a write (`leases`) comes before all others, and a large or stuck one is gone round by another child.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from trackio.places import Places
from trackiod import blobs, children, keeper
from trackiod.keeper import Kept
from trackiod.leases import Leases
from trackiod.work import FileKept, FileWaits, ToKeep

log = logging.getLogger("trackiod.keepers")

KEEPERS = 4
"""threads, each with a child while there is something to keep"""
_BUSY_SECONDS = 2.0
"""after which another thread helps one that is at work"""
_CHILD_IDLE_SECONDS = 10.0
_CHILD_END_SECONDS = 1.0
_SLOWEST_BYTES_A_SECOND = 2 << 20
_PATIENCE_SECONDS = 900.0
_CRASHES = 3
"""of a child over one file, before it is no longer encoded"""
_FIRST_PAUSE_SECONDS = 0.5
_MAX_PAUSE_SECONDS = 600.0
_PATIENT_TRIES = 12
_MAX_BATCH = 128
_MAX_BATCHED_BYTES = 256 << 10
_MAX_SHOWN = 20
_COPIED_BYTES_A_SECOND = 100 << 20


@dataclass(slots=True, eq=False)
class _Waiting:
    """A file that is to be kept."""

    errand: ToKeep
    problem: str = ""
    """why it was not kept when it was last tried"""
    tries: int = 0
    crashes: int = 0
    at: float = 0.0
    """when it is tried next"""
    is_alone: bool = False
    """a batch with it came to nothing"""
    raw: str = ""
    """why it is not to be encoded"""

    @property
    def size(self) -> int:
        size = self.errand.facts.get("size")
        return size if type(size) is int else 0

    @property
    def can_be_batched(self) -> bool:
        facts = self.errand.facts
        is_plain = not facts.get("encode") and facts.get("how") in (None, "copied", "cloned")
        return is_plain and not self.is_alone and self.size <= _MAX_BATCHED_BYTES


class Keepers:
    """Takes files from any thread; gives `done` what became of each, and which wait longer than others. What is left
    at `stop` is the next daemon's."""

    def __init__(self, places: Places, leases: Leases, done: Callable[[ToKeep, FileKept | FileWaits], None]) -> None:
        self._places = places
        self._leases = leases
        self._done = done
        self._wake = threading.Condition()
        self._ready: deque[_Waiting] = deque()
        self._later: list[_Waiting] = []
        self._stopping = False
        self._workers = [_Worker(places, leases) for _ in range(KEEPERS)]
        self._hands: list[list[_Waiting]] = [[] for _ in range(KEEPERS)]
        """what each thread does now"""
        self._busy_since: list[float | None] = [None] * KEEPERS

    def take(self, errand: ToKeep) -> None:
        if errand.facts.get("how") == "leased":
            self._leases.take_late(errand.file)
        with self._wake:
            self._ready.append(_Waiting(errand))
            if len(self._ready) == 1:  # else whoever is at work takes it next
                self._wake.notify_all()

    def hurry(self) -> None:
        """Look again at which files somebody waits for."""
        with self._wake:
            self._wake.notify_all()

    @property
    def waiting(self) -> list[dict[str, Any]]:
        """The files that were tried in vain: path, project, problem, tries and seconds until the next."""
        with self._wake:
            in_hand = [one for batch in self._hands for one in batch]
            failed = [*self._later, *(one for one in (*self._ready, *in_hand) if one.problem)]
        now = time.monotonic()
        return [
            {"path": self._path(one.errand), "project": one.errand.project, "problem": one.problem, "tries": one.tries,
             "seconds": round(max(0.0, one.at - now), 1)}
            for one in sorted(failed, key=lambda one: one.at)[:_MAX_SHOWN]
        ]  # fmt: skip

    @property
    def stuck(self) -> int:
        """How many files were tried so often that a daemon with nothing else to do leaves them to its successor."""
        return sum(one.tries >= _PATIENT_TRIES for one in list(self._later))

    def stop(self, seconds: float) -> None:
        """End threads and children; of linked files, which nothing protects then, as many are copied as can be in this
        time."""
        deadline = time.monotonic() + seconds
        with self._wake:
            self._ready = deque(one for one in self._ready if self._leases.is_held(one.errand.file))
            while time.monotonic() < deadline and (self._ready or self._protects()):
                self._wake.wait(0.1)
            self._stopping = True
            self._wake.notify_all()
        if self._leases.held:
            with contextlib.suppress(RuntimeError):  # no thread can be started
                rest = threading.Thread(target=self._secure_rest, args=(deadline,), name="secure", daemon=True)
                rest.start()
                rest.join(max(0.1, deadline - time.monotonic()))  # the disk may hang
        for worker in self._workers:
            worker.kill()

    def _protects(self) -> bool:
        """Whether a file in hand is linked and not copied yet."""
        return any(self._leases.is_held(one.errand.file) for batch in self._hands for one in batch)

    def _secure_rest(self, deadline: float) -> None:
        """Copy links of which no record has arrived yet: nothing protects them when this process is gone."""
        for file in self._leases.held:
            path = os.path.join(self._places.incoming, file)
            try:
                if os.path.getsize(path) <= (deadline - time.monotonic()) * _COPIED_BYTES_A_SECOND:
                    keeper.secure(path, partial(self._leases.release, file))
            except OSError as error:
                log.warning("%s is linked and could not be copied before the end: %s", file, error)

    def _path(self, errand: ToKeep) -> str:
        return os.path.join(self._places.incoming, errand.file)

    # -- the threads ---------------------------------------------------------------------------------------------

    def run(self, place: int) -> None:
        """The life of one of the threads."""
        worker = self._workers[place]
        while not self._stopping:
            batch = self._next(place)
            if not batch:
                worker.end_child()
                continue
            answers = worker.keep(batch)
            for one, kept in zip(batch, answers, strict=True):
                self._settle(one, kept)
            with self._wake:
                self._busy_since[place] = None
                self._hands[place] = []
                self._wake.notify_all()

    def _next(self, place: int) -> list[_Waiting]:
        """What this thread is to do next; nothing when it has had nothing to do for a while."""
        idle_at = time.monotonic() + _CHILD_IDLE_SECONDS
        with self._wake:
            while not self._stopping:
                now = time.monotonic()
                for one in [one for one in self._later if one.at <= now]:
                    self._later.remove(one)
                    self._ready.append(one)
                if batch := self._chosen(place, now):
                    self._busy_since[place] = now
                    self._hands[place] = batch
                    return batch
                has_child = self._workers[place].has_child
                if has_child and now >= idle_at:
                    break
                moments = [one.at for one in self._later] + ([idle_at] if has_child else [])
                moments += [now + _BUSY_SECONDS] if self._ready else []
                self._wake.wait(max(0.01, min(moments) - now) if moments else None)
        return []

    def _chosen(self, place: int, now: float) -> list[_Waiting]:
        if (wanted := self._leases.wanted) and place <= 1:  # the second does little else, so it is free for these
            for one in self._ready:
                if one.errand.file in wanted:
                    self._ready.remove(one)
                    return [one]
        before = self._busy_since[:place]
        if not self._ready or any(since is None or now - since < _BUSY_SECONDS for since in before):
            return []
        batch = [self._ready.popleft()]
        while self._ready and len(batch) < _MAX_BATCH and batch[-1].can_be_batched and self._ready[0].can_be_batched:
            batch.append(self._ready.popleft())
        return batch

    def _settle(self, one: _Waiting, kept: Kept) -> None:
        """A file was kept, or is tried again later."""
        errand = one.errand
        if self._stopping and kept.state == keeper.AGAIN:
            return
        if kept.state != keeper.AGAIN:
            self._leases.release(errand.file)
            if kept.state != "kept":
                log.warning("%s of project %r is incomplete: %s", errand.file, errand.project, kept.cause)
            self._done(errand, FileKept(errand.project, errand.file.partition("/")[0], errand.file, *kept))
            return
        if one.problem != kept.cause:
            log.warning("%s of project %r is not kept yet: %s", errand.file, errand.project, kept.cause)
        if kept.cause == keeper.FULL and errand.file in self._leases.wanted:
            self._leases.release(errand.file)  # whoever waits would wait in vain
        if not one.tries and errand.facts.get("artifact") is not None:
            self._done(errand, FileWaits(errand.project, errand.file.partition("/")[0], errand.file))
        one.problem = kept.cause
        one.at = time.monotonic() + min(_FIRST_PAUSE_SECONDS * 2.0 ** min(one.tries, 16), _MAX_PAUSE_SECONDS)
        one.tries += 1
        with self._wake:
            self._later.append(one)
            self._wake.notify_all()


class _Worker:
    """Gives a child its tasks, one line at a time. Belongs to one thread; only `kill` may be called from others."""

    def __init__(self, places: Places, leases: Leases) -> None:
        self._places = places
        self._leases = leases
        self._child: subprocess.Popen[bytes] | None = None
        self._ended: list[subprocess.Popen[bytes]] = []
        """children that were killed and have not come back from the disk yet"""

    @property
    def has_child(self) -> bool:
        return self._child is not None

    def keep(self, batch: list[_Waiting]) -> list[Kept]:
        """What became of each file; `again` for all if the child failed. Never raises OSError."""
        try:
            return self._asked(batch)
        except _Crashed as error:
            problem = str(error)
            for one in batch:
                one.is_alone = True
                one.crashes += len(batch) == 1
                if one.crashes >= _CRASHES and one.errand.facts.get("encode"):
                    one.raw = f"whoever encodes it ended {one.crashes} times ({error})"
        except (OSError, ValueError) as error:
            problem = str(error)
            for one in batch:
                one.is_alone = True
        except Exception as error:  # the border of the thread: what is odd about one file must not hold up the others
            log.exception(
                "internal error while %s of project %r was kept", batch[0].errand.file, batch[0].errand.project
            )
            problem = f"internal error in trackiod ({error}), see its log"
            for one in batch:
                one.is_alone = True
        self.end_child()
        return [Kept(keeper.AGAIN, cause=problem)] * len(batch)

    def _asked(self, batch: list[_Waiting]) -> list[Kept]:
        if self._child is None or self._child.poll() is not None:
            self.end_child()
            pipe = children.PIPE
            try:
                self._child = children.start(self._places, "keep", stdin=pipe, stdout=pipe, stderr=None)
            except OSError as error:
                raise OSError(f"no process can be started to keep it ({error.strerror or error})") from error
        child = self._child
        self._tell(child, [self._task(one) for one in batch])
        seconds = _PATIENCE_SECONDS + sum(one.size for one in batch) / _SLOWEST_BYTES_A_SECOND
        deadline = time.monotonic() + seconds
        while (answer := self._line(child, deadline)) == keeper.COPIED:
            self._tell(child, self._leases.release(batch[0].errand.file))
        if len(answer) != len(batch):
            raise ValueError("the child did not answer for each file")
        return [Kept(*each) for each in answer]

    def _task(self, one: _Waiting) -> list[Any]:
        errand = one.errand
        facts = {**errand.facts, **({"raw": one.raw} if one.raw else {})}
        folder = blobs.folder_of(self._places.blobs, errand.project)
        return [os.path.join(self._places.incoming, errand.file), folder, facts]

    @staticmethod
    def _tell(child: subprocess.Popen[bytes], value: Any) -> None:
        assert child.stdin is not None
        child.stdin.write(json.dumps(value, default=repr).encode() + b"\n")
        child.stdin.flush()

    @staticmethod
    def _line(child: subprocess.Popen[bytes], deadline: float) -> Any:
        """The child's next word. Raises _Crashed or OSError if there is none."""
        assert child.stdout is not None
        poll = select.poll()  # select() knows no descriptor above 1023
        poll.register(child.stdout, select.POLLIN)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise TimeoutError("the disk or file server does not answer")
        line = child.stdout.readline()
        if not line:
            raise _Crashed(f"the child that kept it ended with {child.wait()}")
        return json.loads(line)

    def end_child(self) -> None:
        """End the child; one that hangs in the disk is not waited for."""
        self._ended = [child for child in self._ended if child.poll() is None]
        child, self._child = self._child, None
        if child is None:
            return
        child.kill()
        for pipe in (child.stdin, child.stdout):
            try:
                if pipe is not None:
                    pipe.close()
            except OSError:
                pass  # what was not written yet is not wanted any more
        try:
            child.wait(_CHILD_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._ended.append(child)

    def kill(self) -> None:
        if (child := self._child) is not None:
            child.kill()


class _Crashed(Exception):
    """The child ended while it had files in hand."""
