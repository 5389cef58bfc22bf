"""Steps from a layout number to the next (decision 15): for what cannot be added beside what is there.

A function brings a database from the number it is registered under to the next one. It runs once, in a transaction that
raises the number too, so whoever is killed leaves the earlier layout, whole. Each is tested from the kept store of the
layout it begins with (`tests/fixtures`), which may or may not have what was added to that layout later.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from trackiod.store.layout import VERSION

Migration = Callable[[sqlite3.Connection], None]

MIGRATIONS: dict[int, Migration] = {}
"""by the number that each begins with; each raises nothing but sqlite3.Error"""


def can_migrate(version: int) -> bool:
    """Whether every step from a layout number to ours is known."""
    return version < VERSION and all(step in MIGRATIONS for step in range(version, VERSION))


def migrate(connection: sqlite3.Connection) -> None:
    """Brings a database to our layout: to the end or not at all. Raises sqlite3.Error."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        for step in range(version, VERSION):
            MIGRATIONS[step](connection)
        connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
