"""Writing what stands beside the points of a project: files, alerts, artifacts, what was said of the machine.

Runs inside the transaction its caller opened, as `project` does.
"""

from __future__ import annotations

import hashlib
import sqlite3
from typing import Any

import msgpack

from trackiod.store.addresses import Addresses
from trackiod.store.digest import Digest
from trackiod.views.versions import missing_in

_MAX_MISSING = 20
"""files that an incomplete version names beside its manifest"""
_MISTAKEN = "not sent: its webhook is no http address"
"""what the first release notes of an alert whose address is kept in a file"""
_GONE = "what its process said of it was lost"

_ALERTS = (
    "INSERT OR IGNORE INTO alerts (stream, start, time_ns, step, level, title, text, webhook)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
)


class Shelf:
    """The rows that wait for something: files to be kept, alerts to be sent, artifacts to be numbered."""

    def __init__(self, connection: sqlite3.Connection, addresses: Addresses) -> None:
        self._connection = connection
        self.addresses = addresses
        self._unsettled: dict[tuple[str, int], int] = {}
        """how many files of a stream's artifact are to be kept yet, for those that wait for nothing else"""
        self._passed: set[tuple[str, int]] = set()
        """artifacts of which a file waits longer than others: later ones of their name do not wait for them"""

    def forget(self) -> None:
        """Forget what was counted: the transaction in hand is rolled back."""
        self._unsettled.clear()

    def note(self, stream: str, digest: Digest) -> None:
        """Notes what a batch says; what is known already stays as it is."""
        many = self._connection.executemany
        many(
            "INSERT OR IGNORE INTO files (id, stream, at_ns, facts, artifact) VALUES (?, ?, ?, ?, ?)",
            [
                (f"{stream}/{f.number}", stream, f.time_ns, msgpack.packb(f.facts), _number_in(f.facts))
                for f in digest.files
            ],
        )
        for number in {_number_in(file.facts) for file in digest.files}:
            if number is not None:
                self._unsettled.pop((stream, number), None)
        alerts = [
            (stream, *alert[:-1], self.addresses.keep(alert.webhook, stream, alert.start)) for alert in digest.alerts
        ]
        many(_ALERTS, alerts)
        many("INSERT OR IGNORE INTO system (stream, start, time_ns, metrics) VALUES (?, ?, ?, ?)",
             [(stream, start, at_ns, msgpack.packb(metrics)) for start, at_ns, metrics in digest.system])  # fmt: skip
        many(
            "INSERT OR IGNORE INTO artifacts (stream, number, time_ns, role, name, facts, version)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            [(stream, a.number, a.time_ns, a.role, a.name, msgpack.packb(a.facts),
              _number_in(a.facts, "version") if a.role == "input" else None) for a in digest.artifacts],
        )  # fmt: skip
        for artifact in digest.artifacts:
            if artifact.role == "output":
                self._number_from(stream, artifact.number)
        if digest.name:
            self._connection.execute(
                "UPDATE runs SET name = ? WHERE id = (SELECT run FROM streams WHERE id = ? AND rank <= name_rank)",
                (digest.name, stream),
            )

    def files_to_keep(self, stream: str | None = None) -> list[tuple[str, dict[str, Any]]]:
        """(id, facts) of the files that are to be kept yet, the oldest first; of one stream, or of all."""
        where = "" if stream is None else " AND stream = ?"
        rows = self._connection.execute(
            f"SELECT id, facts FROM files WHERE state IS NULL{where} ORDER BY at_ns, id",
            () if stream is None else (stream,),
        )
        return [(row[0], _unpacked(row[1])) for row in rows.fetchall()]

    def waiting_of(self, stream: str) -> set[str] | None:
        """The ids of a stream's files that are to be kept yet; None if they cannot be read."""
        try:
            return {file for file, _ in self.files_to_keep(stream)}
        except sqlite3.DatabaseError:
            return None

    def settled(self, files: list[str]) -> list[str]:
        """Those of these files of which it is known what became of them."""
        sql = "SELECT 1 FROM files WHERE id = ? AND state IS NOT NULL"
        return [file for file in files if self._connection.execute(sql, (file,)).fetchone()]

    def note_file(self, file: str, state: str, digest: str | None, size: int | None, suffix: str, cause: str) -> None:
        """Notes what became of a file; the artifact that waited for it gets its version."""
        do = self._connection.execute
        row = do("SELECT stream, artifact FROM files WHERE id = ? AND state IS NULL", (file,)).fetchone()
        do("UPDATE files SET state = ?, digest = ?, size = ?, suffix = ?, cause = ? WHERE id = ?",
           (state, digest, size, suffix, cause, file))  # fmt: skip
        if row is not None and row[1] is not None:
            self._note_settled(row[0], row[1])

    def alerts_to_send(self, stream: str | None = None) -> list[tuple[str, dict[str, Any]]]:
        """(stream, facts) of the alerts that are to be sent yet, the oldest first; of one stream, or of all."""
        rows = self._connection.execute(
            "SELECT a.stream, a.start, a.time_ns, a.step, a.level, a.title, a.text, a.webhook, s.run, r.name"
            " FROM alerts a JOIN streams s ON s.id = a.stream JOIN runs r ON r.id = s.run"
            " WHERE a.webhook IS NOT NULL AND (? IS NULL OR a.stream = ?) ORDER BY a.time_ns",
            (stream, stream),
        )
        names = ("start", "time_ns", "step", "level", "title", "text", "webhook", "run_id", "run")
        found = [(row[0], dict(zip(names, row[1:], strict=True))) for row in rows.fetchall()]
        return [(row, facts | {"webhook": self.addresses.address_of(facts["webhook"])}) for row, facts in found]

    def wait_again(self) -> None:
        """Have alerts wait to be sent that an earlier release gave up, since it took what refers to their addresses for
        the addresses: these are still kept. Raises OSError."""
        if self.addresses.is_empty:
            return
        rows = self._connection.execute("SELECT stream, start FROM alerts WHERE sent = ?", (_MISTAKEN,)).fetchall()
        for stream, start in rows:
            if (kept := self.addresses.kept_for(stream, start)) is not None:
                self._connection.execute(
                    "UPDATE alerts SET webhook = ?, sent = NULL WHERE stream = ? AND start = ?", (kept, stream, start)
                )

    def raise_alert(self, time_ns: int, facts: dict[str, Any]) -> str:
        """An alert of the daemon's own, in the newest stream of a rank: no record has its place. Returns the stream."""
        newest = "SELECT id FROM streams WHERE role = 'rank' ORDER BY started_ns DESC LIMIT 1"
        row = self._connection.execute(newest).fetchone()
        if row is None:
            return ""
        webhook = self.addresses.keep(facts.get("webhook"), row[0], -time_ns)
        values = (row[0], -time_ns, time_ns, None, facts["level"], facts["title"], facts["text"], webhook)
        self._connection.execute(_ALERTS, values)
        return str(row[0])

    def note_sent(self, stream: str, start: int, sent: str) -> str | None:
        """Notes that an alert was sent, or why it was given up. Returns what refers to its address, which is to be
        forgotten once that is committed."""
        place = (stream, start)
        row = self._connection.execute("SELECT webhook FROM alerts WHERE stream = ? AND start = ?", place).fetchone()
        self._connection.execute(
            "UPDATE alerts SET webhook = NULL, sent = ? WHERE stream = ? AND start = ?", (sent, *place)
        )
        return None if row is None else row[0]

    # -- artifacts -------------------------------------------------------------------------------------------------

    def _number_from(self, stream: str, number: int) -> None:
        """Give an artifact its version if all its files are kept, or known to be missing; then those of its name that
        were logged after it, as far as they only waited for it."""
        while self._look_at(stream, number) or (stream, number) in self._passed:
            following = self._connection.execute(
                "SELECT number FROM artifacts WHERE version IS NULL AND stream = ? AND role = 'output' AND number > ?"
                " AND name = (SELECT name FROM artifacts WHERE stream = ? AND number = ?) ORDER BY number LIMIT 1",
                (stream, number, stream, number),
            ).fetchone()
            if following is None:
                return
            number = following[0]

    def _note_settled(self, stream: str, number: int) -> None:
        """One more file of an artifact is settled. The last one brings its version; the others cost a look at a
        counter, or at one row while the artifact itself is not stored yet."""
        key = (stream, number)
        if self._unsettled.get(key, 1) > 1:
            self._unsettled[key] -= 1
        else:
            self._unsettled.pop(key, None)
            self._number_from(stream, number)

    def _look_at(self, stream: str, number: int) -> bool:
        """Number an artifact that waits for nothing more, True then; else count what it waits for."""
        if (stream, number) in self._unsettled:
            return False
        do = self._connection.execute
        row = do("SELECT time_ns, name, facts FROM artifacts"
                 " WHERE stream = ? AND number = ? AND version IS NULL AND role = 'output'",
                 (stream, number)).fetchone()  # fmt: skip
        if row is None:
            return False
        of_it = "FROM files WHERE stream = ? AND artifact = ?"
        total, open_ = do(f"SELECT count(*), count(*) - count(state) {of_it}", (stream, number)).fetchone()
        if open_:
            self._unsettled[stream, number] = open_
            return False
        if self._is_behind(stream, number, row[1]):
            return False
        facts = _unpacked(row[2])
        rows = do(f"SELECT facts, state, digest, size, ifnull(suffix, ''), cause {of_it}", (stream, number)).fetchall()
        entries = [*facts.get("references", ()), *facts.get("lost", ())]
        if facts.get("parts"):
            entries = self._entries_apart(stream, number, int(facts["parts"]))
        if (gone := int(facts.get("files", 0)) - total) > 0:  # what was said of them stood in the stream before it
            entries.append({"path": f"({gone:,} files)", "incomplete": _GONE})
        self._passed.discard((stream, number))
        self._number(stream, number, row[0], row[1], facts, _manifest(entries, rows))
        return True

    def _is_behind(self, stream: str, number: int, name: str) -> bool:
        """Whether the stream logged another artifact of that name before, which gets its version first."""
        rows = self._connection.execute(
            "SELECT number FROM artifacts WHERE stream = ? AND version IS NULL AND role = 'output' AND number < ?"
            " AND name = ?", (stream, number, name),
        )  # fmt: skip
        return any((stream, row[0]) not in self._passed for row in rows)

    def pass_over(self, file: str) -> None:
        """Let later artifacts of the same name have their versions before that of this file."""
        row = self._connection.execute("SELECT stream, artifact FROM files WHERE id = ?", (file,)).fetchone()
        if row is not None and row[1] is not None:
            self._passed.add((row[0], row[1]))
            self._number_from(row[0], row[1])

    def _entries_apart(self, stream: str, number: int, parts: int) -> list[dict[str, Any]]:
        """Entries of an artifact that has so many that they stand in so many records of their own."""
        rows = self._connection.execute(
            "SELECT facts FROM artifacts WHERE stream = ? AND role = 'part' ORDER BY number", (stream,)
        ).fetchall()
        found = [facts for facts in (_unpacked(row[0]) for row in rows) if facts.get("of") == number]
        lost = [{"path": "(references)", "incomplete": _GONE}] if len(found) < parts else []
        return [entry for part in found for entry in part.get("entries") or ()] + lost

    def _number(
        self, stream: str, number: int, time_ns: int, name: str, facts: dict[str, Any], manifest: list[dict[str, Any]]
    ) -> None:
        """Give an artifact the version of its content. One that is incomplete is a version of its own, equal to no
        other: it takes no alias, and the place of none."""
        do = self._connection.execute
        missing = missing_in(manifest)
        digest = manifest_digest(manifest, f"{stream}/{number}" if missing else "")
        highest, known = do("SELECT max(version), max(CASE WHEN digest = ? THEN version END) FROM versions"
                            " WHERE name = ?", (digest, name)).fetchone()  # fmt: skip
        has_later = do("SELECT 1 FROM artifacts WHERE stream = ? AND name = ? AND role = 'output' AND number > ?"
                       " AND version IS NOT NULL", (stream, name, number)).fetchone()  # fmt: skip
        overwrite = bool(facts.get("overwrite")) and not missing and not has_later
        version = known
        if version is None or overwrite:
            version = 0 if highest is None else highest + 1
            told = {"description": facts.get("description"), "metadata": facts.get("metadata") or {}}
            about = msgpack.packb(told | ({"incomplete": missing[:_MAX_MISSING]} if missing else {}))
            do("INSERT INTO versions (name, version, created_ns, type, digest, size, facts, manifest)"
               " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
               (name, version, time_ns, str(facts.get("type")), digest, sum(int(e.get("size") or 0) for e in manifest),
                about, msgpack.packb(manifest)))  # fmt: skip
            if overwrite:
                do("DELETE FROM versions WHERE name = ? AND version <> ?", (name, version))
                do("DELETE FROM aliases WHERE name = ?", (name,))
        aliases = [*(facts.get("aliases") or ()), *(["latest"] if version != known else [])]
        for alias in () if missing else map(str, aliases):
            later = do("SELECT 1 FROM aliases a JOIN artifacts l ON l.name = a.name AND l.version = a.version"
                       " WHERE a.name = ? AND a.alias = ? AND l.stream = ? AND l.role = 'output' AND l.number > ?",
                       (name, alias, stream, number)).fetchone()  # fmt: skip
            if later is None:  # forward only: content that was there before takes no alias back
                do("INSERT INTO aliases (name, alias, version) VALUES (?, ?, ?)"
                   " ON CONFLICT DO UPDATE SET version = max(version, excluded.version)",
                   (name, alias, version))  # fmt: skip
        do("UPDATE artifacts SET version = ? WHERE stream = ? AND number = ?", (version, stream, number))


def _manifest(entries: list[dict[str, Any]], rows: list[Any]) -> list[dict[str, Any]]:
    """A map for each file and reference, in the order of paths."""
    found = [dict(entry) for entry in entries]
    for packed, state, digest, size, suffix, cause in rows:
        entry = {"path": str(_unpacked(packed).get("path")), "digest": digest, "size": size}
        found.append(
            entry | ({"suffix": suffix} if suffix else {}) | ({} if state == "kept" else {"incomplete": cause})
        )
    return sorted(found, key=lambda entry: str(entry.get("path")))


def manifest_digest(manifest: list[dict[str, Any]], apart: str = "") -> str:
    """SHA-256 over paths and digests: equal for equal content. `apart` keeps it from being equal to any other."""
    lines = [f"{entry.get('path')}\0{entry.get('digest')}\n" for entry in manifest]
    return hashlib.sha256("".join([*lines, *([f"\0{apart}"] if apart else [])]).encode()).hexdigest()


def _unpacked(packed: bytes) -> dict[str, Any]:
    facts: dict[str, Any] = msgpack.unpackb(packed, strict_map_key=False)
    return facts


def _number_in(facts: dict[str, Any], name: str = "artifact") -> int | None:
    number = facts.get(name)
    return number if type(number) is int and 0 <= number < 1 << 63 else None
