"""`trackio list alerts`, `trackio get alerts`: the same, as upstream has both."""

from __future__ import annotations

import click

from trackiod import catalog
from trackiod.alert_list import chosen

from .output import print_json, say, table, where


@click.command("alerts")
@click.option("--project", required=True)
@click.option("--run", help="A run's id, or its name: the newest run of that name.")
@click.option("--level", type=click.Choice(["info", "warn", "error"]), help="Only of this level.")
@click.option("--since", help="Only after this ISO 8601 time; UTC if it names no zone.")
@click.option("--json", "as_json", is_flag=True, help="Valid JSON instead of text.")
def alerts(project: str, run: str | None, level: str | None, since: str | None, as_json: bool) -> None:
    """The alerts of a project or run, the newest first."""
    projects = where().projects
    with catalog.open_project(projects, project) as reader:
        found = chosen(projects, reader, run, level, since)
    if as_json:
        print_json({"project": project, "run": run, "level": level, "since": since, "alerts": found})
    elif not found:
        say("No alerts found.")
    else:
        names = ("timestamp", "run", "level", "title", "text", "step", "webhook")
        say(table([name.upper() for name in names], [[alert[name] for name in names] for alert in found]))
