"""A project's parts from several hosts, put together in one database (`parts`). It remembers in `meta` which axes came
with which part (`part STORE/DATABASE/NAME`), and of which run of which database a stream is (`stream ID`).
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Collection
from contextlib import closing
from typing import Any, NamedTuple

from trackiod.errors import StoreError
from trackiod.store import foreign, parts

_SILENT = "nothing was heard of "


class Copy(NamedTuple):
    """One database of one host's, as it lies in the shared folder."""

    host: str
    key: str
    """store/database"""
    folder: str
    owner: int | None = None
    """the user whose copy it is, where that is another one"""
    own_runs: Collection[str] = ()
    """runs of this user's, which no other user's copy adds to"""


OWNERS = "SELECT DISTINCT value FROM meta WHERE key GLOB 'stream *'"


def take_runs(
    target: sqlite3.Connection, copy: Copy, runs: dict[str, Any], problems: list[str]
) -> list[tuple[str, str]]:
    """Makes what is held of a copy what its index says. `meta` remembers which axes came with which part, and of which
    run of which copy a stream is. Returns the files of what is new. A run that cannot be taken, because a newer release
    wrote it or it is damaged, is named in `problems` and stays what it was."""
    prefix = f"part {copy.key}/"
    held = {
        key.removeprefix(prefix): json.loads(value)
        for key, value in target.execute("SELECT key, value FROM meta WHERE key GLOB ?", (prefix + "*",))
    }
    named = {part["name"] for run in runs.values() for part in run["parts"]}
    for name in held.keys() - named:
        parts.drop_columns(target, *held[name])
        target.execute("DELETE FROM meta WHERE key = ?", (prefix + name,))
    files: list[tuple[str, str]] = []
    for run, entry in runs.items():
        if any(part["name"] not in held for part in entry["parts"]):
            target.execute("SAVEPOINT of_run")
            try:
                files += _take_run(target, copy, run, [part["name"] for part in entry["parts"]], held)
            except (StoreError, FileNotFoundError) as error:
                target.execute("ROLLBACK TO of_run")
                problems.append(str(error))
            target.execute("RELEASE of_run")
    for key in {row[0] for row in target.execute(OWNERS)}:
        database, _, run = key.rpartition("/")
        if database == copy.key and run not in runs:
            _own(target, key, [])
    return files


def _take_run(
    target: sqlite3.Connection, copy: Copy, run: str, names: list[str], held: dict[str, Any]
) -> list[tuple[str, str]]:
    """Takes a run's parts that are not held yet. A stream that two databases have, because one was begun anew, is
    taken from the one that has more of it."""
    key, prefix = f"{copy.key}/{run}", f"part {copy.key}/"
    if copy.owner is not None:
        foreign.check(target, copy, run, names)
    with closing(parts.opened(os.path.join(copy.folder, names[-1]))) as last:
        committed = parts.streams_of(last)
    others, won = set(), []
    for stream, upto in committed.items():
        owner = target.execute("SELECT value FROM meta WHERE key = ?", (f"stream {stream}",)).fetchone()
        if owner is not None and owner[0] != key:
            known = target.execute("SELECT committed FROM streams WHERE id = ?", (stream,)).fetchone()
            if (known is not None and known[0] >= upto) or foreign.owner_of(target, stream) != copy.owner:
                others.add(stream)
            else:
                won.append(stream)
    parts.drop_streams(target, won)
    if won:  # parts that are held were taken without them
        for name in names:
            if name in held:
                parts.drop_columns(target, *held.pop(name))
                target.execute("DELETE FROM meta WHERE key = ?", (prefix + name,))
    files: list[tuple[str, str]] = []
    for name in names:
        if name in held:
            continue
        with closing(parts.opened(os.path.join(copy.folder, name))) as source:
            axes = parts.take_columns(source, target, others)
            target.execute("INSERT INTO meta (key, value) VALUES (?, ?)", (prefix + name, json.dumps(axes)))
            if name == names[-1]:
                files = parts.take_facts(source, target, others)
    foreign.mark(target, sorted(committed.keys() - others), copy.owner)
    _own(target, key, sorted(committed.keys() - others))
    return files


def _own(target: sqlite3.Connection, key: str, streams: list[str]) -> None:
    """Notes which streams came with a run, and removes those that it has no more."""
    rows = target.execute("SELECT key FROM meta WHERE value = ? AND key GLOB 'stream *'", (key,)).fetchall()
    before = {str(row[0]).removeprefix("stream ") for row in rows}
    gone = sorted(before - {*streams})
    target.executemany("DELETE FROM meta WHERE key = ?", [(f"stream {stream}",) for stream in gone])
    target.executemany(
        "INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)", [(f"stream {stream}", key) for stream in streams]
    )
    parts.drop_streams(target, gone)


def end_silent(target: sqlite3.Connection, copy: Copy, is_silent: bool) -> None:
    """If nothing was heard of a host, what ran there is lost, until it copies again."""
    ours = "EXISTS (SELECT 1 FROM meta m WHERE m.key = 'stream ' || s.id AND m.value GLOB ?)"
    if is_silent:
        target.execute(
            "UPDATE streams AS s SET state = 'lost', cause = ?, ended_ns = coalesce(last_ns, started_ns)"
            f" WHERE state IS NULL AND {ours}", (f"{_SILENT}{copy.host} any more", f"{copy.key}/*"),
        )  # fmt: skip
    else:
        target.execute(
            f"UPDATE streams AS s SET state = NULL, cause = '', ended_ns = NULL WHERE cause GLOB ? AND {ours}",
            (f"{_SILENT}*", f"{copy.key}/*"),
        )
