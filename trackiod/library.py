"""Artifacts as they are read: a version by name, one that is awaited, its files put where the user wants them.

Reads files; needs no daemon but where something is awaited.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from trackio import places, settings
from trackio.staging import cloned
from trackiod import blobs, elsewhere
from trackiod.catalog import open_project
from trackiod.errors import NotFound, StoreError
from trackiod.store.reader import ProjectReader, own_paths, paths
from trackiod.store.shelf_reader import Left
from trackiod.views.versions import Label, missing_in

_WAIT_SECONDS = 60.0
_BYTES_A_SECOND = 20 << 20
_LOOK_SECONDS = 0.05
_MAX_LOOK_SECONDS = 1.0
_MEASURE_SECONDS = 5.0
_TOLD_NS = 24 * 3600 * 10**9


class Version(NamedTuple):
    """One version of an artifact."""

    data: str
    """the data folder"""
    project: str
    name: str
    version: Label
    type: str
    digest: str
    size: int
    created_ns: int
    description: str | None
    metadata: dict[str, Any]
    manifest: list[dict[str, Any]]
    aliases: tuple[str, ...]

    @property
    def problem(self) -> str:
        """What of it was not kept whole, as a sentence; empty if nothing."""
        return _problem(f"{self.name}:v{self.version}", missing_in(self.manifest))


def _problem(label: str, missing: Sequence[Mapping[str, str]]) -> str:
    if not missing:
        return ""
    more = f" and {len(missing) - 1} more" if missing[1:] else ""
    return f"Artifact '{label}' is incomplete: {missing[0]['path']!r}{more} ({missing[0]['cause']})."


def _places(data: str) -> places.Places:
    return places.find(data, "", settings.of_this_process()[0].shared_dir)


def find(data: str, project: str, spec: str) -> Version:
    """The version that `name`, `name:alias`, `name:v3` or `project/name:...` means. Raises ValueError."""
    elsewhere.look(_places(data))
    its_project, name, which = parted(spec, project)
    try:
        with open_project(_places(data).projects, its_project) as reader:
            try:
                return named(reader, data, name, which)
            except NotFound as error:
                told = [_problem(f"{one.name}:v{one.version}", one.missing) for one in reader.incomplete_versions(name)]
                raise ValueError(" ".join([f"Artifact {spec!r} does not exist: {error}", *told[-1:]])) from None
    except (NotFound, StoreError) as error:
        raise ValueError(f"Artifact {spec!r} does not exist: {error}") from None


def incomplete(projects: str) -> list[str]:
    """A sentence for each incomplete version of this host that nobody may have noticed: the newest of its name, and
    those of the last day."""
    since_ns = time.time_ns() - _TOLD_NS
    told = []
    for path in own_paths(projects):
        try:
            with ProjectReader(path) as reader:
                told += [
                    _problem(f"{reader.project}/{one.name}:v{one.version}", one.missing)
                    for one in reader.incomplete_versions()
                    if one.created_ns >= since_ns or one.is_newest
                ]
        except StoreError:
            continue  # whoever asks says what is wrong with that project
    return told


def parted(spec: str, project: str) -> tuple[str, str, str]:
    """Project, name, and version or alias of `name`, `name:alias` or `project/name:...`."""
    its_project, _, rest = spec.rpartition("/")
    name, _, which = rest.partition(":")
    return its_project or project, name, which or "latest"


def named(reader: ProjectReader, data: str, name: str, which: str = "latest") -> Version:
    """A version by its alias or `v<n>`. Raises NotFound."""
    row = reader.version(name, which)
    if row is None:
        raise NotFound("Artifact", f"{name}:{which}", f" in project '{reader.project}'", reader.artifact_names())
    return Version(data, reader.project, *row)


def awaited(data: str, stream: str, number: int, timeout: float | None) -> Version:
    """The version that an artifact became, once the daemon has its files. Raises TimeoutError, without a timeout when
    nothing went on for long."""
    start = measured_at = time.monotonic()
    patience = _WAIT_SECONDS if timeout is None else timeout
    waits, left = _LOOK_SECONDS, Left(0, 0)
    path = ""
    while True:
        path = path or _database_of(data, stream)
        if (found := _numbered(data, path, stream, number)) is not None:
            return found
        now = time.monotonic()
        if timeout is None and now >= measured_at:  # seldom: it reads a row for each file
            before, left, measured_at = left, _left_to_keep(path, stream, number), now + _MEASURE_SECONDS
            start = now if left != before else start  # it goes on
        if now - start > patience + left.size / _BYTES_A_SECOND:
            raise TimeoutError("The daemon does not have all files of this artifact yet; nothing is lost.")
        time.sleep(waits)
        waits = min(waits * 1.2, _MAX_LOOK_SECONDS)


def _database_of(data: str, stream: str) -> str:
    """The database in which a stream is; empty while it is in none."""
    for path in paths(_places(data).projects):
        with contextlib.suppress(StoreError), ProjectReader(path) as reader:
            if reader.has_stream(stream):
                return path
    return ""


def _numbered(data: str, path: str, stream: str, number: int) -> Version | None:
    """The version that a stream's artifact became, if it has one."""
    if path:
        with contextlib.suppress(StoreError), ProjectReader(path) as reader:
            if (key := reader.artifact_of(stream, number)) is not None:
                return named(reader, data, key[0], f"v{key[1]}")
    return None


def _left_to_keep(path: str, stream: str, number: int) -> Left:
    """What is to be kept before an artifact has its version, as far as it is known."""
    if path:
        with contextlib.suppress(StoreError), ProjectReader(path) as reader:
            return reader.left_to_keep(stream, number)
    return Left(0, 0)


def all_versions(projects: str, project: str) -> list[dict[str, Any]]:
    """Every version of a project's artifacts, in upstream's words."""
    with open_project(projects, project) as reader:
        return [described(reader, name, version) for name, version in reader.versions()]


def described(reader: ProjectReader, name: str, version: Label) -> dict[str, Any]:
    """A version with its lineage."""
    found = named(reader, "", name, f"v{version}")
    links = reader.artifact_links(name, found.digest)
    facts = {k: v for k, v in found._asdict().items() if k != "data"}
    return facts | {"version": f"v{version}", "aliases": list(found.aliases),
                    "logged_by": [run for role, run in links if role == "output"],
                    "used_by": [run for role, run in links if role == "input"],
                    "incomplete": missing_in(found.manifest)}  # fmt: skip


def download(version: Version, root: Any) -> str:
    """`Artifact.download`. Raises RuntimeError, once everything that can be had is there."""
    folder = os.path.abspath(os.fspath(root) if root is not None else f"artifacts/{version.name}:v{version.version}")
    kept = blobs.folder_of(_places(version.data).blobs, version.project)
    problems = []
    for entry in version.manifest:
        target = os.path.join(folder, entry["path"])
        os.makedirs(os.path.dirname(target), exist_ok=True)
        try:
            _put(_source(kept, entry), target, entry)
        except RuntimeError as error:
            problems.append(str(error))
    if problems:
        raise RuntimeError(problems[0] + (f" Missing too: {len(problems) - 1} more." if problems[1:] else ""))
    return folder


def _source(folder: str, entry: Mapping[str, Any]) -> str:
    if entry.get("incomplete"):
        raise RuntimeError(f"{entry['path']!r} is incomplete: {entry['incomplete']}.")
    if "ref" in entry:
        parts = urlsplit(entry["ref"])
        if parts.scheme != "file":
            raise RuntimeError(f"{entry['path']!r} is a reference; fetch it yourself from {entry['ref']}")
        return unquote(parts.path)
    path = blobs.kept_in(folder, entry["digest"], entry.get("suffix", ""))
    if os.path.islink(path) and not os.path.exists(path):
        raise RuntimeError(f"{entry['path']!r} is only on the host that logged it: it is larger than what is copied.")
    return path


def _put(source: str, target: str, entry: Mapping[str, Any]) -> None:
    """A copy, or a clone: never a link, since what is kept must not change with what is done to a download."""
    try:
        if os.stat(source).st_size != entry["size"]:
            raise RuntimeError(f"{entry['path']!r} has changed since it was logged.")
        if os.path.exists(target):
            os.unlink(target)
        if not cloned(source, target):
            shutil.copyfile(source, target)
    except FileNotFoundError:
        raise RuntimeError(f"The file of {entry['path']!r} was removed.") from None
