"""`trackio sync`: what is uploaded where, and uploading now."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import click

from trackio import targets, waiting
from trackio.places import Places
from trackio.targets import Wish
from trackiod import catalog, control
from trackiod.errors import TrackiodError
from trackiod.store import schema
from trackiod.uploads.target import Target

from .output import Block, Seconds, block, duration, here, print_json, say, size, table, warn, where


@click.command()
@click.option("--project", default="", help="Upload this project now. Default: all that have a target.")
@click.option("--to", "url", help=f"Where to: {targets.FORMS}. All runs of the project go there, from now on.")
@click.option("--public", is_flag=True, help="What is made for --to is public. Default: private.")
@click.option(
    "--stop", is_flag=True, help="Upload the project to --to no more, until a run names it again; what is there stays."
)
@click.option("--retry", is_flag=True, help="Also what was given up: after a login, or when the repository is back.")
@click.option("--wait", is_flag=True, help="Until all is uploaded, with a bar that shows how far it is.")
@click.option("--timeout", type=Seconds(), help="Seconds to --wait at most; then exit code 1.")
@click.option("--json", "as_json", is_flag=True, help="Valid JSON instead of text.")
def sync(
    project: str, url: str | None, public: bool, stop: bool, retry: bool, wait: bool, timeout: float | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Upload runs that have a target, or to one that is named; without options, show the targets and how they stand."""
    _refuse({
        "--to needs --project: whose runs are to go there?": url and not project,
        "--stop needs --to: where is nothing to be uploaded any more?": stop and not url,
        "--public needs --to: it is for what is made then.": public and not url,
        "--timeout needs --wait.": timeout is not None and not wait,
    })  # fmt: skip
    places = here()
    try:
        url = targets.url_of(url) if url else ""
    except ValueError as error:
        raise TrackiodError(f"{error}.") from None
    wish = targets.wish(url, not public, None, os.environ, (1, 0))
    if stop:
        wish.facts["stop"] = True
    elif url:
        _check(project, url)
    if project or retry or wait:
        control.start(places)
    if wait and not stop:
        _wait(places, project, wish, timeout, is_retry=retry)
    elif (project or retry) and (problem := waiting.ask(places, project, wish, is_retry=retry)):
        raise TrackiodError(problem)
    uploads = _uploads(places, project)
    if as_json:
        print_json({"targets": uploads})
    else:
        say(text(uploads) if uploads else "No project has a target; upload one with: trackio sync --project P --to URL")


def _refuse(wrong: dict[str, Any]) -> None:
    """Raises TrackiodError with the first sentence that is true."""
    for sentence, is_so in wrong.items():
        if is_so:
            raise TrackiodError(sentence)


def _check(project: str, url: str) -> None:
    """Says what of a project is not uploaded from here. Raises NotFound."""
    projects = where().projects
    catalog.open_project(projects, project).close()
    if not Target(url).takes_others and schema.others_stores(schema.path_of(projects, project)):
        warn([f"what other hosts stored of project '{project}' is uploaded by these: run trackio sync there."])


def _uploads(places: Places, project: str) -> list[dict[str, Any]]:
    report = control.status(places)
    found = report.daemon.get("uploads", []) if report else []
    return [one for one in found if project in ("", *one["projects"])]


def _wait(places: Places, project: str, wish: Wish, timeout: float | None, *, is_retry: bool) -> None:
    deadline = None if timeout is None else time.monotonic() + timeout
    total = done = 0
    with click.progressbar(length=1, label="Uploading", file=sys.stderr) as bar:
        for now in waiting.progress(places, project, wish, is_retry=is_retry):
            if now.is_parked:
                raise TrackiodError(now.problem)
            total = max(total, done + now.rows_waiting)
            done = total if now.is_done else total - now.rows_waiting
            if total:
                bar.length = total
                bar.update(done - bar.pos)
            if now.is_done:
                return
            if deadline is not None and time.monotonic() >= deadline:
                raise TrackiodError(f"Not everything is uploaded yet: {now.rows_waiting:,} rows. {now.problem}".strip())


def text(uploads: list[dict[str, Any]]) -> Block:
    """The targets as a table, and what is wrong with them."""
    header = ["TARGET", "PROJECTS", "STATE", "WAITING", "SENT", "COMMITS", "LAST", "NEXT"]
    lines: list[str] = [table(header, [_cells(one) for one in uploads])]
    lines += [f"{one['target']}: {one['problem']}" for one in uploads if one["problem"]]
    return block(*lines)


def _cells(one: dict[str, Any]) -> list[Any]:
    last, following = one["last_commit_seconds_ago"], one["next_in_seconds"]
    about = f" (about {size(one['bytes_waiting'])})" if one["bytes_waiting"] else ""
    left = "" if one["commits_left"] is None else f" ({one['commits_left']} left)"
    return [
        one["target"],
        ", ".join(one["projects"]),
        one["state"],
        f"{one['rows_waiting']:,} rows{about}",
        f"{one['rows_sent']:,} rows, {size(one['bytes_sent'])}",
        f"{one['commits']}{left}",
        "-" if last is None else f"{duration(last)} ago",
        "-" if following is None else f"in {duration(following)}",
    ]
