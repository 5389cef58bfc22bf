"""Reading what stands beside the points of a project: files, alerts, artifacts, what was said of the machine."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import msgpack

from trackiod.views.versions import Known, Label, labels, meant


class FileRow(NamedTuple):
    """What became of a file that a process handed over: `state` is kept, incomplete, or None while it waits."""

    state: str | None
    digest: str | None
    size: int | None
    suffix: str
    cause: str


class Machine(NamedTuple):
    """Where a process ran: equal in one of the two is the same machine, since containers of one machine have names of
    their own, and one that was booted again has another boot."""

    boot_id: str
    host: str

    def is_same(self, other: Machine) -> bool:
        return (self.boot_id != "" and self.boot_id == other.boot_id) or self.host == other.host


def machine_of(meta: Mapping[str, Any]) -> Machine:
    """Where a stream's process ran."""
    return Machine(str(meta.get("boot_id") or ""), str(meta.get("host") or ""))


_WAITS = "not sent yet"


class AlertRow(NamedTuple):
    """An alert and the run that raised it, None if it was the node. `sent`: what became of its webhook; None without
    one."""

    time_ns: int
    run: str | None
    run_id: str | None
    title: str
    text: str | None
    level: str
    step: int | None
    sent: str | None
    machine: Machine


_INCOMPLETE = msgpack.packb("incomplete")
"""as a version's facts hold it"""


class IncompleteVersion(NamedTuple):
    """A version that is not whole: path and cause of some of the files that are missing."""

    name: str
    version: int
    created_ns: int
    missing: list[dict[str, str]]
    is_newest: bool


class Left(NamedTuple):
    """Files that are to be kept yet, and their bytes."""

    files: int
    size: int


class ShelfReader:
    """The part of `ProjectReader` that reads these."""

    def _all(self, sql: str, *values: Any) -> list[Any]:
        raise NotImplementedError

    def _each(self, sql: str, values: Collection[str]) -> list[Any]:
        raise NotImplementedError

    def has_stream(self, stream: str) -> bool:
        raise NotImplementedError

    def files(self, ids: Collection[str]) -> dict[str, FileRow]:
        """What is known of these files, by id."""
        rows = self._each("SELECT id, state, digest, size, ifnull(suffix, ''), ifnull(cause, '') FROM files"
                          " WHERE id IN ({})", ids)  # fmt: skip
        return {row[0]: FileRow._make(row[1:]) for row in rows}

    def saved(self, runs: Collection[str]) -> list[tuple[str, FileRow]]:
        """The files that the user saved with these runs, by name, in the order of their saving."""
        rows = self._each("SELECT f.at_ns, f.id, f.facts, f.state, f.digest, f.size, ifnull(f.suffix, ''),"
                          " ifnull(f.cause, '') FROM files f JOIN streams s ON s.id = f.stream WHERE s.run IN ({})",
                          runs)  # fmt: skip
        found = [(msgpack.unpackb(row[2], strict_map_key=False).get("saved"), row) for row in sorted(rows)]
        return [(name, FileRow._make(row[3:])) for name, row in found if name is not None]

    def system(self, runs: Collection[str]) -> list[tuple[int, int, dict[str, Any]]]:
        """(time_ns, rank, metrics) of what these runs gave to log_system(), by time."""
        rows = self._each("SELECT y.time_ns, s.rank, y.metrics FROM system y JOIN streams s ON s.id = y.stream"
                          " WHERE s.run IN ({})", runs)  # fmt: skip
        found = [(row[0], row[1], msgpack.unpackb(row[2], strict_map_key=False)) for row in rows]
        return sorted(found, key=lambda row: row[:2])

    # -- artifacts -----------------------------------------------------------------------------------------------

    def version(self, name: str, which: str) -> tuple[Any, ...] | None:
        """A version by alias or `v<n>`, in the order of `library.Version`; None if there is none."""
        rows = self._all("SELECT version, created_ns, digest FROM versions WHERE name = ?", name)
        known = [Known(*row) for row in rows]
        aliases = self._aliases(name, known)
        digest = meant(which, known) or aliases.get(which)
        of_it = sorted((each for each in known if each.digest == digest), key=lambda each: not each.is_ours)
        if not of_it:
            return None
        (row,) = self._all("SELECT type, size, created_ns, facts, manifest FROM versions WHERE name = ?"
                           " AND version = ? LIMIT 1", name, of_it[0].stored)  # fmt: skip
        type_, size, created_ns, *packed = row
        facts, manifest = (msgpack.unpackb(part, strict_map_key=False) for part in packed)
        names = tuple(sorted(alias for alias, its in aliases.items() if its == digest))
        label = labels(known)[of_it[0].digest]
        return (name, label, type_, digest, size, created_ns, facts["description"], facts["metadata"], manifest, names)

    def _aliases(self, name: str, known: Sequence[Known]) -> dict[str, str]:
        """The digest behind each alias: of those that several hosts gave it to, what was logged last."""
        by_stored = {each.stored: each for each in known}
        rows = self._all("SELECT alias, version FROM aliases WHERE name = ?", name)
        copied = {}  # when those logged it that gave the alias; others may have logged it at another time
        if any(isinstance(stored, str) for _, stored in rows):
            sql = ("SELECT a.alias, a.version, max(v.created_ns) FROM copied_aliases a JOIN copied_versions v"
                   " USING (copy, name, version) WHERE a.name = ? GROUP BY a.alias, a.version")  # fmt: skip
            copied = {(alias, stored): at for alias, stored, at in self._all(sql, name)}
        given = [
            (copied.get((alias, stored), by_stored[stored].created_ns), alias, by_stored[stored].digest)
            for alias, stored in rows
            if stored in by_stored
        ]
        return {alias: digest for _, alias, digest in sorted(given)}

    def versions(self) -> list[tuple[str, Label]]:
        """(name, version) of every artifact, in their order."""
        by_name: dict[str, list[Known]] = {}
        for name, *row in self._all("SELECT name, version, created_ns, digest FROM versions ORDER BY name"):
            by_name.setdefault(name, []).append(Known(*row))
        return [(name, label) for name, known in by_name.items() for label in labels(known).values()]

    def artifact_names(self) -> list[str]:
        return [row[0] for row in self._all("SELECT DISTINCT name FROM versions ORDER BY name")]

    def artifact_of(self, stream: str, number: int) -> tuple[str, Label] | None:
        """(name, version) that a stream's artifact became; None while it has none."""
        rows = self._all("SELECT name, version FROM artifacts WHERE stream = ? AND number = ? AND version IS NOT NULL",
                         stream, number)  # fmt: skip
        return (rows[0][0], rows[0][1]) if rows else None

    def left_to_keep(self, stream: str, number: int) -> Left:
        """What of a stream's artifact is to be kept yet."""
        rows = self._all("SELECT facts FROM files WHERE stream = ? AND artifact = ? AND state IS NULL", stream, number)
        sizes = [int(msgpack.unpackb(row[0], strict_map_key=False).get("size") or 0) for row in rows]
        return Left(len(sizes), sum(sizes))

    def incomplete_versions(self, name: str | None = None) -> list[IncompleteVersion]:
        """This host's versions, of one name or of all, of which something was not kept whole; by name and version."""
        rows = self._all("SELECT name, version, created_ns, facts, version = (SELECT max(version) FROM versions o"
                         " WHERE o.name = v.name) FROM versions v WHERE instr(facts, ?) AND typeof(version) = 'integer'"
                         " AND (? IS NULL OR name = ?) ORDER BY name, version", _INCOMPLETE, name, name)  # fmt: skip
        found = [(*row[:3], msgpack.unpackb(row[3], strict_map_key=False).get("incomplete"), row[4]) for row in rows]
        return [
            IncompleteVersion(name, version, created_ns, missing, bool(is_newest))
            for name, version, created_ns, missing, is_newest in found
            if missing
        ]

    def artifact_links(self, name: str, digest: str) -> list[tuple[str, str]]:
        """(role, name of the run) of every run that logged or used a version."""
        its = self._all("SELECT version FROM versions WHERE name = ? AND digest = ?", name, digest)
        stored = {row[0] for row in its}
        rows = self._all(
            "SELECT a.role, r.name, a.version, a.facts FROM artifacts a JOIN streams s ON s.id = a.stream"
            " JOIN runs r ON r.id = s.run WHERE a.name = ? ORDER BY a.time_ns", name,
        )  # fmt: skip
        return [(role, run) for role, run, version, facts in rows
                if (_digest_in(facts) or digest) == digest and (version in stored or _digest_in(facts))]  # fmt: skip

    def machines_at(self, time_ns: int, runs: Collection[str] | None = None) -> set[Machine]:
        """Where these runs, or any, had a process at a time."""
        sql = "SELECT meta FROM streams WHERE started_ns <= ? AND (state IS NULL OR coalesce(ended_ns, last_ns) >= ?)"
        found = [self._all(sql, time_ns, time_ns)] if runs is None else [
            self._all(sql + " AND run = ?", time_ns, time_ns, run) for run in runs]  # fmt: skip
        return {machine_of(msgpack.unpackb(meta)) for rows in found for (meta,) in rows}

    def alerts(self, runs: Collection[str] | None = None) -> list[AlertRow]:
        """The alerts of these runs or of all, the newest first."""
        sent = f"CASE WHEN a.webhook IS NULL THEN a.sent ELSE coalesce(a.sent, '{_WAITS}') END"
        sql = (f"SELECT a.time_ns, r.name, r.id, a.title, a.text, a.level, a.step, {sent}, s.meta FROM alerts a"
               " JOIN streams s ON s.id = a.stream JOIN runs r ON r.id = s.run")  # fmt: skip
        rows = self._all(sql) if runs is None else self._each(sql + " WHERE r.id IN ({})", runs)
        found = [AlertRow._make((*row[:-1], machine_of(msgpack.unpackb(row[-1])))) for row in rows]
        return sorted(found, key=lambda row: row.time_ns, reverse=True)


def _digest_in(facts: bytes) -> str | None:
    """Which content a run used, if it says so."""
    digest = msgpack.unpackb(facts, strict_map_key=False).get("digest")
    return digest if isinstance(digest, str) else None
