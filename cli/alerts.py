"""`trackio list alerts`, `trackio get alerts`: the same, as upstream has both."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import click

from trackiod import catalog
from trackiod.errors import TrackiodError
from trackiod.store.reader import ProjectReader

from .output import print_json, say, table, timestamp, where


@click.command("alerts")
@click.option("--project", required=True)
@click.option("--run", help="A run's id, or its name: the newest run of that name.")
@click.option("--level", type=click.Choice(["info", "warn", "error"]), help="Only of this level.")
@click.option("--since", help="Only after this ISO 8601 time; UTC if it names no zone.")
@click.option("--json", "as_json", is_flag=True, help="Valid JSON instead of text.")
def alerts(project: str, run: str | None, level: str | None, since: str | None, as_json: bool) -> None:
    """The alerts of a project or run, the newest first."""
    with catalog.open_project(where().projects, project) as reader:
        found = chosen(reader, run, level, since)
    if as_json:
        print_json({"project": project, "run": run, "level": level, "since": since, "alerts": found})
    elif not found:
        say("No alerts found.")
    else:
        names = ("timestamp", "run", "level", "title", "text", "step", "webhook")
        say(table([name.upper() for name in names], [[alert[name] for name in names] for alert in found]))


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
