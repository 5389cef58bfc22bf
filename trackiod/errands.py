"""What the daemon does for the processes beside storing: keeps their files, sends their alerts (`sending`).

It may hang, so each kind has a thread and a child. The store remembers what is open; the next daemon does it.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import queue
import select
import subprocess
import time
from collections.abc import Callable
from typing import Any

from trackio.places import Places
from trackiod import blobs, children
from trackiod.keeper import Kept
from trackiod.sending import Sending
from trackiod.threads import Threads
from trackiod.work import Errand, FileKept, Settled, ToKeep, Work

log = logging.getLogger("trackiod.errands")

_CHILD_IDLE_SECONDS = 10.0
_SLOWEST_BYTES_A_SECOND = 2 << 20
_PATIENCE_SECONDS = 900.0
_TRIES = 3
_AGAIN_SECONDS = 5.0


class Errands:
    """Takes errands from any thread, gives their ends to `submit`."""

    def __init__(self, places: Places, submit: Callable[[Work], None]) -> None:
        self._submit = submit
        self._open: set[tuple[Any, ...]] = set()
        self._keeping = _Keeping(places, self._done)
        self._sending = Sending(places, self._done)

    def start(self, threads: Threads) -> None:
        """Starts both threads. Raises CannotStart."""
        threads.start("keep", self._keeping.run)
        threads.start("send", self._sending.run)

    def take(self, errand: Errand) -> None:
        """Does it soon; one that is in hand already is not taken twice."""
        key = _key(errand)
        if key in self._open:
            return
        self._open.add(key)
        if isinstance(errand, ToKeep):
            self._keeping.take(errand)
        else:
            self._sending.take(errand)

    @property
    def backlog(self) -> int:
        """Errands of which is not stored yet that they are done."""
        return len(self._open)

    def _done(self, errand: Errand, work: Work) -> None:
        """It is done, and stays open until that is stored (`settle`)."""
        self._submit(work)

    def settle(self, work: Settled) -> None:
        """What came of an errand is stored."""
        place = work.file if isinstance(work, FileKept) else (work.stream, work.start)
        self._open.discard((work.project, place))

    def stop(self) -> None:
        """Ends the children; what is not done is done by the next daemon."""
        self._keeping.stop()
        self._sending.stop()


def _key(errand: Errand) -> tuple[Any, ...]:
    place = errand.file if isinstance(errand, ToKeep) else (errand.stream, errand.facts["start"])
    return (errand.project, place)


class _Keeping:
    """One thread and, while there is something to keep, one child, which gets a file at a time."""

    def __init__(self, places: Places, done: Callable[[Errand, Work], None]) -> None:
        self._places = places
        self._done = done
        self._queue: queue.SimpleQueue[ToKeep | None] = queue.SimpleQueue()
        self._child: subprocess.Popen[bytes] | None = None
        self._stopping = False

    def take(self, errand: ToKeep) -> None:
        self._queue.put(errand)

    def stop(self) -> None:
        self._stopping = True
        self._queue.put(None)
        if (child := self._child) is not None:
            child.kill()

    def run(self) -> None:
        while not self._stopping:
            try:
                errand = self._queue.get(timeout=_CHILD_IDLE_SECONDS if self._child else None)
            except queue.Empty:
                self._end_child()
                continue
            if errand is None:
                break
            try:
                kept = self._kept(errand)
            except Exception:  # the border of the thread: what is odd about one file must not hold up the others
                log.exception("internal error while %s of project %r was kept", errand.file, errand.project)
                self._end_child()
                kept = Kept("incomplete", cause="internal error in trackiod, see its log")
            if kept is not None:
                stream = errand.file.partition("/")[0]
                self._done(errand, FileKept(errand.project, stream, errand.file, *kept))

    def _kept(self, errand: ToKeep) -> Kept | None:
        """None when the daemon stops. A file that ends the child again and again is given up."""
        folder = blobs.folder_of(self._places.blobs, errand.project)
        task = [os.path.join(self._places.incoming, errand.file), folder, errand.facts]
        tries = 0
        while not self._stopping:
            try:
                return self._asked(task, int(errand.facts.get("size") or 0))
            except (OSError, ValueError) as error:
                if self._stopping:
                    break
                tries += 1
                log.warning("%s of project %r was not kept (%s)", errand.file, errand.project, error)
                self._end_child()
                if tries >= _TRIES and not isinstance(error, _Refused):
                    return Kept("incomplete", cause=f"keeping it failed {tries} times ({error})")
                time.sleep(min(_AGAIN_SECONDS * (tries - 1), 60.0))
        return None

    def _asked(self, task: list[Any], size: int) -> Kept:
        """The child's answer. Raises OSError or ValueError if it gives none."""
        if self._child is None or self._child.poll() is not None:
            pipe = children.PIPE
            self._child = children.start(self._places, "keep", stdin=pipe, stdout=pipe, stderr=None)
        child = self._child
        assert child.stdin is not None and child.stdout is not None
        child.stdin.write(json.dumps(task).encode() + b"\n")
        child.stdin.flush()
        seconds = _PATIENCE_SECONDS + size / _SLOWEST_BYTES_A_SECOND
        poll = select.poll()  # select() knows no descriptor above 1023
        poll.register(child.stdout, select.POLLIN)
        if not poll.poll(seconds * 1000):
            raise TimeoutError(f"no answer in {seconds:.0f} s")
        line = child.stdout.readline()
        if not line:
            raise (
                _Refused("the disk is full")
                if child.wait() == errno.ENOSPC
                else OSError(f"the child ended with {child.wait()}")
            )
        return Kept(*json.loads(line))

    def _end_child(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.communicate()


class _Refused(OSError):
    """The disk is full: it is tried until there is room."""
