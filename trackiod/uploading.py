"""When uploaders run (`trackiod.uploads`): at a time one child that sends a target's rows, and one that sends
artifacts, which may be large; each lives while it has something to send. Tokens are kept here, in memory, and given to
them on their stdin.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from trackio import targets, wire
from trackio.names import HOST
from trackio.places import Places
from trackiod import children
from trackiod.store import schema
from trackiod.uploads import pacing, target
from trackiod.uploads.purse import Purse
from trackiod.uploads.target import ARTIFACTS, LANES, ROWS, Folder, Status, Target
from trackiod.work import Raise, Work

log = logging.getLogger("trackiod.uploading")

_STILL_SECONDS = 1800.0
"""in which a child used no CPU, after which it is ended; it waits for no answer so long by itself"""
_CRASH_SECONDS = 60.0
_ENDED_SECONDS = 15.0
"""from one start to the next where processes end one after the other"""
_GREETING_SECONDS = 20.0
"""after a start of the daemon: processes that live tell their tokens"""
_UNKNOWN = (-1, -1)


class _Child(NamedTuple):
    """An uploader that runs."""

    process: subprocess.Popen[bytes]
    known: _Known
    news: tuple[int, int]
    """of what it sends, when it began"""
    worked: str
    worked_at: float
    """how much it has used the CPU, and since when no more"""


class _Known:
    """A target's rows, or its artifacts, and what the daemon knows of them."""

    def __init__(self, where: Places, wanted: Target, lane: str) -> None:
        self.folder = Folder(where, wanted.id, lane)
        self.target = wanted
        self.ends = 0
        """how often its child has ended"""
        self.status: Status = self.folder.read_status()
        self.secrets: dict[str, Any] = {}
        self.given: Any = None
        """the token that the last child got"""
        self.seen = _UNKNOWN
        """the news that the last child has sent"""
        self.since: float | None = None
        """when something was first seen to wait"""
        self.started_at = 0.0
        """wall-clock time of the last child's start"""
        self.asked = self.serving = self.served = 0
        """how often somebody asked for it; at the last child's start; at the start of the last that sent everything"""
        self.webhook: Any = None
        self.has_ended = self.is_retried = False
        self.not_before = 0.0

    def is_behind(self, news: tuple[int, int]) -> bool:
        """Whether something may wait for it; samples do only while a run goes on."""
        is_new = self.seen[0] != news[0] or (self.status.is_live and self.seen[1] != news[1])
        return is_new or self.status.is_behind or self.asked != self.served

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
    """Owns the children. Called from the loop; never waits."""

    def __init__(self, where: Places, submit: Callable[[Work], None], commits: Mapping[str, int]) -> None:
        self._places = where
        self._submit = submit
        self._known: dict[str, dict[str, _Known]] = {}
        for wanted in target.known(where):
            for known in self._know(wanted).values():
                known.not_before = time.monotonic() + _GREETING_SECONDS
        self._children: dict[str, _Child] = {}
        self._ends = 0
        self._commits = commits

    def _know(self, wanted: Target) -> dict[str, _Known]:
        made = {lane: _Known(self._places, wanted, lane) for lane in LANES}
        made[ARTIFACTS].seen = (0, 0)
        return self._known.setdefault(wanted.id, made)

    def _all(self) -> list[_Known]:
        return [known for lanes in self._known.values() for known in lanes.values()]

    def add(
        self, project: str, facts: Mapping[str, Any], secrets: Mapping[str, Any], *, is_whole: bool, webhook: Any = None
    ) -> None:
        """A process, or `trackio sync`, says where runs of a project go. `webhook`: where its alerts are sent."""
        try:
            wanted = target.understood(project, facts, is_whole)
            lanes = self._known.get(wanted.id)
            joined = lanes[ROWS].target.joined(wanted) if lanes else wanted
            lanes = lanes or self._know(joined)
            if lanes[ROWS].target != joined or lanes[ROWS].folder.read_target() is None:
                lanes[ROWS].folder.write_target(joined)
            for known in lanes.values():
                known.target = joined
                known.webhook = webhook or known.webhook
                self._learn(known, secrets)
        except (OSError, TypeError, ValueError, AttributeError) as error:
            log.warning("runs of project %r are not uploaded: %s", project, error)

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
            url = asked.target.get("url")
            try:
                targets.url_of(url if isinstance(url, str) else "")
            except ValueError as error:
                return wire.Edited(False, f"{error}.")
            if not os.path.exists(schema.readable_path(self._places.projects, asked.project)):
                return wire.Edited(False, f"Project '{asked.project}' not found.")
            if asked.target.get("stop"):
                is_done = self.forget(asked.project, str(url))
                return wire.Edited(is_done, "" if is_done else f"Project '{asked.project}' is not uploaded there.")
            self.add(asked.project, asked.target, asked.secrets, is_whole=True)
        of_project = [known for known in self._all() if asked.project in ("", *known.target.projects)]
        if not of_project:
            return wire.Edited(False, f"Project '{asked.project}' has no target; name one: {targets.FORMS}")
        for known in of_project:
            self._learn(known, asked.secrets)
            known.asked += 1
            known.not_before = min(known.not_before, time.monotonic())
            known.is_retried = known.is_retried or asked.is_retry
        return wire.Edited(True)

    def forget(self, project: str, url: str = "") -> bool:
        """Uploads a project no more: to one target, or to any. What is there stays. False if there is none."""
        meant = [lanes for lanes in self._known.values()
                 if project in lanes[ROWS].target.projects and url in ("", lanes[ROWS].target.url)]  # fmt: skip
        for lanes in meant:
            known = lanes[ROWS]
            left = known.target.without(project)
            if left.projects:
                known.folder.write_target(left)
                for each in lanes.values():
                    each.target = left
                continue
            for lane in [lane for lane, child in self._children.items() if child.known in lanes.values()]:
                child = self._children.pop(lane)
                child.process.kill()
                child.process.wait()
            del self._known[left.id]
            shutil.rmtree(known.folder.of_target, ignore_errors=True)
        return bool(meant)

    @property
    def backlog(self) -> int:
        """Targets for which something waits that may be sent; the daemon does not leave before."""
        return sum(not self._is_parked(known) and known.is_behind(self._news(known)) for known in self._all())

    def _is_parked(self, known: _Known) -> bool:
        """Artifacts come after rows, so they are if these are."""
        return bool(known.status.parked or self._known[known.target.id][ROWS].status.parked)

    def _news(self, known: _Known) -> tuple[int, int]:
        """What changes when there may be something to send: for rows, how often something of its projects was stored,
        and of the node's samples; for artifacts, how often rows were sent that left some."""
        if known.folder.lane == ROWS:
            return sum(self._commits.get(name, 0) for name in known.target.projects), self._commits.get(HOST, 0)
        rows = self._known[known.target.id][ROWS]
        return (rows.ends, 0) if rows.status.has_artifacts else known.seen

    def check(self, ends: int, now: float) -> None:
        """Starts a child when it is time. `ends`: how many streams have ended."""
        for lane in [*self._children]:
            self._look_after(lane, now)
        if ends != self._ends:
            self._ends = ends
            for lanes in self._known.values():
                lanes[ROWS].has_ended = True  # the last rows of a run do not wait
        clock = time.time()
        for lane in LANES:
            due = (lanes[lane] for lanes in self._known.values() if self._is_due(lanes[lane], now, clock))
            if lane not in self._children and (known := next(due, None)) is not None:
                self._start(known, now)

    def _is_due(self, known: _Known, now: float, clock: float) -> bool:
        if not known.is_behind(self._news(known)):
            known.since = None
            if not 0 < known.status.look_at <= clock:
                return False
        known.since = known.since or clock
        if (known.status.parked and not known.is_retried) or now < known.not_before:
            return False
        if known.folder.lane == ARTIFACTS:
            rows = self._known[known.target.id][ROWS]
            if rows.ends == 0 or rows.status.failures or self._is_sending(rows):
                return False  # they come first
        return clock >= known.due_at(clock)

    def _is_sending(self, known: _Known) -> bool:
        return any(child.known is known for child in self._children.values())

    def facts(self) -> list[dict[str, Any]]:
        """What `status` says of each target."""
        return [self._facts(lanes) for lanes in self._known.values()]

    def end(self) -> None:
        """Ends the children; what they were sending is sent by the next daemon's."""
        for child in self._children.values():
            child.process.kill()
            child.process.wait()

    def _start(self, known: _Known, now: float) -> None:
        lane = known.folder.lane
        token = known.secrets.get("token")
        job = {"token": token, "is_retry": known.is_retried}
        environ = {**known.target.environ, **known.secrets.get("environ", {})}
        environ |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        try:
            words = ("upload", known.target.id, lane)
            process = children.start(self._places, *words, environ=environ, stdin=children.PIPE)
            assert process.stdin is not None
            with process.stdin as stdin:
                stdin.write(json.dumps(job).encode())
        except (OSError, ValueError, TypeError) as error:
            log.warning("the uploader cannot be started: %s", error)
            known.not_before = now + _CRASH_SECONDS
            return
        self._children[lane] = _Child(process, known, self._news(known), "", now)
        known.given, known.started_at, known.serving = token, time.time(), known.asked
        known.has_ended = known.is_retried = False

    def _look_after(self, lane: str, now: float) -> None:
        child = self._children[lane]
        known, code = child.known, child.process.poll()
        if code is None:
            worked = _worked(child.process.pid)
            if worked != child.worked or not worked:
                self._children[lane] = child._replace(worked=worked, worked_at=now)
            elif now - child.worked_at > _STILL_SECONDS:
                child.process.kill()
            return
        del self._children[lane]
        before, known.status = known.status, known.folder.read_status()
        (other,) = (one for one in self._known[known.target.id].values() if one is not known)
        if known.status.problem and known.status.problem != before.problem:
            log.warning("%s: %s", known.target.url, known.status.problem)
        if known.status.parked and known.secrets.get("token") not in (None, known.given):
            known.is_retried = True  # another token came meanwhile
        elif known.status.parked and known.status.parked not in (before.parked, other.status.parked):
            self._raise(known)
        if code != 0:
            log.error("the uploader for %s ended with %d", known.target.url, code)
            known.status = known.status._replace(problem=f"The uploader was ended ({code}); it starts again.")
            known.not_before = now + _CRASH_SECONDS
        elif not known.status.failures:
            known.ends += 1
            known.seen, known.since = child.news, None
            if not known.status.is_behind:
                known.served = known.serving

    def _raise(self, known: _Known) -> None:
        """One alert in each project that waits for somebody."""
        title = f"Nothing is uploaded to {known.target.url}"
        text = f"{known.status.parked} Then: trackio sync --retry"
        hook = known.webhook[0] if isinstance(known.webhook, list) and known.webhook else None
        for project in known.target.projects:
            if not os.path.exists(schema.path_of(self._places.projects, project)):
                continue  # it was deleted
            self._submit(Raise(project, {"level": "error", "title": title, "text": text, "webhook": hook}))

    def _facts(self, lanes: Mapping[str, _Known]) -> dict[str, Any]:
        rows, artifacts = lanes[ROWS], lanes[ARTIFACTS]
        status, now = rows.status, time.time()
        both = (rows, artifacts)
        behind = [known for known in both if known.is_behind(self._news(known))]
        open_ = [known for known in behind if not self._is_parked(known)]
        per_row = status.bytes / status.rows if status.rows else 0.0
        last = max(known.status.last_commit_at or 0.0 for known in both)
        purse = Purse(rows.folder.of_target, rows.target.hosts, rows.target.node, time.time)
        return {
            "target": rows.target.url,
            "projects": sorted(rows.target.projects),
            "state": self._state(both, is_behind=bool(behind)),
            "rows_waiting": status.rows_waiting,
            "bytes_waiting": round(status.rows_waiting * per_row),
            "rows_sent": status.rows,
            "bytes_sent": sum(known.status.bytes for known in both),
            "commits": sum(known.status.commits for known in both),
            "commits_left": purse.left,
            "last_commit_seconds_ago": round(max(0.0, now - last), 1) if last else None,
            "next_in_seconds": round(max(0.0, min(k.due_at(now) for k in open_) - now), 1) if open_ else None,
            "asked": rows.asked,
            "served": min(known.served for known in both),
            "failures": max(known.status.failures for known in both),
            "problem": rows.status.problem or artifacts.status.problem,
        }

    def _state(self, both: Sequence[_Known], *, is_behind: bool) -> str:
        if any(map(self._is_sending, both)):
            return "sending"
        if any(known.status.parked and not known.is_retried for known in both):
            return "parked"
        return "waiting" if is_behind or any(known.is_retried for known in both) else "up to date"


def _worked(pid: int) -> str:
    """How much a process has used the CPU; empty where the system does not say."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return ""
    return " ".join(fields[11:13])
