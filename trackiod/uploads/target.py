"""Targets and what is remembered of each on this host, in `<live>/uploads/<id>/`: what it is (`target.json`, the
daemon's), how it stands (`status.json`, the uploader's), and how far each run is uploaded (`runs/`, the uploader's)."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from trackio import targets
from trackio.durability import keep_soon
from trackio.names import derived_id
from trackio.places import Places, make_private, replace
from trackio.targets import DATASETS
from trackiod.uploads.cursor import Cursor, from_json
from trackiod.uploads.doubts import Doubt

_TARGET, _STATUS, _RUNS = "target.json", "status.json", "runs"


class Target(NamedTuple):
    """Where runs go, and in whose way."""

    url: str
    projects: Mapping[str, bool] = {}
    """whose runs; true: all of them, false: those whose processes named this target"""
    private: bool = True
    environ: Mapping[str, str] = {}
    """the job's settings of the target's library, of proxies and certificates; nothing secret"""
    hosts: int = 1
    """hosts that share the target's commits"""
    node: int | None = None
    """which of them this is, to take turns with the others"""
    shows_host: bool = False
    """whether the host's name goes along"""

    @property
    def id(self) -> str:
        return derived_id("target", self.url, self.environ.get("HF_ENDPOINT", ""))

    @property
    def takes_others(self) -> bool:
        """Whether two hosts may send the same rows to it: it refuses what was made for another state of it."""
        return self.url.startswith(DATASETS)

    def is_meant(self, facts: Any) -> bool:
        """Whether a stream named this target."""
        if not isinstance(facts, dict) or facts.get("url") != self.url:
            return False
        environ = facts.get("environ")
        endpoint = environ.get("HF_ENDPOINT", "") if isinstance(environ, dict) else ""
        return bool(endpoint == self.environ.get("HF_ENDPOINT", ""))

    def joined(self, other: Target) -> Target:
        """With what another process says of it now."""
        projects = {**self.projects}
        for project, is_all in other.projects.items():
            projects[project] = is_all or projects.get(project, False)
        larger = other if other.hosts >= self.hosts else self  # one host must not take what sixteen share
        return other._replace(projects=projects, hosts=larger.hosts, node=larger.node)

    def without(self, project: str) -> Target:
        """When a project's runs are uploaded there no more."""
        return self._replace(projects={name: is_all for name, is_all in self.projects.items() if name != project})


class Status(NamedTuple):
    """How a target stands."""

    is_prepared: bool = False
    next_at: float = 0.0
    """not before"""
    last_commit_at: float | None = None
    commits: int = 0
    rows: int = 0
    bytes: int = 0
    rows_waiting: int = 0
    is_behind: bool = False
    """whether something is left to do: rows to send, or files to merge"""
    is_live: bool = True
    """whether a run goes on, and so is to be sampled"""
    doubts: tuple[Doubt, ...] = ()
    """runs that are to be looked at again, where changes may be taken in part or late"""
    look_at: float = 0.0
    """when; 0: never"""
    has_artifacts: bool = False
    """whether versions of artifacts wait, seen by what sends rows"""
    failures: int = 0
    """in a row"""
    problem: str = ""
    parked: str = ""
    """why nothing is tried any more before somebody has done something"""


LANES = ROWS, ARTIFACTS = "rows", "artifacts"
"""what is sent by a child of its own: rows need not wait for large files"""


class RunState(NamedTuple):
    """How far a run is uploaded."""

    cursor: Cursor
    token: str = ""
    """of what is known of the run, as it was uploaded last"""
    system_at: float = 0.0
    files: tuple[str, ...] = ()
    """the ids of its files that are at the target"""
    is_whole: bool = True
    """whether everything of it went along, its last samples too"""
    is_merged: bool = False
    """its small files were, as far as can be"""


class Folder:
    """What is remembered of one target, by the child that sends its rows or its artifacts."""

    def __init__(self, where: Places, id_: str, lane: str = ROWS) -> None:
        self.of_target = os.path.join(where.uploads, id_)
        self.path = self.of_target if lane == ROWS else os.path.join(self.of_target, lane)
        self.lane = lane

    def read_target(self) -> Target | None:
        values = _read(os.path.join(self.of_target, _TARGET))
        try:
            return Target(**{name: value for name, value in values.items() if name in Target._fields})
        except TypeError:
            return None

    def write_target(self, target: Target) -> None:
        """Raises OSError."""
        make_private(self.of_target)
        path = os.path.join(self.of_target, _TARGET)
        replace(path, _json(target._asdict()))
        keep_soon(path)  # the loop does not wait for the disk

    def read_status(self) -> Status:
        values = _read(os.path.join(self.path, _STATUS))
        known = {name: value for name, value in values.items() if name in Status._fields}
        doubts = tuple(Doubt(*one[: len(Doubt._fields)]) for one in known.get("doubts", ()))
        return Status(**{**known, "doubts": doubts})

    def write_status(self, status: Status) -> None:
        """Raises OSError."""
        make_private(self.path)
        replace(os.path.join(self.path, _STATUS), _json(status._asdict()), is_safe=True)

    def read_run(self, project: str, run: str) -> RunState | None:
        values = _read(self._run_path(project, run))
        try:
            known = {name: value for name, value in values.items() if name in RunState._fields}
            return RunState(**{**known, "cursor": from_json(values["cursor"]), "files": tuple(values["files"])})
        except (KeyError, TypeError, ValueError):
            return None

    def write_run(self, project: str, run: str, state: RunState) -> None:
        """Raises OSError."""
        make_private(os.path.join(self.path, _RUNS))
        values = {**state._asdict(), "cursor": state.cursor.to_json()}
        replace(self._run_path(project, run), _json(values), is_safe=True)

    def forget_runs(self) -> None:
        """The target has lost what it had."""
        shutil.rmtree(os.path.join(self.path, _RUNS), ignore_errors=True)

    def _run_path(self, project: str, run: str) -> str:
        return os.path.join(self.path, _RUNS, derived_id("run", project, run) + ".json")

    def scratch(self, name: str) -> str:
        """An empty folder for files that are being made."""
        path = os.path.join(self.path, name)
        make_private(path)
        for name in os.listdir(path):
            os.unlink(os.path.join(path, name))
        return path


def understood(project: str, facts: Mapping[str, Any], is_whole: bool) -> Target:
    """What a process says of a target; it may say anything. Raises ValueError or TypeError."""
    url = targets.url_of(str(facts.get("url", "")))
    given = dict(facts.get("environ") or {})
    environ = {name: value for name, value in given.items() if isinstance(value, str) and targets.travels(name, value)}
    hosts, node = int(facts.get("hosts") or 1), facts.get("node")
    number = None if node is None else int(node)
    return Target(url, {project: is_whole}, facts.get("private") is not False, environ, max(1, hosts), number)


def known(where: Places) -> Iterator[Target]:
    """The targets of this data folder."""
    try:
        ids = sorted(os.listdir(where.uploads))
    except OSError:
        return
    for id_ in ids:
        target = Folder(where, id_).read_target()
        if target is not None:
            yield target


def _read(path: str) -> dict[str, Any]:
    """Empty for a file that is not there or means nothing: it is made again."""
    try:
        with open(path, encoding="utf-8") as file:
            values = json.load(file)
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _json(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values).encode()
