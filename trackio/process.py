"""What a process has once: its shippers, its runs, and what happens when it forks or ends.

No signal handlers. `sys.excepthook` and `threading.excepthook` are chained, never replaced; `atexit` writes
the runs' ends and gives the daemon a moment.
"""

from __future__ import annotations

import atexit
import itertools
import os
import sys
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from trackio import forks, voice
from trackio.identity import PARENT_VARIABLE
from trackio.places import Places
from trackio.runs import Run
from trackio.settings import Settings
from trackio.shipper import Shipper
from trackio.stream import Stream
from trackio.values import short_repr

_EXIT_SECONDS, _END_SECONDS = 0.8, 0.3
"""at exit: the most that all of it takes, and of that to write the ends and to have the daemon take the rest"""


class Process:
    """The state of this process. One instance, `here`, renewed in a forked child."""

    def __init__(self) -> None:
        self.id = os.urandom(8).hex()
        """tells this process from any other, also where pids are used again"""
        self.runs: list[Run] = []
        self.latest: Run | None = None
        self.inits: dict[tuple[str, str | None], Iterator[int]] = {}
        """counts how often init() opened a run of this (project, name)"""
        self.projects: dict[str, object] = {}
        """of which it opened any"""
        self.failure = ""
        self.thread_failure = ""
        self.interactive = False
        self._refused_values = 0
        """of runs that this process has let go of"""
        self._refused_files = 0
        self._shippers: dict[str, Shipper] = {}

    def open_stream(
        self, places: Places, settings: Settings, facts: dict[str, Any], secrets: dict[str, Any] | None = None
    ) -> Stream:
        """A new stream, carried by this process's shipper for the data folder. `secrets` go with it to the daemon, and
        nowhere else."""
        shipper = self._shippers.get(places.data)
        if shipper is None:
            first = facts.get("local_rank", 0) == 0 and facts.get("role") != "worker"
            new = Shipper(places, autostart=settings.autostart, starts_first=first)
            shipper = self._shippers.setdefault(places.data, new)
        return Stream(shipper, {"process": self.id, **facts}, settings, secrets)

    def ordinal(self, project: str, name: str | None) -> tuple[int, bool]:
        """Counts this init(): how many of (project, name) came before, and whether any of the project did."""
        mine = object()
        first = self.projects.setdefault(project, mine) is mine
        return next(self.inits.setdefault((project, name), itertools.count())), first

    def adopt(self, run: Run, rank: str) -> None:
        """Makes it the process's latest run. Children that inherit its `rank` learn that it is not theirs; it
        is empty where there is no launcher, since a child may be one."""
        for earlier in self.runs:
            if earlier.is_finished:
                earlier.retire()
        self._refused_files += sum(r.refused_files for r in self.runs if r.is_retired)
        self._refused_values += sum(r.refused_values for r in self.runs if r.is_retired)
        self.runs = [r for r in self.runs if not r.is_retired] + [run]
        self.latest = run
        os.environ[PARENT_VARIABLE] = f"{os.getpid()}:{rank}"

    def end(self) -> None:
        """The process is leaving: every open run gets its end, every stream its last chance."""
        now = time.monotonic()
        deliver_by, close_by = now + _END_SECONDS, now + _EXIT_SECONDS
        cause = f"a thread raised {self.thread_failure}" if self.thread_failure else ""
        for run in self.runs:
            left = max(0.0, deliver_by - time.monotonic())
            if self.failure:
                run.end("failed", self.failure, explicit=False, most_seconds=left)
            else:
                run.end("ended" if self.interactive else "finished", cause, explicit=False, most_seconds=left)
        self._own_up()
        at_stake = lost = 0
        for shipper in self._shippers.values():
            try:
                at_stake += shipper.close(deliver_by, close_by)
                lost += shipper.count_only_here()
            except Exception as error:  # noqa: BLE001 the others are to be closed, too
                _say_what_failed(error)
        if lost:
            voice.warn(
                f"{lost:,} records lay in this process's own memory alone and are lost with it: no daemon took them, "
                "and they could not be moved to disk."
            )
        elif at_stake:
            voice.warn(
                f"the disk did not keep the last records of {at_stake} stream(s) in time; they are lost if this host "
                "goes down before a daemon has stored them."
            )

    def _own_up(self) -> None:
        """The exit line: what was not kept, if anything."""
        records, points = map(sum, zip((0, 0), *(shipper.refused for shipper in self._shippers.values()), strict=True))
        values = self._refused_values + sum(run.refused_values for run in self.runs)
        said = []
        if records:
            said.append(f"{records:,} log() calls ({points:,} points) found no room and were dropped")
        files = sum(shipper.incomplete for shipper in self._shippers.values())
        files += sum(run.refused_files for run in self.runs) + self._refused_files
        if files:
            said.append(f"{files:,} file(s) were not kept whole; trackio status names the artifacts that miss them")
        if values:
            said.append(f"{values:,} more values were left out like those named above")
        if said:
            voice.warn("; ".join(said) + ".")

    def forked(self) -> Process:
        """What a forked child starts with: the same runs, none of the parent's streams."""
        child = Process()
        for shipper in self._shippers.values():
            shipper.abandon()
        for run in self.runs:
            run.become_worker()
        child.runs, child.latest = self.runs, self.latest
        child.inits, child.projects = self.inits, self.projects
        return child


here = Process()
_installed = False


def install() -> None:
    """Hooks into exit, exceptions and fork, at the first init()."""
    global _installed
    if _installed:
        return
    _installed = True
    atexit.register(_at_exit)
    os.register_at_fork(after_in_child=forks.after_python_forked)
    forks.call_in_child(_after_fork)
    previous = sys.excepthook
    previous_in_threads = threading.excepthook

    def on_exception(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        here.failure = kind.__name__
        previous(kind, error, trace)

    def on_thread_exception(args: threading.ExceptHookArgs) -> None:
        here.thread_failure = args.exc_type.__name__
        previous_in_threads(args)

    sys.excepthook = on_exception
    threading.excepthook = on_thread_exception


def _at_exit() -> None:
    forks.notice()
    try:
        here.end()
    except Exception as error:  # noqa: BLE001 the border to the user's process
        _say_what_failed(error)


def _say_what_failed(error: Exception) -> None:
    voice.warn_once("exit", f"internal error at exit ({short_repr(error)}); what was logged is kept on this host.")


def _after_fork() -> None:
    global here
    try:
        here = here.forked()
    except Exception as error:  # noqa: BLE001 the border to the user's process
        here = Process()
        voice.warn_once("fork", f"internal error after fork ({short_repr(error)}); this child does not log.")
