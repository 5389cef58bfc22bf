"""`trackio get project|run|metric|snapshot`."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import click

from trackiod import answers
from trackiod.answers import RunView
from trackiod.errors import TrackiodError
from trackiod.views.reduction import Shown

from .output import print_json, say, table, timestamp, where

_AS_JSON = click.option("--json", "as_json", is_flag=True, help="Valid JSON instead of text.")
_RUN = click.option("--run", required=True, help="A run's id, or its name: the newest run of that name.")
_RANK = click.option("--rank", type=int, help="One rank instead of all ranks reduced.")
_ATTEMPT = click.option("--attempt", type=int, help="What one attempt logged, hidden or not.")
_ALL = click.option("--all", "all_points", is_flag=True, help="Every stored point of every rank and attempt.")
_DEFAULT_WINDOW = 10


def _window_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option("--window", type=click.IntRange(min=0), default=_DEFAULT_WINDOW, show_default=True,
                     help="Steps around --around, seconds around --at-time."),
        click.option("--at-time", help="An ISO 8601 time; UTC if it names no zone."),
        click.option("--around", type=int, help="A step and its surroundings."),
        click.option("--step", type=int, help="One step."),
    ):  # fmt: skip
        command = option(command)
    return command


@click.group()
def get() -> None:
    """Show one project, run, metric or moment."""


@get.command("project")
@click.option("--project", required=True)
@_AS_JSON
def get_project(project: str, as_json: bool) -> None:
    """A project and its runs."""
    with answers.open_project(where().projects, project) as reader:
        views = answers.runs(reader)
        facts: dict[str, Any] = {
            "project": project,
            "num_runs": len(views),
            "runs": [
                {"id": v.id, "name": v.name, "created_at": timestamp(v.created_ns), "state": v.state.state}
                for v in views
            ],
            "last_activity": max((v.steps.highest for v in views if v.steps.highest is not None), default=None),
        }
    if as_json:
        print_json(facts)
        return
    say(f"Project: {project}\nNumber of runs: {len(views)}\n")
    if not views:
        say("No runs found.")
        return
    rows = [[r["name"], r["id"], r["state"], r["created_at"]] for r in facts["runs"]]
    say(table(["RUN", "ID", "STATE", "CREATED"], rows))
    if facts["last_activity"]:
        say(f"\nLast activity (max step): {facts['last_activity']}")


@get.command("run")
@click.option("--project", required=True)
@_RUN
@click.option("--rank", type=int, help="This rank's configuration instead of the lowest one's.")
@_AS_JSON
def get_run(project: str, run: str, rank: int | None, as_json: bool) -> None:
    """A run: state, ranks, steps, metrics and configuration."""
    with answers.open_project(where().projects, project) as reader:
        facts = run_facts(project, answers.find_run(reader, run), rank)
    if as_json:
        print_json(facts)
        return
    say(f"Project: {project}\nRun: {facts['run']}\nId: {facts['run_id']}")
    cause = f" ({facts['cause']})" if facts["cause"] else ""
    say(f"State: {facts['state']}{cause}")
    say(f"Ranks: {facts['logging']} logging of {facts['world_size']}")
    say(f"Attempts: {facts['attempts']}")
    say(f"Number of logs: {facts['num_logs']}")
    say(f"Last step: {_or_dash(facts['last_step'])} (highest {_or_dash(facts['highest_step'])})")
    say(f"Points: {facts['points']}, of these {facts['hidden_points']} hidden by later ones")
    if facts["refused_points"] or facts["holes"]:
        say(f"Lost: {facts['refused_points']} points refused, {len(facts['holes'])} holes")
    say("\n".join(["", "Metrics:", *(f"  - {name}" for name in facts["metrics"]), "", "Config:"]))
    lines = [f"  {key}: {value}" for key, value in facts["config"].items()] or ["  (no config)"]
    for key, values in facts["config_differences"].items():
        lines.append(f"  {key} differs: " + ", ".join(f"rank {rank}: {value}" for rank, value in values.items()))
    say("\n".join(lines))


def run_facts(project: str, view: RunView, rank: int | None) -> dict[str, Any]:
    """Everything `get run` says."""
    state, steps = view.state, view.steps
    return {
        "project": project,
        "run": view.name,
        "run_id": view.id,
        "num_logs": view.num_logs,
        "metrics": view.metric_names,
        "config": view.config(rank),
        "last_step": steps.complete,
        "highest_step": steps.highest,
        "state": state.state,
        "cause": state.cause,
        "group": view.group,
        "created_at": timestamp(view.created_ns),
        "ended_at": timestamp(view.ended_ns),
        "attempts": view.attempts,
        "world_size": view.world_size,
        "logging": view.logging,
        "ranks": [
            {
                "rank": s.rank,
                "attempt": view.places[s.id].attempt,
                "role": s.role,
                "twin": view.places[s.id].twin,
                "state": s.state or "running",
                "cause": s.cause,
                "records": s.records,
                "points": s.points,
                "refused_points": s.refused_points,
                "name": s.meta.get("name"),
            }
            for s in sorted(view.streams, key=lambda s: (view.places[s.id].attempt, s.role, s.rank))
        ],
        "records": view.records,
        "points": view.points,
        "hidden_points": view.hidden_points(),
        "refused_records": view.refused_records,
        "refused_points": view.refused_points,
        "holes": [{"stream": h.stream, "bytes": h.end - h.start, "cause": h.cause} for h in view.holes],
        "config_differences": view.config_differences,
    }


@get.command("metric")
@click.option("--project", required=True)
@_RUN
@click.option("--metric", required=True)
@_RANK
@_ATTEMPT
@_ALL
@_window_options
@_AS_JSON
def get_metric(
    project: str,
    run: str,
    metric: str,
    rank: int | None,
    attempt: int | None,
    all_points: bool,
    step: int | None,
    around: int | None,
    at_time: str | None,
    window: int,
    as_json: bool,
) -> None:
    """A metric's values, reduced over the ranks unless told otherwise."""
    within = _window(step, around, at_time, window)
    with answers.open_project(where().projects, project) as reader:
        view = answers.find_run(reader, run)
        series = view.series(metric, rank=rank, attempt=attempt, all_points=all_points)
    values = [p for p in series.points if within(p)]
    if as_json:
        facts: dict[str, Any] = {"project": project, "run": view.name, "run_id": view.id, "metric": metric}
        facts["values"] = [_point(p) for p in values]
        if series.reduce is not None:
            facts |= {"reduce": series.reduce, "ranks": series.ranks}
        facts["hidden"] = series.hidden
        print_json(facts)
        return
    if not values:
        say("No metric values found.")
        return
    how = f", {series.reduce} of {series.ranks} ranks" if series.reduce and series.ranks > 1 else ""
    say(f"Found {len(values)} value(s){how}:\n")
    say(table(["Step", "Timestamp", "Value", ""], [_row(p) for p in values]))


def _point(p: Shown) -> dict[str, Any]:
    facts = {"timestamp": timestamp(p.time_ns), "step": p.step, "value": p.value}
    if p.origin is not None:
        facts |= {"rank": p.origin[0], "attempt": p.origin[1]}
    if p.is_partial:
        facts["ranks"] = f"{p.ranks} of {p.of}"
    if p.nan_rank is not None:
        facts["nan_rank"] = p.nan_rank
    return facts


def _row(p: Shown) -> list[Any]:
    notes = [] if p.origin is None else [f"rank {p.origin[0]}, attempt {p.origin[1]}"]
    notes += [f"{p.ranks} of {p.of} ranks"] if p.is_partial else []
    notes += [f"NaN from rank {p.nan_rank}"] if p.nan_rank is not None else []
    return [p.step, timestamp(p.time_ns), str(p.value), ", ".join(notes)]


@get.command("snapshot")
@click.option("--project", required=True)
@_RUN
@_RANK
@_ATTEMPT
@_ALL
@_window_options
@_AS_JSON
def get_snapshot(
    project: str,
    run: str,
    rank: int | None,
    attempt: int | None,
    all_points: bool,
    step: int | None,
    around: int | None,
    at_time: str | None,
    window: int,
    as_json: bool,
) -> None:
    """All metrics at one step or time."""
    if step is None and around is None and at_time is None:
        raise TrackiodError("Provide --step, --around (with --window), or --at-time (with --window).")
    within = _window(step, around, at_time, window)
    with answers.open_project(where().projects, project) as reader:
        view = answers.find_run(reader, run)
        found = view.snapshot(rank=rank, attempt=attempt, all_points=all_points)
    shown = {name: [p for p in points if within(p)] for name, points in found.items()}
    shown = {name: points for name, points in shown.items() if points}
    if as_json:
        facts: dict[str, Any] = {"project": project, "run": view.name, "run_id": view.id}
        facts["metrics"] = {name: [_point(p) for p in points] for name, points in shown.items()}
        asked = {"step": step, "around": around, "at_time": at_time}
        facts |= {k: v for k, v in asked.items() if v is not None}
        if step is None:
            facts["window"] = window
        print_json(facts)
        return
    if not shown:
        say("No metrics found in the specified range.")
    for name, points in shown.items():
        say(f"\n{name}:\n" + table(["  Step", "Timestamp", "Value", ""], [_row(p) for p in points]))


def _window(step: int | None, around: int | None, at_time: str | None, window: int) -> Callable[[Shown], bool]:
    """Which points were asked for: --step before --around before --at-time."""
    if step is not None:
        return lambda p: p.step == step
    if around is not None:
        return lambda p: abs(p.step - around) <= window
    if at_time is not None:
        try:
            moment = datetime.fromisoformat(at_time)
        except ValueError:
            raise TrackiodError(f"--at-time '{at_time}' is no ISO 8601 time.") from None
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        centre = moment.timestamp()
        return lambda p: abs(p.time_ns / 1e9 - centre) <= window
    return lambda p: True


def _or_dash(value: Any) -> Any:
    return "-" if value is None else value
