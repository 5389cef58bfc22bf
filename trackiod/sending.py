"""Sending alerts: one thread, and while there is something to send, one child, which gets an alert at a time.

A server may do anything with a connection, and a name may take minutes to look up, so the child has a deadline for each
alert and is ended when it misses it. An alert that fails is tried again ever more rarely, for an hour.
"""

from __future__ import annotations

import json
import logging
import select
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from trackio.places import Places
from trackiod import children
from trackiod.work import AlertSent, Errand, ToSend, Work

log = logging.getLogger("trackiod.sending")

SECONDS = 15.0
"""For one alert, all in all; the child's start is part of it."""
_CHILD_IDLE_SECONDS = 10.0
_AGAIN_SECONDS = 5.0
_LONGEST_PAUSE_SECONDS = 600.0
_GIVE_UP_SECONDS = 3600.0


class Waiting(NamedTuple):
    """An alert that is to be sent at `at`, after so many tries."""

    at: float
    tries: int
    errand: ToSend


class Outcome(NamedTuple):
    """What came of a try: sent if `why` is empty. `is_late`: no answer came in time."""

    why: str = ""
    is_final: bool = False
    is_late: bool = False


def pause_after(tries: int) -> float:
    """How long to wait after a try that failed, when so many had failed before."""
    return min(_AGAIN_SECONDS * 2.0 ** min(tries, 10), _LONGEST_PAUSE_SECONDS)


class Sending:
    """Takes alerts from any thread; `run` is the thread."""

    def __init__(self, places: Places, done: Callable[[Errand, Work], None]) -> None:
        self._places = places
        self._done = done
        self._waiting: list[Waiting] = []
        self._wake = threading.Condition()
        self._child: subprocess.Popen[bytes] | None = None
        self._stopping = False

    def take(self, errand: ToSend) -> None:
        with self._wake:
            self._waiting.append(Waiting(time.monotonic(), 0, errand))
            self._wake.notify()

    def stop(self) -> None:
        """Ends thread and child; what is not sent is sent by the next daemon's."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if (child := self._child) is not None:
            child.kill()

    def run(self) -> None:
        while (due := self._next()) is not None:
            try:
                self._try(due)
            except Exception:  # the border of the thread: what is odd about one alert must not hold up the others
                log.exception("internal error while an alert of project %r was sent", due.errand.project)
                self._end_child()
                self._settle(due.errand, "not sent: internal error in trackiod, see its log")
        self._end_child()

    def _next(self) -> Waiting | None:
        """The alert that is due longest, once one is; None when the daemon stops."""
        with self._wake:
            while not self._stopping:
                due = min(self._waiting, key=lambda waiting: waiting.at, default=None)
                seconds = None if due is None else due.at - time.monotonic()
                if due is not None and seconds is not None and seconds <= 0:
                    self._waiting.remove(due)
                    return due
                if self._child is None:
                    self._wake.wait(seconds)
                elif not self._wake.wait(min(_CHILD_IDLE_SECONDS, seconds or _CHILD_IDLE_SECONDS)):
                    self._end_child()
        return None

    def _try(self, due: Waiting) -> None:
        errand = due.errand
        outcome = self._send(errand)
        if not outcome.why:
            self._settle(errand, "sent")
            return
        title, age = errand.facts.get("title"), time.time() - _time_of(errand)
        if outcome.is_final or age >= _GIVE_UP_SECONDS:
            log.warning("alert %r of project %r was not sent: %s", title, errand.project, outcome.why)
            self._settle(errand, f"not sent: {outcome.why}")
            return
        if not due.tries:
            log.warning("alert %r of project %r is not sent yet: %s", title, errand.project, outcome.why)
        at = time.monotonic() + pause_after(due.tries)
        with self._wake:
            self._waiting.append(Waiting(at, due.tries + 1, errand))
            if outcome.is_late:  # others for the same server wait with it, instead of holding up the rest one by one
                self._waiting = [_not_before(w, at) if _is_alike(w.errand, errand) else w for w in self._waiting]

    def _settle(self, errand: ToSend, sent: str) -> None:
        self._done(errand, AlertSent(errand.project, errand.stream, errand.facts["start"], sent))

    # -- the child -----------------------------------------------------------------------------------------------

    def _send(self, errand: ToSend) -> Outcome:
        try:
            return Outcome(*json.loads(self._answer([errand.project, errand.facts])))
        except TimeoutError:
            self._end_child()
            return Outcome(f"its webhook did not answer within {SECONDS:g} s", is_late=True)
        except (OSError, ValueError) as error:
            self._end_child()
            return Outcome(f"it could not be handed over ({error})")

    def _answer(self, task: list[Any]) -> bytes:
        """The child's line. Raises OSError."""
        if self._child is None or self._child.poll() is not None:
            self._end_child()
            self._child = children.start(self._places, "send", stdin=children.PIPE, stdout=children.PIPE)
        child = self._child
        assert child.stdin is not None and child.stdout is not None
        line = json.dumps(task).encode() + b"\n"
        child.stdin.write(line)
        child.stdin.flush()
        poll = select.poll()  # select() knows no descriptor above 1023
        poll.register(child.stdout, select.POLLIN)
        if not poll.poll(SECONDS * 1000):
            raise TimeoutError
        answer = child.stdout.readline()
        if not answer:
            raise OSError(f"the child ended with {child.wait()}")
        return answer

    def _end_child(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.communicate()


def _not_before(waiting: Waiting, at: float) -> Waiting:
    return waiting._replace(at=max(waiting.at, at))


def _is_alike(errand: ToSend, other: ToSend) -> bool:
    """Whether two alerts go to the same address, but for its path."""
    return _server_of(errand) == _server_of(other)


def _server_of(errand: ToSend) -> str:
    return "/".join(str(errand.facts.get("webhook")).split("/")[:3])


def _time_of(errand: ToSend) -> float:
    time_ns = errand.facts.get("time_ns")
    return time_ns / 1e9 if isinstance(time_ns, int) else 0.0
