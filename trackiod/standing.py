"""How everything stands: what `trackio status` says, as JSON shows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trackio import launch, wire
from trackio.places import Places
from trackiod import catalog, control, library, orphans
from trackiod.answers import RunView
from trackiod.errors import StoreError
from trackiod.moments import timestamp
from trackiod.overview import Overview
from trackiod.store import wal
from trackiod.store.reader import ProjectReader, asides, paths, unlisted

_HEADLINES = 3


def standing(places: Places, recent: int) -> dict[str, Any]:
    """The daemon's own words, and the running runs and `recent` others, read from files."""
    report = control.status(places)
    problems: list[str] = []
    rows: list[dict[str, Any]] = []
    known: set[str] = set()
    found = [one for one in orphans.find(places) if one.meta.get("role") != "sampler"]
    waiting, dead = {one.id for one in found}, {one.id for one in found if not one.is_held}
    has_runs = False
    for path in paths(places.projects):
        try:
            with ProjectReader(path) as reader:
                views = catalog.lately(reader, recent)
                has_runs = has_runs or bool(views) or bool(reader.roots(1))
                known.update(filter(reader.has_stream, waiting))
                rows += [_run(reader.project, view, report) for view in views]
                problems += reader.problems
                if (log := wal.find_long(path, reader.project)) is not None:
                    problems.append(log.sentence)
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
        "problems": problems
        + unlisted(places.projects)
        + asides(places.projects)
        + (_problems(report.daemon) if report else []),
        "incomplete": library.incomplete(places.projects),
        "blocked": report.daemon.get("blocked", []) if report else [],
        "waiting": len(waiting - known | dead),
        "has_runs": has_runs,
        "runs": rows[:keep],
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
        **({"owner": owner} if (owner := view.owner) else {}),
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
    """The few figures that tell how a run does: what the user defined a summary for, else its loss, else its first."""
    names = [name for name in view.metric_names if view.definition(name, "summary")]
    names = names or [name for name in view.metric_names if name.rpartition("/")[2] == "loss"] or view.metric_names
    overview = Overview(view, names[:_HEADLINES])
    figures = {name: overview.value(name) for name in overview.metrics}
    own = list(view.own_summary.items())[:_HEADLINES]
    return {name: value for name, value in (*figures.items(), *own) if value is not None}


def _live(view: RunView, streams: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    ours = {s.id for s in view.streams}
    return [s for s in streams if s["stream"] in ours]
