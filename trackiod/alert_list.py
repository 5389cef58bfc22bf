"""The alerts that somebody asks for, in upstream's words."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from trackiod import catalog
from trackiod.errors import TrackiodError
from trackiod.moments import timestamp
from trackiod.store.reader import ProjectReader


def chosen(reader: ProjectReader, run: str | None, level: str | None, since: str | None) -> list[dict[str, Any]]:
    """The alerts that were asked for. Raises NotFound, or TrackiodError for what is no time."""
    rows = reader.alerts(None if run is None else catalog.find_run(reader, run).run_ids)
    after = -1 if since is None else _us(since)
    return [
        {"timestamp": timestamp(row.time_ns), "run": row.run, "run_id": row.run_id, "title": row.title,
         "text": row.text, "level": row.level, "step": row.step, "webhook": row.sent}
        for row in rows if row.time_ns // 1000 > after and level in (None, row.level)
    ]  # fmt: skip


def _us(since: str) -> int:
    """Microseconds, as timestamps are shown."""
    try:
        moment = datetime.fromisoformat(since)
    except ValueError:
        raise TrackiodError(f"--since '{since}' is no ISO 8601 time.") from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (moment - datetime.fromtimestamp(0, UTC)) // timedelta(microseconds=1)
