"""Which run a process goes on with, and from which step: of this host's, and of those that others have copied."""

from __future__ import annotations

import logging
import os
import sqlite3
from contextlib import closing

from trackiod.errors import StoreError
from trackiod.store import schema
from trackiod.store.project import ProjectStore
from trackiod.views.lineage import RunRow, roots

log = logging.getLogger("trackiod.finding")


def find_run(store: ProjectStore, wanted: str, attempt: str = "") -> tuple[str, int]:
    """The run of that id, else the newest of that name, and its highest step, that of one attempt apart; ("", -1) if
    there is none."""
    run, step = _find(store.connection, wanted, attempt)
    if not os.path.exists(schema.others_path(store.path)):
        return run, step
    try:
        with closing(schema.open_for_reading(store.path)) as all_hosts:
            other, highest = _find(all_hosts, wanted, attempt)
    except (StoreError, sqlite3.Error) as error:
        log.warning("what other hosts know of run %r cannot be read: %s", wanted, error)
        return run, step
    if other and other != run:
        return other, highest  # a newer run of that name, on another host
    return run, max(step, highest)


def _find(connection: sqlite3.Connection, wanted: str, attempt: str) -> tuple[str, int]:
    named = connection.execute("SELECT name FROM runs WHERE id = ?", (wanted,)).fetchone()
    rows = connection.execute(
        "SELECT id, name, run_group, created_ns, resumes FROM runs WHERE name = ? ORDER BY created_ns, id",
        (named[0] if named else wanted,),
    ).fetchall()
    if not rows:
        return "", -1
    root_of = roots(map(RunRow._make, rows))
    root = root_of[wanted if named else rows[-1][0]]
    members = [run for run, its_root in root_of.items() if its_root == root]
    highest = (
        "SELECT max(m.max_step) FROM streams s JOIN series m ON m.stream = s.id WHERE s.run = ? AND s.attempt <> ?"
    )
    steps = [connection.execute(highest, (member, attempt)).fetchone()[0] for member in members]
    return root, max((int(step) for step in steps if step is not None), default=-1)
