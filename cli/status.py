"""`trackio status`: the daemon, and the runs that run or ended lately."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import click

from trackio import launch, wire
from trackio.places import Places
from trackiod import catalog, control, orphans
from trackiod.answers import RunView
from trackiod.errors import StoreError
from trackiod.moments import timestamp
from trackiod.overview import Overview
from trackiod.store.reader import ProjectReader, paths

from .gpu import gpu_table, gpus_now
from .output import cell, duration, print_json, size, table, where
from .sync import text as uploads_text

_RECENT_RUNS = 10
_HEADLINES = 3


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Valid JSON instead of text.")
@click.option("--watch", is_flag=True, help="Show it again every two seconds until Ctrl-C.")
@click.option("--runs", "recent", type=click.IntRange(min=0), default=_RECENT_RUNS, show_default=True,
              help="How many ended runs to show beside the running ones.")  # fmt: skip
def status(as_json: bool, watch: bool, recent: int) -> None:
    """The daemon, and the runs that run or ended lately."""
    while True:
        places = where()
        facts = status_facts(places, recent)
        if as_json:
            print_json(facts)
        else:
            if watch:
                click.clear()
            click.echo(text(facts))
        if not watch:
            return
        time.sleep(2)


def status_facts(places: Places, recent: int) -> dict[str, Any]:
    """Everything `status` says: the daemon's own words, and runs read from files."""
    report = control.status(places)
    problems: list[str] = []
    rows: list[dict[str, Any]] = []
    known: set[str] = set()
    waiting = {found.id for found in orphans.find(places) if found.meta.get("role") != "sampler"}
    has_runs = False
    for path in paths(places.projects):
        try:
            with ProjectReader(path) as reader:
                views = catalog.lately(reader, recent)
                has_runs = has_runs or bool(views) or bool(reader.roots(1))
                known.update(filter(reader.has_stream, waiting))
                rows += [_run(reader.project, view, report) for view in views]
                problems += reader.problems
        except StoreError as error:
            problems.append(str(error))
    rows.sort(key=lambda r: (r["state"] != "running", -r["sort_ns"]))
    keep = sum(1 for r in rows if r["state"] == "running") + recent
    for row in rows:
        del row["sort_ns"]
    return {
        "daemon": report.daemon if report else None,
        "is_silent": report is None and launch.is_running(places),
        "data": places.data,
        "problems": problems + (_problems(report.daemon) if report else []),
        "waiting": len(waiting - known),
        "has_runs": has_runs,
        "runs": rows[:keep],
        "gpus": gpus_now(places),
    }


def _problems(daemon: dict[str, Any]) -> list[str]:
    """What the daemon itself complains of."""
    sampler, copies = daemon.get("sampler") or {}, daemon.get("copies") or {}
    return [problem for problem in (daemon.get("problem"), sampler.get("trouble"), copies.get("problem")) if problem]


def _run(project: str, view: RunView, report: wire.StatusReport | None) -> dict[str, Any]:
    live = _live(view, report.streams if report else [])
    state, steps = view.state, view.steps
    return {
        "project": project,
        "run": view.name,
        "run_id": view.id,
        "state": state.state,
        "cause": state.cause,
        "attempt": view.attempts - 1,
        "logging": view.logging,
        "world_size": view.world_size,
        "last_step": steps.complete,
        "highest_step": steps.highest,
        "steps_per_second": view.steps_per_second,
        "summary": _headline(view),
        "points": view.points,
        "lag_bytes": sum(s["lag_bytes"] for s in live),
        "holes": len(view.holes),
        "refused_points": max(view.refused_points, sum(s["refused_points"] for s in live)),
        "twins": len(view.twins),
        "weakness": next((s["weakness"] for s in live if s["weakness"]), ""),
        "created_at": timestamp(view.created_ns),
        "last_at": timestamp(view.last_ns),
        "sort_ns": view.last_ns or view.created_ns,
    }


def _headline(view: RunView) -> dict[str, Any]:
    """The few figures that tell how a run does: what the user defined a summary for, else its loss."""
    names = [name for name in view.metric_names if view.definition(name, "summary")]
    names = names or [name for name in view.metric_names if name.rpartition("/")[2] == "loss"]
    overview = Overview(view, names[:_HEADLINES])
    figures = {name: overview.value(name) for name in overview.metrics}
    own = list(view.own_summary.items())[:_HEADLINES]
    return {name: value for name, value in (*figures.items(), *own) if value is not None}


def _live(view: RunView, streams: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    ours = {s.id for s in view.streams}
    return [s for s in streams if s["stream"] in ours]


def text(facts: dict[str, Any]) -> str:
    lines = [_daemon_line(facts)]
    lines += [f"Problem: {problem}" for problem in facts["problems"]]
    if facts["waiting"]:
        lines.append(f"Of {facts['waiting']} more process(es) the data wait on this host to be stored.")
    if facts["daemon"] and facts["daemon"].get("errands"):
        lines.append(f"{facts['daemon']['errands']} file(s) to keep or alert(s) to send.")
    uploads = (facts["daemon"] or {}).get("uploads")
    lines += ["", uploads_text(uploads)] if uploads else []
    if not facts["runs"]:
        return "\n".join([*lines, *([] if facts["waiting"] or facts["has_runs"] else ["No runs yet."])])
    header = ["PROJECT", "RUN", "STATE", "RANKS", "STEP", "STEPS/S", "POINTS", "LAG", "LOST", "SUMMARY"]
    lines += ["", table(header, [_cells(run) for run in facts["runs"]])]
    if facts["gpus"]:
        lines += ["", gpu_table(facts["gpus"])]
    for run in facts["runs"]:
        if run["weakness"]:
            lines.append(f"{run['run']}: {run['weakness']}")
        if run["twins"]:
            lines.append(f"{run['run']}: {run['twins']} streams claim a rank that another live process had.")
    return "\n".join(lines)


def _daemon_line(facts: dict[str, Any]) -> str:
    daemon = facts["daemon"]
    if daemon is None and facts["is_silent"]:
        return f"trackiod runs but does not answer (data in {facts['data']}); see: trackiod logs"
    if daemon is None:
        return f"trackiod does not run (data in {facts['data']}); start it with: trackiod start"
    up = duration(daemon["uptime_seconds"])
    return f"trackiod {daemon['version']}, pid {daemon['pid']}, up {up}, data in {daemon['data']}"


def _cells(run: dict[str, Any]) -> list[Any]:
    state = run["state"] + (f" ({run['cause']})" if run["cause"] else "")
    if run["attempt"]:
        state += f", attempt {run['attempt'] + 1}"
    step = "-" if run["last_step"] is None else f"{run['last_step']:,}"
    if run["highest_step"] != run["last_step"]:
        step += f" (highest {run['highest_step']:,})"
    lost = f"{run['refused_points']:,}" + (f" + {run['holes']} holes" if run["holes"] else "")
    return [
        run["project"],
        run["run"],
        state,
        f"{run['logging']} logging of {run['world_size']}",
        step,
        "-" if run["steps_per_second"] is None else f"{run['steps_per_second']:,.1f}",
        f"{run['points']:,}",
        size(run["lag_bytes"]),
        lost,
        ", ".join(f"{name} {cell(value)}" for name, value in run["summary"].items()),
    ]
