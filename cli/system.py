"""`trackio list system-metrics`, `trackio get system-metric`: what log_system() was given."""

from __future__ import annotations

import click

from trackiod import catalog
from trackiod.errors import NotFound

from .output import print_json, say, timestamp, where

_RUN = click.option("--run", required=True, help="A run's id, or its name: the newest run of that name.")
_AS_JSON = click.option("--json", "as_json", is_flag=True, help="Valid JSON instead of text.")


@click.command("system-metrics")
@click.option("--project", required=True)
@_RUN
@_AS_JSON
def list_system_metrics(project: str, run: str, as_json: bool) -> None:
    """The metrics that a run gave to log_system()."""
    with catalog.open_project(where().projects, project) as reader:
        view = catalog.find_run(reader, run)
        names = sorted({name for _, _, metrics in reader.system(view.run_ids) for name in metrics})
    if as_json:
        print_json({"project": project, "run": view.name, "run_id": view.id, "system_metrics": names})
    else:
        say("\n".join([f"System metrics for '{view.name}' in '{project}':", *(f"  - {name}" for name in names)])
            if names else "No system metrics found.")  # fmt: skip


@click.command("system-metric")
@click.option("--project", required=True)
@_RUN
@click.option("--metric", help="Only this one.")
@_AS_JSON
def get_system_metric(project: str, run: str, metric: str | None, as_json: bool) -> None:
    """What a run gave to log_system(), by time."""
    with catalog.open_project(where().projects, project) as reader:
        view = catalog.find_run(reader, run)
        rows = reader.system(view.run_ids)
    if metric is not None and not any(metric in metrics for _, _, metrics in rows):
        known = {name for _, _, metrics in rows for name in metrics}
        raise NotFound("System metric", metric, f" in run '{view.name}' of project '{project}'", known)
    values = [
        {**(metrics if metric is None else {metric: metrics[metric]}), "timestamp": timestamp(time_ns), "rank": rank}
        for time_ns, rank, metrics in rows
        if metric is None or metric in metrics
    ]
    if as_json:
        named = {} if metric is None else {"metric": metric}
        kind = "system_metrics" if metric is None else "values"
        print_json({"project": project, "run": view.name, "run_id": view.id, **named, kind: values})
        return
    if not values:
        say("No system metrics found.")
    for value in values:
        words = ", ".join(f"{name} {v}" for name, v in value.items() if name not in ("timestamp", "rank"))
        say(f"{value['timestamp']}  rank {value['rank']}  {words}")
