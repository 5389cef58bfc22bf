"""Artifacts as files at a target, a version after another, once the rows are there. What was begun is gone on with;
equal content is sent once, whatever it is called, since the target knows files by their content."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Collection
from typing import Any, NamedTuple

import msgpack

from trackio.places import Places
from trackiod import blobs
from trackiod.uploads import names
from trackiod.uploads.addition import Addition
from trackiod.uploads.cursor import Cursor
from trackiod.uploads.source import Source, key_of
from trackiod.uploads.target import RunState
from trackiod.views.versions import Label, full_label, is_kept, number_of

MOST_BYTES, _MOST_FILES = 256 << 20, 100
"""in a commit, so that rows need not wait for long; a larger file goes alone"""


class Version(NamedTuple):
    """One version of an artifact."""

    name: str
    version: Label
    created_ns: int
    type: str
    digest: str
    about: dict[str, Any]
    manifest: list[dict[str, Any]]

    @property
    def number(self) -> int:
        return number_of(self.version)

    @property
    def key(self) -> str:
        """What its state is remembered by."""
        return f"artifact {self.name} v{self.version} {self.digest}"


def versions(connection: sqlite3.Connection, runs: Collection[str]) -> list[Version]:
    """The versions that these runs logged, oldest first."""
    rows = connection.execute(
        "SELECT DISTINCT v.name, v.version, v.created_ns, v.type, v.digest, v.facts, v.manifest, s.run FROM versions v"
        " JOIN artifacts a ON a.name = v.name AND a.version = v.version AND a.role = 'output'"
        " JOIN streams s ON s.id = a.stream ORDER BY v.created_ns, v.name, v.version"
    )
    found = {}
    for *facts, about, manifest, run in rows:
        if run in runs:
            version = Version._make((*facts, msgpack.unpackb(about), msgpack.unpackb(manifest, strict_map_key=False)))
            found[version.key] = version
    return list(found.values())


def folder_of(project: str, version: Version) -> str:
    """Where a version lies at a target: two hosts that count alike do not meet."""
    return f"artifacts/{names.folder_of(project, version.name)}/v{full_label(version.number, version.digest)}"


def is_here(where: Places, project: str, version: Version) -> bool:
    """Whether all files of what another host logged can be read here: some may be too large to be copied."""
    folder = blobs.folder_of(where.blobs, project)
    return all(os.path.exists(_blob(folder, entry)) for entry in version.manifest if is_kept(entry))


def _blob(folder: str, entry: dict[str, Any]) -> str:
    return blobs.kept_in(folder, str(entry["digest"]), str(entry.get("suffix", "")))


def next_files(source: Source, version: Version, state: RunState | None) -> tuple[Addition, list[str]]:
    """The next files of a version, and with the last of them its manifest; and what is wrong with it."""
    folder = folder_of(source.project, version)
    kept = blobs.folder_of(source.places.blobs, source.project)
    state = state or RunState(Cursor())
    sent, adds, problems, size = set(state.files), dict[str, str | bytes](), list[str](), 0
    seals = {}
    manifest = []
    is_last = True
    for entry in version.manifest:
        shown = {name: value for name, value in entry.items() if name != "suffix"}
        if is_kept(entry):
            blob = _blob(kept, entry)
            path = f"{folder}/files/{_safe(str(entry['path']), str(entry['digest']))}"
            if not os.path.exists(blob) or os.path.getsize(blob) != entry["size"]:
                shown["incomplete"] = "it is not what it was when it was kept"
                problems.append(f"{entry['path']} of artifact {version.name} v{version.version} is damaged here.")
            elif path not in sent and (len(adds) >= _MOST_FILES or (adds and size + entry["size"] > MOST_BYTES)):
                is_last = False
            elif path not in sent:
                adds[path] = blob
                size += entry["size"]
        manifest.append(shown)
    if is_last:
        facts = {"name": version.name, "version": version.number, "type": version.type, "digest": version.digest,
                 **version.about, "manifest": manifest}  # fmt: skip
        seals[f"{folder}/manifest.json"] = json.dumps(facts, indent=1, default=str).encode()
    files = tuple(sorted(sent | adds.keys()))
    state = state._replace(files=files, token=version.digest if is_last else "")
    return Addition(source.project, key_of(version.key, source.other), adds, state, 0, seals=seals), problems


def _safe(path: str, digest: str) -> str:
    """A file's path within its version; one that leads elsewhere is replaced by its content's name."""
    parts = path.split("/")
    return digest if not all(parts) or {"..", ".", ".git"} & {*parts} else path
