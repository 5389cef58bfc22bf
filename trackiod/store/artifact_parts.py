"""The versions of a project's artifacts, which are no run's, in a part of their own; and put together again (`parts`).

There each host's are kept by the copy they came with, in tables that only such databases have, and the tables of the
layout are made of all of them.
"""

from __future__ import annotations

import hashlib
import sqlite3
from contextlib import closing

import msgpack

from trackiod.store import parts
from trackiod.store.parts import FULL_LABEL
from trackiod.views.versions import is_kept

_KEY = "artifacts "
_TABLES = """
CREATE TABLE IF NOT EXISTS copied_versions AS SELECT '' AS copy, * FROM versions WHERE 0;
CREATE TABLE IF NOT EXISTS copied_aliases AS SELECT '' AS copy, * FROM aliases WHERE 0;
"""


def token(source: sqlite3.Connection) -> str:
    """What changes whenever a version or an alias does; empty if there is none."""
    digest = hashlib.sha256()
    is_empty = True
    for sql in ("SELECT name, version, digest FROM versions", "SELECT name, alias, version FROM aliases"):
        for row in source.execute(sql):
            digest.update(repr(row).encode())
            is_empty = False
    return "" if is_empty else digest.hexdigest()[:32]


def write(source: sqlite3.Connection, path: str) -> None:
    """Writes all versions and aliases into a new file. Raises sqlite3.Error or OSError."""
    with parts.new_part(path, source) as target:
        versions = source.execute(
            f"SELECT name, {FULL_LABEL}, created_ns, type, digest, size, facts, manifest FROM versions v"
        )
        target.executemany("INSERT INTO versions VALUES (?, ?, ?, ?, ?, ?, ?, ?)", versions)
        aliases = source.execute(f"SELECT name, alias, {FULL_LABEL} FROM aliases JOIN versions v USING (name, version)")
        target.executemany("INSERT INTO aliases VALUES (?, ?, ?)", aliases)


def files(source: sqlite3.Connection) -> list[tuple[str, str, int]]:
    """(digest, suffix, bytes) of every file of every version that is kept."""
    manifests = source.execute("SELECT manifest FROM versions")
    entries = (entry for (packed,) in manifests for entry in msgpack.unpackb(packed, strict_map_key=False))
    return [
        (str(entry["digest"]), str(entry.get("suffix", "")), int(entry["size"])) for entry in entries if is_kept(entry)
    ]


def take(target: sqlite3.Connection, copy: str, name: str, path: str) -> list[tuple[str, str]]:
    """Makes what is held of a copy's versions what its part says, which is called `name` and lies at `path`; none if
    it has no name. Returns (digest, suffix) of the files if that is news."""
    held = target.execute("SELECT value FROM meta WHERE key = ?", (_KEY + copy,)).fetchone()
    if (held[0] if held else "") == name:
        return []
    for sql in filter(None, _TABLES.split("\n")):
        target.execute(sql)
    for table in ("copied_versions", "copied_aliases"):
        target.execute(f"DELETE FROM {table} WHERE copy = ?", (copy,))
    target.execute("DELETE FROM meta WHERE key = ?", (_KEY + copy,))
    found: list[tuple[str, str]] = []
    if name:
        with closing(parts.opened(path)) as part:
            for table, marks in (("versions", ", ?" * 8), ("aliases", ", ?" * 3)):
                rows = ((copy, *row) for row in parts.read(part, f"SELECT * FROM {table}"))
                target.executemany(f"INSERT INTO copied_{table} VALUES (?{marks})", rows)
            found = [(digest, suffix) for digest, suffix, _ in files(part)]
        target.execute("INSERT INTO meta VALUES (?, ?)", (_KEY + copy, name))
    _put_together(target)
    return found


def copies(target: sqlite3.Connection) -> set[str]:
    """Those of which versions are held."""
    rows = target.execute("SELECT key FROM meta WHERE key GLOB ?", (f"{_KEY}*",))
    return {str(row[0]).removeprefix(_KEY) for row in rows}


def _put_together(target: sqlite3.Connection) -> None:
    """An alias that several gave is that of what was logged last."""
    target.execute("DELETE FROM versions")
    target.execute(
        "INSERT OR IGNORE INTO versions SELECT name, version, created_ns, type, digest, size, facts, manifest"
        " FROM copied_versions ORDER BY created_ns"
    )
    target.execute("DELETE FROM aliases")
    target.execute(
        "INSERT INTO aliases SELECT name, alias, version FROM (SELECT name, alias, version, max(created_ns)"
        " FROM copied_aliases JOIN copied_versions USING (copy, name, version) GROUP BY name, alias)"
    )
