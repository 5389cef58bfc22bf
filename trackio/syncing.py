"""`trackio.sync()`: uploads what is stored of a project."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

from trackio import context_vars, launch, places, process, settings, targets, voice, waiting
from trackio.border import seconds_of
from trackio.interrupts import hand_on
from trackio.targets import Wish
from trackio.values import is_given, short_repr, text_of

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
    timeout: float | None = 600.0,
    **others: Any,
) -> str | None:
    """Uploads all runs of a project (default: the current run's), from now on, to a dataset or a bucket on the Hub, or
    to both; without either, what waits for the targets that it has. Waits until all that was logged here or is stored
    is there, `timeout` seconds at most (None: for ever), or with `run_in_background` not at all.

    Returns the target's URL; None where nothing was asked for or all is not there yet, which is said in one line. What
    is made for it is private unless `private=False`. Spaces are not built: with `space_id` or `sdk` it waits for
    nothing and returns None. Raises nothing.
    """
    is_space = is_given(space_id) or is_given(sdk)
    if is_space and not is_given(dataset_id) and not is_given(bucket_id):
        voice.warn_once("upload", _NO_SPACES)
        return None
    try:
        run = context_vars.current_run.get() or process.here.latest
        name = text_of(project) if is_given(project) else run.project if run is not None else ""
        if not name:
            raise ValueError("sync() needs project=: whose runs are to be uploaded?")
        urls = _urls(dataset_id, bucket_id)
        token = None if hf_token is None else text_of(hf_token)
        is_private = None if private is None else is_given(private)
        wishes = [targets.wish(url, is_private, token, os.environ, (1, 0)) for url in urls or [""]]
        seconds = float("inf") if timeout is None else seconds_of(timeout, "sync timeout", 600.0)
        waits = not is_space and not is_given(run_in_background)
        problem = _problem(name, wishes, time.monotonic() + seconds if waits else None)
    except Exception as error:  # noqa: BLE001 the border to the user's process
        hand_on(error)
        urls, problem = [], f"sync() uploads nothing: {error if isinstance(error, ValueError) else short_repr(error)}"
    if problem:
        voice.warn(problem)
    return None if problem or is_space or not urls else urls[0]


def _urls(dataset: Any, bucket: Any) -> list[str]:
    """Raises ValueError for what is no name."""
    named = ((dataset, targets.DATASETS), (bucket, targets.BUCKETS))
    return [targets.url_of(text_of(name), prefix) for name, prefix in named if is_given(name)]


def freeze(space_id: str | None = None, project: str | None = None, **where: Any) -> None:
    """Uploads a frozen copy to a Space: not built. Says so once."""
    voice.warn_once("upload", _NO_SPACES)


def _problem(project: str, wishes: Sequence[Wish], deadline: float | None) -> str:
    """Uploads; returns why not, in a sentence, or nothing. Without a `deadline` it only asks."""
    ours, _ = settings.of_this_process()
    if ours.mode == "disabled":
        return "sync() uploads nothing: TRACKIO_MODE is disabled."
    where = places.of(ours)
    launch.ensure(where, ours, _START_SECONDS)
    if deadline is None:
        problems = [waiting.ask(where, project, wish) for wish in wishes]
    else:
        for run in process.here.runs:
            left = deadline - time.monotonic()
            if run.project == project and run._stream is not None and not run._stream.deliver(left, is_patient=True):
                return f"not everything of run {run.name!r} is stored yet; the time is over."
        problems = [waiting.uploaded(where, project, wish, deadline) for wish in wishes]
    return " ".join(dict.fromkeys(filter(None, problems)))
