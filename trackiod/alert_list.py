"""The alerts that somebody asks for, in upstream's words."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from typing import Any

from trackio.names import HOST
from trackiod import catalog
from trackiod.moments import moment_of, timestamp
from trackiod.store import schema
from trackiod.store.reader import ProjectReader
from trackiod.store.shelf_reader import AlertRow


def chosen(
    projects: str, reader: ProjectReader, run: str | None, level: str | None, since: str | None
) -> list[dict[str, Any]]:
    """The alerts that were asked for, and those of the node (whose run is None) that came while these runs ran on it.
    Raises NotFound, or TrackiodError for what is no time."""
    runs = None if run is None else catalog.find_run(reader, run).run_ids
    of_node = [
        row._replace(run=None, run_id=None)
        for row in _of_node(projects)
        if row.machine in reader.machines_at(row.time_ns, runs)
    ]
    rows = sorted([*reader.alerts(runs), *of_node], key=lambda row: row.time_ns, reverse=True)
    after = -1 if since is None else _us(since)
    return [
        {"timestamp": timestamp(row.time_ns), "run": row.run, "run_id": row.run_id, "title": row.title,
         "text": row.text, "level": row.level, "step": row.step, "webhook": row.sent}
        for row in rows if row.time_ns // 1000 > after and level in (None, row.level)
    ]  # fmt: skip


def _of_node(projects: str) -> list[AlertRow]:
    path = schema.readable_path(projects, HOST)
    if not os.path.exists(path):
        return []
    with ProjectReader(path) as node:
        return node.alerts()


def _us(since: str) -> int:
    """Microseconds, as timestamps are shown."""
    return (moment_of(since, "--since") - datetime.fromtimestamp(0, UTC)) // timedelta(microseconds=1)
