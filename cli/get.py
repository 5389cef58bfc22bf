"""`trackio get project|run|metric|snapshot`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

import click

from trackiod import catalog
from trackiod.errors import TrackiodError
from trackiod.exhibits import Exhibits
from trackiod.moments import moment_of, timestamp
from trackiod.run_facts import run_facts

from .output import Block, in_words, print_json, print_long_json, say, table, warn, where

if TYPE_CHECKING:  # numpy: only where there are points to show
    from trackiod.curves import Series
    from trackiod.views.buckets import Blocks
    from trackiod.views.reduction import Curve, Shown

_AS_JSON = click.option("--json", "as_json", is_flag=True, help="Valid JSON instead of text.")
_RUN = click.option("--run", required=True, help="A run's id, or its name: the newest run of that name.")
_RANK = click.option("--rank", type=int, help="One rank instead of all ranks reduced.")
_ATTEMPT = click.option("--attempt", type=int, help="What one attempt logged, hidden or not.")
_ALL = click.option("--all", "all_points", is_flag=True, help="Every stored point of every rank and attempt.")
_DEFAULT_WINDOW = 10
_MANY_VALUES = 1000
"""more than anybody reads on a terminal"""
_TERMINAL_BUCKETS = 50
_LINES_AT_ONCE = 500
_FAR = (1 << 63) - 1


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
    """A project and its newest thousand runs."""
    with catalog.open_project(where().projects, project) as reader:
        views = catalog.runs(reader)
        facts: dict[str, Any] = {
            "project": project,
            "num_runs": len(views) if len(views) < catalog.PAGE else reader.count_runs(),
            "runs": [
                {"id": v.id, "name": v.name, "created_at": timestamp(v.created_ns), "state": v.state.state}
                for v in views
            ],
            "last_activity": reader.highest_step(),
        }
    if as_json:
        print_json(facts)
        return
    say(f"Project: {project}", f"Number of runs: {facts['num_runs']}", "")
    if not views:
        say("No runs found.")
        return
    rows = [[r["name"], r["id"], r["state"], r["created_at"]] for r in facts["runs"]]
    say(table(["RUN", "ID", "STATE", "CREATED"], rows))
    if facts["last_activity"]:
        say("", f"Last activity (max step): {facts['last_activity']}")


@get.command("run")
@click.option("--project", required=True)
@_RUN
@click.option("--rank", type=int, help="This rank's configuration instead of the lowest one's.")
@_AS_JSON
def get_run(project: str, run: str, rank: int | None, as_json: bool) -> None:
    """A run: state, ranks, steps, metrics with their summary, and configuration."""
    with catalog.open_project(where().projects, project) as reader:
        facts = run_facts(where().projects, project, catalog.find_run(reader, run), rank)
        warn(reader.problems)
    if as_json:
        print_json(facts)
        return
    say(f"Project: {project}", f"Run: {facts['run']}", f"Id: {facts['run_id']}")
    cause = f" ({facts['cause']})" if facts["cause"] else ""
    say(f"State: {facts['state']}{cause}")
    if "owner" in facts:
        say(f"Owner: {facts['owner']}")
    say(f"Ranks: {facts['logging']} logging of {facts['world_size']}")
    say(f"Attempts: {facts['attempts']}")
    say(f"Number of logs: {facts['num_logs']}")
    say(f"Last step: {_or_dash(facts['last_step'])} (highest {_or_dash(facts['highest_step'])})")
    say(f"Points: {facts['points']}, of these {facts['hidden_points']} hidden by later ones")
    if facts["refused_points"] or facts["holes"]:
        say(f"Lost: {facts['refused_points']} points refused, {len(facts['holes'])} holes")
    if facts["energy_joules"] is not None:
        per_step = facts["energy_joules_per_step"]
        say(f"Energy: {facts['energy_joules']:,.0f} J" + (f", {per_step:,.1f} J a step" if per_step else ""))
    say("", "Metrics:", _summary_table(facts["summary"]))
    lines = ["", "Config:", *([f"  {key}: {value}" for key, value in facts["config"].items()] or ["  (no config)"])]
    for key, values in facts["config_differences"].items():
        lines.append(f"  {key} differs: " + ", ".join(f"rank {rank}: {value}" for rank, value in values.items()))
    say(*lines)


def _summary_table(summary: dict[str, dict[str, Any]]) -> Block:
    columns = ["last", "min", "max", "mean"] + [c for c in ("best", "set") if any(c in s for s in summary.values())]
    rows = [[name, *(facts.get(column) for column in columns)] for name, facts in summary.items()]
    lines = table(["METRIC", *(column.upper() for column in columns)], rows).splitlines()
    return Block("\n".join(f"  {line}" for line in lines))


@get.command("metric")
@click.option("--project", required=True)
@_RUN
@click.option("--metric", required=True)
@_RANK
@_ATTEMPT
@_ALL
@_window_options
@click.option("--buckets", type=click.IntRange(min=1), help="At most so many stretches: min, mean and max of each.")
@click.option("--raw", is_flag=True, help=f"On a terminal too, every value of more than {_MANY_VALUES:,}.")
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
    buckets: int | None,
    raw: bool,
    as_json: bool,
) -> None:
    """A metric's values, reduced over the ranks unless told otherwise."""
    from trackiod import curves

    choice = curves.Choice(rank, attempt, all_points)
    within = _window(step, around, at_time, window)
    if buckets is not None and (all_points or within):
        raise TrackiodError("--buckets sums up a whole series: leave out --all, --step, --around and --at-time.")
    with catalog.open_project(where().projects, project) as reader:
        view = catalog.find_run(reader, run)
        facts = {"project": project, "run": view.name, "run_id": view.id, "metric": metric}
        rows = view.series_of.get(metric, [])
        are_numbers = all(row.numbers + row.nans == row.points for row in rows)
        if buckets is not None and rows and not are_numbers:
            raise TrackiodError(f"--buckets sums up numbers, and not all values of '{metric}' are.")
        is_long = max((row.points for row in rows), default=0) > _MANY_VALUES
        is_unread = is_long and are_numbers and sys.stdout.isatty() and not (raw or as_json or within or all_points)
        if buckets is not None or is_unread:
            found = curves.bucketed(view, metric, buckets or _TERMINAL_BUCKETS, choice)
        else:
            series = curves.series(view, metric, choice)
        warn(reader.problems)
        if buckets is not None or is_unread:
            _show_buckets(facts, found, as_json=as_json, is_unasked=buckets is None)
        else:
            chosen = series._replace(curve=within(series.curve)) if within else series
            _show_series(facts, chosen, Exhibits(reader, whole=as_json), as_json=as_json)


def _show_series(facts: dict[str, Any], series: Series, exhibits: Exhibits, *, as_json: bool) -> None:
    curve = series.curve
    if as_json:
        reduced = {} if series.reduce is None else {"reduce": series.reduce, "ranks": series.ranks}
        print_long_json(
            facts | reduced | {"hidden": series.hidden}, "values", (_point(p, exhibits) for p in curve.points())
        )
    elif not curve.size:
        say("No metric values found.")
    else:
        how = f", {series.reduce} of {series.ranks} ranks" if series.reduce and series.ranks > 1 else ""
        say(f"Found {curve.size} value(s){how}:", "")
        lines = _lines(curve, exhibits)
        while some := list(islice(lines, _LINES_AT_ONCE)):
            say(*some)


def _show_buckets(facts: dict[str, Any], blocks: Blocks, *, as_json: bool, is_unasked: bool) -> None:
    names = ("step", "last_step", "timestamp", "points", "nans", "min", "mean", "max")
    arrays = (blocks.first_steps, blocks.last_steps, blocks.first_ns, blocks.counts, blocks.nans,
              blocks.lows, blocks.means, blocks.highs)  # fmt: skip
    rows = [[timestamp(v) if name == "timestamp" else v for name, v in zip(names, row, strict=True)]
            for row in zip(*(array.tolist() for array in arrays), strict=True)]  # fmt: skip
    if as_json:
        print_json(facts | {"buckets": [dict(zip(names, row, strict=True)) for row in rows]})
        return
    if is_unasked:
        total = int(blocks.counts.sum())
        say(f"{total:,} values, in {len(rows)} stretches. Each of them: --raw, or a pipe.", "")
    say(table([name.replace("_", " ").upper() for name in names], rows))


def _point(p: Shown, exhibits: Exhibits) -> dict[str, Any]:
    facts = {"timestamp": timestamp(p.time_ns), "step": p.step, "value": exhibits.shown(p.value)}
    if p.origin is not None:
        facts |= {"rank": p.origin[0], "attempt": p.origin[1]}
    if p.is_partial:
        facts["ranks"] = f"{p.ranks} of {p.of}"
    if p.nan_rank is not None:
        facts["nan_rank"] = p.nan_rank
    return facts


def _lines(curve: Curve, exhibits: Exhibits) -> Iterator[str]:
    """A table's lines, as they are made: a long series does not wait for its last value."""
    width = max(len("Step"), len(str(int(curve.steps.min()))), len(str(int(curve.steps.max()))))
    yield f"{'Step':>{width}}  {'Timestamp':<32}  Value"
    for p in curve.points():
        notes = [] if p.origin is None else [f"rank {p.origin[0]}, attempt {p.origin[1]}"]
        notes += [f"{p.ranks} of {p.of} ranks"] if p.is_partial else []
        notes += [f"NaN from rank {p.nan_rank}"] if p.nan_rank is not None else []
        yield f"{p.step:>{width}}  {timestamp(p.time_ns):<32}  {in_words(exhibits.shown(p.value))}" + (
            f"  ({', '.join(notes)})" if notes else ""
        )


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
    from trackiod import curves

    within = _window(step, around, at_time, window)
    if within is None:
        raise TrackiodError("Provide --step, --around (with --window), or --at-time (with --window).")
    with catalog.open_project(where().projects, project) as reader:
        view = catalog.find_run(reader, run)
        found = curves.snapshot(view, curves.Choice(rank, attempt, all_points))
        warn(reader.problems)
        exhibits = Exhibits(reader, whole=as_json)
        chosen = {name: within(curve) for name, curve in found.items()}
        shown = {name: curve for name, curve in chosen.items() if curve.size}
        if as_json:
            facts: dict[str, Any] = {"project": project, "run": view.name, "run_id": view.id}
            facts["metrics"] = {name: [_point(p, exhibits) for p in curve.points()] for name, curve in shown.items()}
            asked = {"step": step, "around": around, "at_time": at_time}
            facts |= {k: v for k, v in asked.items() if v is not None}
            if step is None:
                facts["window"] = window
            print_json(facts)
            return
        if not shown:
            say("No metrics found in the specified range.")
        for name, curve in shown.items():
            say("", f"{name}:", *(f"  {line}" for line in _lines(curve, exhibits)))


def _window(step: int | None, around: int | None, at_time: str | None, window: int) -> Callable[[Curve], Curve] | None:
    """Which points were asked for: --step before --around before --at-time; None for all."""
    if step is not None:
        return lambda curve: curve.take(curve.steps == step)
    if around is not None:
        low, high = (max(-_FAR, min(_FAR, around + reach)) for reach in (-window, window))
        return lambda curve: curve.take((curve.steps >= low) & (curve.steps <= high))
    if at_time is not None:
        seconds = moment_of(at_time, "--at-time").timestamp()
        low, high = (max(-_FAR, min(_FAR, int((seconds + reach) * 1e9))) for reach in (-window, window))
        return lambda curve: curve.take((curve.times_ns >= low) & (curve.times_ns <= high))
    return None


def _or_dash(value: Any) -> Any:
    return "-" if value is None else value
