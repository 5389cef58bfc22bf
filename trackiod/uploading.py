"""When the uploader runs (`trackiod.uploads`): a child for one target at a time, which lives while it has something to
send. Tokens are kept here, in memory, and given to it on its stdin.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from trackio import targets, wire
from trackio.places import Places
from trackiod.store import schema
from trackiod.uploads import pacing, target
from trackiod.uploads.target import Folder, Status, Target
from trackiod.work import Raise, Work

log = logging.getLogger("trackiod.uploading")

_STILL_SECONDS = 1800.0
"""in which a child used no CPU, after which it is ended; it waits for no answer so long by itself"""
_CRASH_SECONDS = 60.0
_ENDED_SECONDS = 15.0
"""from one start to the next where processes end one after the other"""
_GREETING_SECONDS = 20.0
"""after a start of the daemon: processes that live tell their tokens"""
_UNKNOWN = -1


class _Known:
    """A target, and what the daemon knows of it."""

    def __init__(self, where: Places, wanted: Target) -> None:
        self.folder = Folder(where, wanted.id)
        self.target = wanted
        self.status: Status = self.folder.read_status()
        self.secrets: dict[str, Any] = {}
        self.given: Any = None
        """the token that the last child got"""
        self.seen = _UNKNOWN
        """how often something was stored when its last child began"""
        self.since: float | None = None
        """when something was first seen to wait"""
        self.started_at = 0.0
        """wall-clock time of the last child's start"""
        self.asked = self.serving = self.served = 0
        """how often somebody asked for it; at the last child's start; at the start of the last that sent everything"""
        self.webhook: Any = None
        self.has_ended = self.is_retried = False
        self.not_before = 0.0

    def is_behind(self, stored: int) -> bool:
        """Whether something may wait for it."""
        return self.seen != stored or self.status.is_behind or self.asked != self.served

    def due_at(self, now: float) -> float:
        """When to send what waits, in wall-clock time; a clock that was ahead holds nothing up for long."""
        if self.is_retried:
            return 0.0
        last = max(self.status.last_commit_at or 0.0, self.started_at)
        if self.asked != self.served or self.status.is_behind:
            pace = 0.0  # what was begun goes on as soon as the target's pace, or its pause after a failure, allows
        elif self.has_ended:
            pace = self.started_at + _ENDED_SECONDS
        elif self.status.last_commit_at is None:
            pace = max((self.since or now) + pacing.FIRST_SECONDS, self.started_at + pacing.FIRST_SECONDS)
        else:
            pace = last + pacing.EVERY_SECONDS
        return min(max(self.status.next_at, pace), now + pacing.HOUR)


class Uploading:
    """Owns the child. Called from the loop; never waits."""

    def __init__(self, where: Places, submit: Callable[[Work], None]) -> None:
        self._places = where
        self._submit = submit
        self._known = {id_: _Known(where, wanted) for id_, wanted in target.known(where)}
        for known in self._known.values():
            known.not_before = time.monotonic() + _GREETING_SECONDS
        self._child: subprocess.Popen[bytes] | None = None
        self._busy_with = ""
        self._worked, self._worked_at = "", 0.0
        self._starting = 0
        self._ends = 0
        self._stored = 0

    def add(
        self, project: str, facts: Mapping[str, Any], secrets: Mapping[str, Any], *, is_whole: bool, webhook: Any = None
    ) -> None:
        """A process, or `trackio sync`, says where runs of a project go. `webhook`: where its alerts are sent."""
        try:
            wanted = _understood(project, facts, is_whole)
            known = self._known.get(wanted.id)
            joined = known.target.joined(wanted) if known else wanted
            if known is None:
                known = self._known[wanted.id] = _Known(self._places, joined)
            if known.target != joined or known.folder.read_target() is None:
                known.folder.write_target(joined)
                known.target = joined
        except (OSError, TypeError, ValueError, AttributeError) as error:
            log.warning("runs of project %r are not uploaded: %s", project, error)
            return
        known.webhook = webhook or known.webhook
        self._learn(known, secrets)

    @staticmethod
    def _learn(known: _Known, secrets: Mapping[str, Any]) -> None:
        """Keeps what it is told beside what it knows; with another token, what was given up is tried again."""
        known.secrets = {**known.secrets, **secrets}
        token = known.secrets.get("token")
        if token is not None:
            known.not_before = min(known.not_before, time.monotonic())
        if token not in (None, known.given) and known.status.parked:
            known.is_retried = True

    def sync(self, asked: wire.Sync) -> wire.Edited:
        """Uploads a project now, to another target or to those that it has."""
        if asked.target:
            try:
                targets.url_of(str(asked.target.get("url")))
            except ValueError as error:
                return wire.Edited(False, f"{error}.")
            self.add(asked.project, asked.target, asked.secrets, is_whole=True)
        of_project = [known for known in self._known.values() if asked.project in ("", *known.target.projects)]
        if not of_project:
            return wire.Edited(False, f"Project '{asked.project}' has no target; say where: --to {targets.FORMS}")
        for known in of_project:
            self._learn(known, asked.secrets)
            known.asked += 1
            known.not_before = min(known.not_before, time.monotonic())
            known.is_retried = known.is_retried or asked.is_retry
        return wire.Edited(True)

    @property
    def backlog(self) -> int:
        """Targets for which something waits that may be sent; the daemon does not leave before."""
        return sum(not known.status.parked and known.is_behind(self._stored) for known in self._known.values())

    def check(self, stored: int, ends: int, now: float) -> None:
        """Starts a child when it is time. `stored`: how often something was stored so far; `ends`: how many streams
        have ended."""
        self._stored = stored
        if self._child is not None:
            self._look_after(self._child, now)
            return
        if not self._known:
            return
        if ends != self._ends:
            self._ends = ends
            for known in self._known.values():
                known.has_ended = True  # the last rows of a run do not wait
        clock = time.time()
        for id_, known in self._known.items():
            if not known.is_behind(stored):
                known.since = None
                if not 0 < known.status.look_at <= clock:
                    continue
            known.since = known.since or clock
            if (known.status.parked and not known.is_retried) or now < known.not_before:
                continue
            if clock >= known.due_at(clock):
                self._start(id_, known, now)
                return

    def facts(self, stored: int) -> list[dict[str, Any]]:
        """What `status` says of each target."""
        self._stored = stored
        return [_facts(known, known.is_behind(stored), id_ == self._busy_with) for id_, known in self._known.items()]

    def end(self) -> None:
        """Ends the child; what it was sending is sent by the next daemon's."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()

    def _start(self, id_: str, known: _Known, now: float) -> None:
        token = known.secrets.get("token")
        job = {"token": token, "is_retry": known.is_retried}
        environ = {**self._places.environ(os.environ), **known.target.environ, **known.secrets.get("environ", {})}
        environ |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        try:
            child = subprocess.Popen(
                [sys.executable, "-P", "-m", "trackiod", "upload", id_], stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/", env=environ,
            )  # fmt: skip
            assert child.stdin is not None
            with child.stdin as stdin:
                stdin.write(json.dumps(job).encode())
        except (OSError, ValueError, TypeError) as error:
            log.warning("the uploader cannot be started: %s", error)
            known.not_before = now + _CRASH_SECONDS
            return
        self._child, self._busy_with, self._starting = child, id_, self._stored
        self._worked, self._worked_at = "", now
        known.given, known.started_at, known.serving = token, time.time(), known.asked
        known.has_ended = known.is_retried = False

    def _look_after(self, child: subprocess.Popen[bytes], now: float) -> None:
        code = child.poll()
        if code is None:
            worked = _worked(child.pid)
            if worked != self._worked or not worked:
                self._worked, self._worked_at = worked, now
            elif now - self._worked_at > _STILL_SECONDS:
                child.kill()
            return
        known = self._known[self._busy_with]
        before, known.status = known.status, known.folder.read_status()
        if known.status.problem and known.status.problem != before.problem:
            log.warning("%s: %s", known.target.url, known.status.problem)
        if known.status.parked and known.secrets.get("token") not in (None, known.given):
            known.is_retried = True  # another token came meanwhile
        elif known.status.parked and known.status.parked != before.parked:
            self._raise(known)
        if code != 0:
            log.error("the uploader for %s ended with %d", known.target.url, code)
            known.status = known.status._replace(problem=f"The uploader was ended ({code}); it starts again.")
            known.not_before = now + _CRASH_SECONDS
        elif not known.status.failures:
            known.seen, known.since = self._starting, None
            if not known.status.is_behind:
                known.served = known.serving
        self._child, self._busy_with = None, ""

    def _raise(self, known: _Known) -> None:
        """One alert in each project that waits for somebody."""
        title = f"Nothing is uploaded to {known.target.url}"
        text = f"{known.status.parked} Then: trackio sync --retry"
        hook = known.webhook[0] if isinstance(known.webhook, list) and known.webhook else None
        for project in known.target.projects:
            if not os.path.exists(schema.path_of(self._places.projects, project)):
                continue  # it was deleted
            self._submit(Raise(project, {"level": "error", "title": title, "text": text, "webhook": hook}))


def _worked(pid: int) -> str:
    """How much a process has used the CPU; empty where the system does not say."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return ""
    return " ".join(fields[11:13])


def _understood(project: str, facts: Mapping[str, Any], is_whole: bool) -> Target:
    """A peer may send anything. Raises ValueError or TypeError."""
    url = targets.url_of(str(facts.get("url", "")))
    given = dict(facts.get("environ") or {})
    environ = {name: value for name, value in given.items() if isinstance(value, str) and targets.travels(name, value)}
    hosts, node = int(facts.get("hosts") or 1), facts.get("node")
    return Target(
        url, {project: is_whole}, facts.get("private") is not False, environ, max(1, hosts),
        None if node is None else int(node), bool(facts.get("shows_host")),
    )  # fmt: skip


def _state(known: _Known, is_behind: bool, is_sending: bool) -> str:
    if is_sending:
        return "sending"
    if known.status.parked and not known.is_retried:
        return "parked"
    return "waiting" if is_behind or known.is_retried else "up to date"


def _facts(known: _Known, is_behind: bool, is_sending: bool) -> dict[str, Any]:
    status, now = known.status, time.time()
    per_row = status.bytes / status.rows if status.rows else 0.0
    last = status.last_commit_at
    budget = None if status.tokens is None else pacing.Budget(status.tokens, status.tokens_at)
    return {
        "target": known.target.url,
        "projects": sorted(known.target.projects),
        "state": _state(known, is_behind, is_sending),
        "rows_waiting": status.rows_waiting,
        "bytes_waiting": round(status.rows_waiting * per_row),
        "rows_sent": status.rows,
        "bytes_sent": status.bytes,
        "commits": status.commits,
        "commits_left": None if budget is None else max(0, int(budget.refilled(now, known.target.hosts).tokens)),
        "last_commit_seconds_ago": None if last is None else round(max(0.0, now - last), 1),
        "next_in_seconds": round(max(0.0, known.due_at(now) - now), 1) if is_behind and not status.parked else None,
        "asked": known.asked,
        "served": known.served,
        "failures": status.failures,
        "problem": status.problem,
    }
