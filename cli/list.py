"""`trackio list projects|runs|metrics`."""

from __future__ import annotations

import click

from trackiod import catalog
from trackiod.store import schema
from trackiod.store.reader import project_names

from .output import print_json, say, warn, where


@click.group("list")
def list_() -> None:
    """List projects, runs or metrics."""


@list_.command("projects")
@click.option("--json", "as_json", is_flag=True, help="Valid JSON instead of text.")
def list_projects(as_json: bool) -> None:
    """All projects in the data folder."""
    names, problems = project_names(where().projects)
    warn(problems)
    if as_json:
        print_json({"projects": names})
    elif not names:
        say("No projects found.")
    else:
        say("Projects:", *(f"  - {name}" for name in names))


@list_.command("runs")
@click.option("--project", required=True)
@click.option("--limit", type=click.IntRange(min=1), default=catalog.PAGE, show_default=True, help="At most so many.")
@click.option("--before", metavar="RUN_ID", help="Those older than this run: the page before.")
@click.option("--json", "as_json", is_flag=True, help="Valid JSON instead of text.")
def list_runs(project: str, limit: int, before: str | None, as_json: bool) -> None:
    """A project's newest runs, oldest first."""
    with catalog.open_project(where().projects, project) as reader:
        warn(schema.asides(reader.path))
        views = catalog.runs(reader, limit + 1, before)
        has_more = len(views) > limit
        facts = [
            {"id": view.id, "name": view.name, "state": view.state.state}
            | ({"owner": owner} if (owner := view.owner) else {})
            for view in views[-limit:]
        ]
    if as_json:
        names = [f["name"] for f in facts]
        print_json(
            {"project": project, "runs": names, "details": facts, "before": facts[0]["id"] if has_more else None}
        )
    elif not facts:
        say("No runs found.")
    else:
        lines = (f"  - {f['name']}  ({f['id']}, {f['state']}{_whose(f)})" for f in facts)
        say(f"Runs in '{project}':", *lines)
        if has_more:
            say("", f"There are older ones: --before {facts[0]['id']}")


def _whose(run: dict[str, str]) -> str:
    return f", of {run['owner']}" if "owner" in run else ""


@list_.command("metrics")
@click.option("--project", required=True)
@click.option("--run", required=True, help="A run's id, or its name: the newest run of that name.")
@click.option("--json", "as_json", is_flag=True, help="Valid JSON instead of text.")
def list_metrics(project: str, run: str, as_json: bool) -> None:
    """The metrics a run has logged."""
    with catalog.open_project(where().projects, project) as reader:
        view = catalog.find_run(reader, run)
        names = view.metric_names
    if as_json:
        print_json({"project": project, "run": view.name, "run_id": view.id, "metrics": names})
    elif not names:
        say("No metrics found.")
    else:
        say(f"Metrics for '{view.name}' in '{project}':", *(f"  - {name}" for name in names))
