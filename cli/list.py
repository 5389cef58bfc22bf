"""`trackio list projects|runs|metrics`."""

from __future__ import annotations

import click

from trackiod import answers
from trackiod.store.reader import project_names

from .output import print_json, say, where


@click.group("list")
def list_() -> None:
    """List projects, runs or metrics."""


@list_.command("projects")
@click.option("--json", "as_json", is_flag=True, help="Valid JSON instead of text.")
def list_projects(as_json: bool) -> None:
    """All projects in the data folder."""
    names, problems = project_names(where().projects)
    for problem in problems:
        say(f"Warning: {problem}", err=True)
    if as_json:
        print_json({"projects": names})
    elif not names:
        say("No projects found.")
    else:
        say("\n".join(["Projects:", *(f"  - {name}" for name in names)]))


@list_.command("runs")
@click.option("--project", required=True)
@click.option("--json", "as_json", is_flag=True, help="Valid JSON instead of text.")
def list_runs(project: str, as_json: bool) -> None:
    """A project's runs, oldest first."""
    with answers.open_project(where().projects, project) as reader:
        views = answers.runs(reader)
        facts = [{"id": view.id, "name": view.name, "state": view.state.state} for view in views]
    if as_json:
        print_json({"project": project, "runs": [f["name"] for f in facts], "details": facts})
    elif not facts:
        say("No runs found.")
    else:
        say("\n".join([f"Runs in '{project}':", *(f"  - {f['name']}  ({f['id']}, {f['state']})" for f in facts)]))


@list_.command("metrics")
@click.option("--project", required=True)
@click.option("--run", required=True, help="A run's id, or its name: the newest run of that name.")
@click.option("--json", "as_json", is_flag=True, help="Valid JSON instead of text.")
def list_metrics(project: str, run: str, as_json: bool) -> None:
    """The metrics a run has logged."""
    with answers.open_project(where().projects, project) as reader:
        view = answers.find_run(reader, run)
        names = view.metric_names
    if as_json:
        print_json({"project": project, "run": view.name, "run_id": view.id, "metrics": names})
    elif not names:
        say("No metrics found.")
    else:
        say("\n".join([f"Metrics for '{view.name}' in '{project}':", *(f"  - {name}" for name in names)]))
