"""Everything `trackio get run` says of a run, as JSON shows it."""

from __future__ import annotations

from typing import Any

from trackiod.answers import RunView
from trackiod.exhibits import Exhibits
from trackiod.moments import timestamp
from trackiod.node import SystemView
from trackiod.overview import Overview


def run_facts(projects: str, project: str, view: RunView, rank: int | None) -> dict[str, Any]:
    """Everything `get run` says."""
    with SystemView(projects, view) as system:
        energy = system.energy()
    state, steps, overview = view.state, view.steps, Overview(view)
    summary = {name: overview.summary(name) for name in overview.metrics}
    exhibits = Exhibits(view.reader, whole=False)
    for figures in summary.values():
        figures["last"] = exhibits.shown(figures["last"])
    for key, value in view.own_summary.items():
        summary.setdefault(key, {})["set"] = value
    return {
        "project": project,
        "run": view.name,
        "run_id": view.id,
        "num_logs": view.num_logs,
        "metrics": view.metric_names,
        "config": view.config(rank),
        "last_step": steps.complete,
        "highest_step": steps.highest,
        "summary": summary,
        "state": state.state,
        "cause": state.cause,
        "group": view.group,
        **({"owner": owner} if (owner := view.owner) else {}),
        **view.about,
        "files": exhibits.saved(view.run_ids),
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
                "name": view.metas[s.id].get("name"),
            }
            for s in sorted(view.streams, key=lambda s: (view.places[s.id].attempt, s.role, s.rank))
        ],
        "records": view.records,
        "points": view.points,
        "hidden_points": overview.hidden,
        "refused_records": view.refused_records,
        "refused_points": view.refused_points,
        "holes": [{"stream": h.stream, "bytes": h.end - h.start, "cause": h.cause} for h in view.holes],
        "config_differences": view.config_differences,
        "energy_joules": energy,
        "energy_joules_per_step": energy / view.steps_made if energy is not None and view.steps_made else None,
    }
