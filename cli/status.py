"""`trackio status`: the daemon, and the runs that run or ended lately."""

from __future__ import annotations

import time
from typing import Any

import click

from trackio.places import Places
from trackiod.standing import standing

from .gpu import gpu_table, gpus_now
from .output import Block, block, cell, duration, print_json, say, size, table, where
from .sync import text as uploads_text

_RECENT_RUNS = 10


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
            say(text(facts))
        if not watch:
            return
        time.sleep(2)


def status_facts(places: Places, recent: int) -> dict[str, Any]:
    """Everything `status` says."""
    return standing(places, recent) | {"gpus": gpus_now(places)}


def text(facts: dict[str, Any]) -> Block:
    lines = [_daemon_line(facts)]
    lines += [f"Problem: {problem}" for problem in facts["problems"]]
    lines += map(blocked_line, facts["blocked"])
    if facts["waiting"]:
        lines.append(f"Of {facts['waiting']} process(es) data wait on this host to be stored.")
    if facts["daemon"] and facts["daemon"].get("errands"):
        lines.append(f"{facts['daemon']['errands']} file(s) to keep or alert(s) to send.")
    for file in (facts["daemon"] or {}).get("waiting_files") or []:
        again = f"tried {file['tries']} times, again in {duration(file['seconds'])}"
        lines.append(f"Not kept yet: {file['path']} of project '{file['project']}': {file['problem']} ({again}).")
    lines += [f"Lost: {sentence}" for sentence in facts["incomplete"]]
    uploads = (facts["daemon"] or {}).get("uploads")
    lines += ["", uploads_text(uploads)] if uploads else []
    if not facts["runs"]:
        return block(*lines, *([] if facts["waiting"] or facts["has_runs"] else ["No runs yet."]))
    header = ["PROJECT", "RUN", "STATE", "RANKS", "STEP", "STEPS/S", "POINTS", "LAG", "LOST", "SUMMARY"]
    lines += ["", table(header, [_cells(run) for run in facts["runs"]])]
    if facts["gpus"]:
        lines += ["", gpu_table(facts["gpus"])]
    for run in facts["runs"]:
        if run["weakness"]:
            lines.append(f"{run['run']}: {run['weakness']}")
        if run["twins"]:
            lines.append(f"{run['run']}: {run['twins']} streams claim a rank that another live process had.")
    return block(*lines)


def blocked_line(one: dict[str, Any]) -> str:
    """What cannot be stored now, why, when it is tried again, and what to do."""
    who = f"stream {one['stream']}" if one["stream"] else "the streams in a folder"
    of_run = f" of run {one['run']} in project {one['project']}" if one["run"] else ""
    aside = f"; move it out of the way with: trackiod repair --set-aside {one['stream']}" if one["stream"] else ""
    return (
        f"Blocked: {who}{of_run} cannot be stored: {one['sentence']}. Tried {one['tries']} time(s), next at"
        f" {one['next_try_at']}{aside}"
    )


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
        run["run"] + (f" (of {run['owner']})" if "owner" in run else ""),
        state,
        f"{run['logging']} logging of {run['world_size']}",
        step,
        "-" if run["steps_per_second"] is None else f"{run['steps_per_second']:,.1f}",
        f"{run['points']:,}",
        size(run["lag_bytes"]),
        lost,
        ", ".join(f"{name} {cell(value)}" for name, value in run["summary"].items()),
    ]
