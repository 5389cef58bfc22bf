"""Copies this host's runs, as plain files, into a folder that all hosts see.

    <shared>/<host>/<store>/alive                     touched every minute; its text changes when something below does
    <shared>/<host>/<store>/<database>/parts.json     which parts each run of the database has
    <shared>/<host>/<store>/<database>/<digest>.db    a part (`trackiod.store.parts`), named by its content
    <shared>/<host>/<store>/<database>/files/ab/...   files of its values and artifacts, by content

A file is written under another name and renamed, and a part never changes, so whoever reads finds each whole, and needs
no lock of SQLite's on a network. A part counts once `parts.json` names it; what it does not name is removed. Everything
can be made again from this host's store. Nothing is removed because it cannot be read here any more, only because the
database it came from says that the run is gone.

Runs in a child (`python -m trackiod copy`): a file server that hangs costs nobody else anything.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import sqlite3
import stat
import sys
from collections.abc import Iterator
from contextlib import closing
from typing import Any

from trackio import names, places, settings, trust
from trackio.places import STORE_ID, Places, append, create, replace
from trackio.settings import MOST_FILE_BYTES
from trackiod.errors import StoreError
from trackiod.sinks.access import Access, of_group
from trackiod.store import additions, artifact_parts, parts, schema
from trackiod.store.parts import Place
from trackiod.store.reader import own_paths, unlisted

ALIVE, INDEX, FILES = "alive", "parts.json", "files"
_NEW = ".new"
_NO_ARTIFACTS = {"token": "", "name": ""}
_NO_INDEX: dict[str, Any] = {"project": "", "runs": {}, "artifacts": _NO_ARTIFACTS}
_LOCK = "copy.lock"
_DIGEST_CHARS = 32
_MOST_TEXT_BYTES = 64 << 20
_ALONE = Access()
OF_USER = "~"
"""between a host's name and a user's number"""


def main() -> int:
    """Copies what has changed. 0 when everything is there; else the reason stands in the last line of stderr."""
    ours, _ = settings.of_this_process()
    where = places.of(ours)
    try:
        access, problem = of_group(ours.shared_group)
        problems = [*copy_out(where, ours.shared_file_bytes, access), *([problem] if problem else [])]
    except OSError as error:
        problems = [f"{where.shared} cannot be written: {error.strerror or error}"]
    sys.stderr.writelines(f"{problem}\n" for problem in problems[:20])
    return 1 if problems else 0


def copy_out(where: Places, most_bytes: int = MOST_FILE_BYTES, access: Access = _ALONE) -> list[str]:
    """Copies every run that has changed, and files up to so many bytes each; returns a sentence for each database of
    which something could not be copied. One at a time: waits for another. Raises OSError if the folder cannot be
    written."""
    with os.fdopen(append(os.path.join(where.live, _LOCK)), "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _Copier(where, most_bytes, access).copy()


def own_folder(where: Places) -> str:
    """This host's and store's folder among those of all hosts, and of all users where several share one."""
    return os.path.join(_host_folder(where.shared), store_id(where))


def _host_folder(shared: str) -> str:
    """This user's folder for this host. Where another user has made it, this one has one with its number beside it."""
    usual = os.path.join(shared, os.uname().nodename)
    own = f"{usual}{OF_USER}{os.geteuid()}"
    try:
        is_ours = stat.S_ISDIR((info := os.lstat(usual)).st_mode) and info.st_uid == os.geteuid()
    except FileNotFoundError:
        is_ours = not os.path.isdir(own)
    return usual if is_ours else own


def store_id(where: Places) -> str:
    """The data folder's own id. Raises OSError if no daemon ever served it."""
    with open(os.path.join(where.live, STORE_ID), encoding="utf-8") as file:
        return file.read().strip()


class _Copier:
    """One copy of everything that has changed."""

    def __init__(self, where: Places, most_bytes: int, access: Access) -> None:
        self._places = where
        self._most_bytes = most_bytes
        self._access = access
        self._folder = own_folder(where)
        self._made = os.path.join(where.live, ".part")

    def copy(self) -> list[str]:
        self._access.apply_to_all(self._folder)
        for folder in (os.path.dirname(self._folder), self._folder):
            self._access.make_folder(folder, self._places.shared)
        self._say_alive()
        problems = unlisted(self._places.projects)
        for path in [*own_paths(self._places.projects), schema.path_of(self._places.projects, names.HOST)]:
            if not os.path.exists(path):
                continue
            try:
                with closing(schema.connect_for_reading(path)) as source:
                    self._copy_database(source, path)
            except (sqlite3.Error, StoreError, KeyError, TypeError) as error:
                problems.append(f"{path} cannot be copied: {error}")
            self._say_alive()
        for database in _names(self._places.deleted):
            if os.path.isdir(folder := os.path.join(self._folder, database)):
                shutil.rmtree(folder)
            os.unlink(os.path.join(self._places.deleted, database))
        self._say_alive(self._revision())
        return problems

    def _say_alive(self, revision: str = "") -> None:
        """That this host lives, and which revision of everything is there."""
        path = os.path.join(self._folder, ALIVE)
        if revision in ("", read_text(path)) and os.path.exists(path):
            os.utime(path)  # the file server's time
        else:
            replace(path, revision.encode(), is_safe=True, mode=self._access.file_mode)
            self._access.apply(path)

    def _revision(self) -> str:
        """What changes whenever an index does."""
        indexes = [read_text(os.path.join(self._folder, name, INDEX)) for name in sorted(_names(self._folder))]
        return hashlib.sha256("\n".join(indexes).encode()).hexdigest()

    def _copy_database(self, source: sqlite3.Connection, path: str) -> None:
        project, database = schema.project_of(source, path), schema.database_of(source)
        folder = os.path.join(self._folder, database)
        self._access.make_folder(folder, self._places.shared)
        try:
            before = read_index(folder)
        except ValueError:
            before = _NO_INDEX  # it is damaged: everything is copied anew
        runs: dict[str, Any] = {}
        for run, token in parts.tokens(source).items():
            entry = before["runs"].get(run)
            is_new = entry is None or entry["token"] != token
            runs[run] = self._copy_run(source, folder, run, token, entry) if is_new else entry
        artifacts = self._copy_artifacts(source, folder, before.get("artifacts", _NO_ARTIFACTS))
        index = {"project": project, "runs": runs, "artifacts": artifacts}
        blobs = os.path.join(self._places.blobs, os.path.basename(path).removesuffix(schema.SUFFIX))
        files = self._copy_files(source, blobs, os.path.join(folder, FILES)) if index != before else None
        if index != before:
            path = os.path.join(folder, INDEX)
            replace(path, json.dumps(index).encode(), is_safe=True, mode=self._access.file_mode)
            self._access.apply(path)
        named = {artifacts["name"], *(part["name"] for entry in runs.values() for part in entry["parts"])}
        for name in _names(folder):
            if name.removesuffix(_NEW).endswith(schema.SUFFIX) and name not in named:
                os.unlink(os.path.join(folder, name))
        for file in files or ():
            os.unlink(file)

    def _copy_run(
        self, source: sqlite3.Connection, folder: str, run: str, token: str, entry: dict[str, Any] | None
    ) -> dict[str, Any]:
        """Writes what the index does not name yet of a run; returns its new entry."""
        added = {"added": known} if (known := additions.known()) else {}  # else parts do not have what was added
        is_ours = entry is not None and entry.get("added", "") == added.get("added", "")
        kept = _full_parts(source, run, entry["parts"]) if entry is not None and is_ours else []
        while True:
            self._say_alive()
            end = parts.write(source, self._made, run, kept[-1]["upto"][0] if kept else 0)
            kept.append({"name": self._placed(folder), "upto": end})
            if end is None:
                break
        return {"token": token, "parts": kept} | added

    def _copy_artifacts(self, source: sqlite3.Connection, folder: str, known: dict[str, str]) -> dict[str, str]:
        """Writes what is known of the project's artifacts, if it is news; returns its new entry."""
        token = artifact_parts.token(source)
        if token == known["token"]:
            return known
        if not token:
            return _NO_ARTIFACTS
        artifact_parts.write(source, self._made)
        return {"token": token, "name": self._placed(folder)}

    def _placed(self, folder: str) -> str:
        """Puts the part that was made into its place; returns its name there."""
        name = _digest(self._made) + schema.SUFFIX
        self._place(self._made, os.path.join(folder, name))
        os.unlink(self._made)
        return name

    def _copy_files(self, source: sqlite3.Connection, blobs: str, folder: str) -> list[str]:
        """Copies the files of values and artifacts that are not too large, each once. Returns those that nothing speaks
        of."""
        sql = "SELECT digest, suffix, size FROM files WHERE state = 'kept' AND artifact IS NULL"
        known = [*source.execute(sql), *artifact_parts.files(source)]
        wanted = {os.path.join(d[:2], d + suffix) for d, suffix, size in known if size <= self._most_bytes}
        there = {os.path.join(ab, name) for ab in _names(folder) for name in _names(os.path.join(folder, ab))}
        for name in sorted(wanted - there):
            if os.path.exists(os.path.join(blobs, name)):
                self._say_alive()
                self._access.make_folder(os.path.dirname(os.path.join(folder, name)), self._places.shared)
                self._place(os.path.join(blobs, name), os.path.join(folder, name))
        return [os.path.join(folder, name) for name in there - wanted]

    def _place(self, made: str, target: str) -> None:
        """Copies a file to where it is whole or not at all."""
        with open(made, "rb") as source, os.fdopen(create(target + _NEW, self._access.file_mode), "wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
            self._access.apply(target + _NEW)
            file.flush()
            os.fsync(file.fileno())
        os.rename(target + _NEW, target)


def _full_parts(source: sqlite3.Connection, run: str, known: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The parts that need not be written again; none if the database was put back to an earlier state. Those of which
    the database dropped everything, as it does with old samples, go."""
    full = [part for part in known if part["upto"]]
    row = source.execute(
        "SELECT min(a.id) FROM axes a JOIN streams s ON s.id = a.stream WHERE s.run = ?", (run,)
    ).fetchone()
    oldest = row[0]
    held = [part for part in full if oldest is not None and part["upto"][0] >= oldest]
    if any(parts.place_of(source, part["upto"][0]) != Place(*part["upto"][: len(Place._fields)]) for part in held[-1:]):
        return []
    return held or full[-1:]  # so that what follows is not written from the beginning


# -- files, as readers find them -------------------------------------------------------------------------------------


def read_index(folder: str, uid: int | None = None) -> dict[str, Any]:
    """Which parts a database has in the shared folder, by run; nothing if none was copied yet. `uid`: whose it is to
    be. Raises OSError, or ValueError if it is damaged."""
    text = read_text(os.path.join(folder, INDEX), uid)
    if not text:
        return _NO_INDEX
    try:
        index: dict[str, Any] = json.loads(text)
        named = [
            part["name"] for run in index["runs"].values() for part in run["parts"] if run["token"] and "upto" in part
        ]
        named += [name for name in [index.get("artifacts", _NO_ARTIFACTS)["name"]] if name]
        if not isinstance(index["project"], str) or not all(map(is_part_name, named)):
            raise TypeError("a name is not that of a part")
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{folder} has an index that means nothing ({error!r})") from error
    return index


def is_part_name(name: str) -> bool:
    """Whether a file in a database's folder can be called so by us: it leads nowhere else."""
    digest = name.removesuffix(schema.SUFFIX)
    return digest + schema.SUFFIX == name and len(digest) == _DIGEST_CHARS and {*digest} <= {*"0123456789abcdef"}


def read_text(path: str, uid: int | None = None) -> str:
    """A file of text; an empty text if there is none. `uid`: it is this other user's, and hostile input. Raises
    OSError."""
    try:
        with open(path if uid is None else _open_foreign(path, uid), encoding="utf-8") as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        return ""


def _open_foreign(path: str, uid: int) -> int:
    """Open another user's plain file; return its descriptor. No link is followed, no pipe waited for, nothing huge
    taken. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode):
        problem = "it is not a plain file"
    elif info.st_uid not in (uid, 0):
        problem = f"it belongs to {trust.name_of(info.st_uid)}"
    elif info.st_size > _MOST_TEXT_BYTES:
        problem = f"it has {info.st_size:,} bytes"
    else:
        return fd
    os.close(fd)
    raise PermissionError(errno.EPERM, problem, path)


def _names(folder: str) -> Iterator[str]:
    """What lies in a folder; nothing if it is not there. Raises OSError: what cannot be listed is not empty."""
    try:
        entries = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return
    yield from entries


def _digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:_DIGEST_CHARS]
