"""The versions of a project's artifacts, which are no run's, in a part of their own; and put together again (`parts`).

There each host's are kept by the copy they came with, in tables that only such databases have, and the tables of the
layout are made of all of them.
"""

from __future__ import annotations

import hashlib
import sqlite3
from contextlib import closing

import msgpack

from trackiod.store import additions, parts
from trackiod.store.parts import FULL_LABEL
from trackiod.views.versions import is_kept

_KEY = "artifacts "
_TABLES = ("versions", "aliases")


def token(source: sqlite3.Connection) -> str:
    """What changes whenever a version or an alias does; empty if there is none."""
    digest = hashlib.sha256()
    is_empty = True
    for sql in ("SELECT name, version, digest FROM versions", "SELECT name, alias, version FROM aliases"):
        for row in source.execute(sql):
            digest.update(repr(row).encode())
            is_empty = False
    digest.update(additions.known().encode())
    return "" if is_empty else digest.hexdigest()[:32]


def write(source: sqlite3.Connection, path: str) -> None:
    """Writes all versions and aliases into a new file. Raises sqlite3.Error or OSError."""
    with parts.new_part(path, source) as target:
        for table in _TABLES:
            of_version = "JOIN versions v ON v.name = t.name AND v.version = t.version"
            columns = additions.names(table)
            values = ", ".join(FULL_LABEL if name == "version" else f't."{name}"' for name in columns)
            rows = source.execute(f"SELECT {values} FROM {table} t {of_version}")
            target.executemany(parts.insertion(table), rows)


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
    for table in _TABLES:
        none = f"SELECT '' AS copy, {additions.listed(additions.names(table))} FROM {table} WHERE 0"
        target.execute(f"CREATE TABLE IF NOT EXISTS copied_{table} AS {none}")
        target.execute(f"DELETE FROM copied_{table} WHERE copy = ?", (copy,))
    target.execute("DELETE FROM meta WHERE key = ?", (_KEY + copy,))
    found: list[tuple[str, str]] = []
    if name:
        with closing(parts.opened(path)) as part:
            for table in _TABLES:
                rows = ((copy, *row) for row in parts.read(part, table))
                columns = additions.names(table)
                target.executemany(
                    f"INSERT INTO copied_{table} (copy, {additions.listed(columns)}) VALUES (?{', ?' * len(columns)})",
                    rows,
                )
            found = [(digest, suffix) for digest, suffix, _ in files(part)]
        target.execute("INSERT INTO meta (key, value) VALUES (?, ?)", (_KEY + copy, name))
    _put_together(target)
    return found


def copies(target: sqlite3.Connection) -> set[str]:
    """Those of which versions are held."""
    rows = target.execute("SELECT key FROM meta WHERE key GLOB ?", (f"{_KEY}*",))
    return {str(row[0]).removeprefix(_KEY) for row in rows}


def _put_together(target: sqlite3.Connection) -> None:
    """An alias that several gave is that of what was logged last."""
    versions, aliases = (additions.listed(additions.names(table)) for table in _TABLES)
    target.execute("DELETE FROM versions")
    target.execute(
        f"INSERT OR IGNORE INTO versions ({versions}) SELECT {versions} FROM copied_versions ORDER BY created_ns"
    )
    target.execute("DELETE FROM aliases")
    of_alias = ", ".join(f'a."{name}"' for name in additions.names("aliases"))
    target.execute(
        f"INSERT INTO aliases ({aliases}) SELECT {aliases} FROM (SELECT {of_alias}, max(v.created_ns)"
        " FROM copied_aliases a JOIN copied_versions v USING (copy, name, version) GROUP BY a.name, a.alias)"
    )
