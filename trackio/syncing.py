"""`trackio.sync()`: uploads what is stored of a project."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

from trackio import context_vars, launch, places, process, settings, targets, voice, waiting
from trackio.targets import Wish

_START_SECONDS = 30.0
_NO_SPACES = "nothing is uploaded to Spaces yet; datasets and buckets are: trackio.sync(project, dataset_id=...)"


def sync(
    project: str | None = None,
    space_id: str | None = None,
    private: bool | None = None,
    force: bool = False,
    run_in_background: bool = False,
    sdk: str = "",
    dataset_id: str | None = None,
    bucket_id: str | None = None,
    *,
    hf_token: str | None = None,
    timeout: float = 600.0,
    **others: Any,
) -> str | None:
    """Uploads all runs of a project (default: the current run's), from now on, to a dataset or a bucket on the Hub, or
    to both; without either, what waits for the targets that it has. Waits until all that is stored is there, `timeout`
    seconds at most, or with `run_in_background` not at all.

    Returns the target's URL; None where nothing was asked for or all is not there yet, which is said in one line. What
    is made for it is private unless `private=False`. Spaces are not built: with `space_id` or `sdk` it waits for
    nothing and returns None. Raises nothing.
    """
    is_space = bool(space_id or sdk)
    if is_space and not dataset_id and not bucket_id:
        voice.warn_once("upload", _NO_SPACES)
        return None
    run = context_vars.current_run.get() or process.here.latest
    project = project or (run.project if run else None)
    if not project:
        voice.warn("sync() needs project=: whose runs are to be uploaded?")
        return None
    names = [(name, prefix) for name, prefix in ((dataset_id, targets.DATASETS), (bucket_id, targets.BUCKETS)) if name]
    try:
        urls = [targets.url_of(str(name), prefix) for name, prefix in names]
    except ValueError as error:
        voice.warn(f"{error}.")
        return None
    deadline = None if is_space or run_in_background else time.monotonic() + timeout
    wishes = [targets.wish(url, private, hf_token, os.environ, (1, 0)) for url in urls or [""]]
    problem = _problem(project, wishes, deadline)
    if problem:
        voice.warn(problem)
    return None if problem or is_space or not urls else urls[0]


def freeze(space_id: str | None = None, project: str | None = None, **where: Any) -> None:
    """Uploads a frozen copy to a Space: not built. Says so once."""
    voice.warn_once("upload", _NO_SPACES)


def _problem(project: str, wishes: Sequence[Wish], deadline: float | None) -> str:
    """Uploads; returns why not, in a sentence, or nothing. Without a `deadline` it only asks."""
    ours, _ = settings.of_this_process()
    where = places.of(ours)
    launch.ensure(where, ours, _START_SECONDS)
    for wish in wishes:
        if problem := waiting.ask(where, project, wish):
            return problem
    if deadline is None:
        return ""
    problems = [waiting.uploaded(where, project, deadline, wish.facts.get("url", "")) for wish in wishes]
    return " ".join(filter(None, problems))
