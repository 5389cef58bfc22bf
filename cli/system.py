"""`trackio list system-metrics`, `trackio get system-metric`: what is known of the machine while a run ran."""

from __future__ import annotations

import click

from trackiod import catalog
from trackiod.errors import NotFound
from trackiod.moments import timestamp
from trackiod.node import SystemView

from .output import cell, print_json, print_long_json, say, where

_RUN = click.option("--run", required=True, help="A run's id, or its name: the newest run of that name.")
_AS_JSON = click.option("--json", "as_json", is_flag=True, help="Valid JSON instead of text.")


@click.command("system-metrics")
@click.option("--project", required=True)
@_RUN
@_AS_JSON
def list_system_metrics(project: str, run: str, as_json: bool) -> None:
    """The metrics of GPUs and host that concern a run, and those it gave to log_system()."""
    projects = where().projects
    with catalog.open_project(projects, project) as reader:
        view = catalog.find_run(reader, run)
        with SystemView(projects, view) as system:
            names = system.names
    if as_json:
        print_json({"project": project, "run": view.name, "run_id": view.id, "system_metrics": names})
    else:
        head = f"System metrics for '{view.name}' in '{project}':" if names else "No system metrics found."
        say(head, *(f"  - {name}" for name in names))


@click.command("system-metric")
@click.option("--project", required=True)
@_RUN
@click.option("--metric", help="Only this one.")
@_AS_JSON
def get_system_metric(project: str, run: str, metric: str | None, as_json: bool) -> None:
    """The metrics of GPUs and host that concern a run, by time; `rank` says whose process, if one's."""
    projects = where().projects
    with catalog.open_project(projects, project) as reader:
        view = catalog.find_run(reader, run)
        with SystemView(projects, view) as system:
            if metric is not None and metric not in (known := system.names):
                raise NotFound("System metric", metric, f" in run '{view.name}' of project '{project}'", known)
            rows = system.rows(metric)
    if as_json:
        named = {} if metric is None else {"metric": metric}
        kind = "system_metrics" if metric is None else "values"
        values = ({**row.metrics, "timestamp": timestamp(row.time_ns), "rank": row.rank} for row in rows)
        print_long_json({"project": project, "run": view.name, "run_id": view.id, **named}, kind, values)
        return
    if not rows:
        say("No system metrics found.")
    for row in rows:
        words = ", ".join(f"{name} {cell(value)}" for name, value in row.metrics.items())
        say(f"{timestamp(row.time_ns)}  {'node' if row.rank is None else f'rank {row.rank}'}  {words}")
