"""`init()`: which project, which name, which run, and whether it goes on with one that is there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from trackio import (
    context_vars,
    forks,
    gauges,
    identity,
    inquiry,
    launch,
    mounts,
    names,
    places,
    process,
    rendezvous,
    request,
    settings,
    targets,
    voice,
    wire,
)
from trackio.configuration import Config
from trackio.identity import Job, Rank
from trackio.interrupts import hand_on
from trackio.places import Places
from trackio.request import Misuse, Request
from trackio.runs import Identity, Run
from trackio.settings import Settings
from trackio.stream import Stream
from trackio.values import clean_text, plain_config, short_repr

_ALLOW_SECONDS = 0.05
_PATIENT_SECONDS = 5.0
_HF_DEFAULT_PROJECT = "huggingface"

pending_config = Config()
"""What users set on `trackio.config` before init(); the next run starts with it."""


def open_run(
    project: Any, name: Any, group: Any, config: Any, resume: Any, mode: str | None, others: Mapping[str, Any]
) -> Run:
    """Opens, or goes on with, a run. Raises ValueError for `resume="must"` without such a run.

    Whatever else goes wrong, training goes on with a run that stores nothing, and one line says so.
    """
    try:
        return _opened(project, name, group, config, resume, mode, others)
    except Misuse as error:
        raise ValueError(str(error)) from None
    except Exception as error:  # noqa: BLE001 the border to the user's process
        hand_on(error)
        voice.warn_once("init", f"init() failed ({short_repr(error)}); this process logs nothing.")
        return _made_current(_disabled(request.nothing(project)))


def _opened(
    project: Any, name: Any, group: Any, config: Any, resume: Any, mode: str | None, others: Mapping[str, Any]
) -> Run:
    forks.notice()
    ours, problems = settings.of_this_process()
    voice.quiet = ours.quiet
    for problem in problems:
        voice.warn_once(problem, problem)
    try:
        asked = request.understood(project, name, group, config, resume, mode, others, ours)
    except Misuse:
        raise
    except Exception as error:  # noqa: BLE001 what is odd in a call is no reason to log nothing
        hand_on(error)
        voice.warn_once("arguments", f"init() cannot use its arguments ({short_repr(error)}); the project alone is.")
        asked = request.nothing(project, ours)
    if asked.mode == "disabled":
        return _made_current(_disabled(asked))
    if (run := _continued(asked)) is not None:
        return _made_current(run)
    if process.here.latest is not None and asked.reinit != "create_new":
        process.here.latest.finish()
    process.install()
    return _made_current(_new_run(asked, ours))


def _disabled(asked: Request) -> Run:
    run_id = asked.run_id or names.random_id()
    identity = Identity(run_id, asked.name or names.readable(run_id), asked.project, asked.group, asked.about)
    return Run(identity, None, config=asked.config, webhook=asked.webhook)


def _continued(asked: Request) -> Run | None:
    """`resume="allow"`, nameless or with its name, goes on with the run that is open, or was finished last,
    in this process: a script's own init() and the trainer's callback are one run, and so are `train()` and
    `evaluate()`. The callback's default project does not take an open run away."""
    run = process.here.latest
    if run is not None and asked.reinit == "return_previous" and not run.is_finished:
        return run
    if run is None or asked.resume != "allow":
        return None
    name, run_id = asked.asked
    if name not in (None, run.name) or run_id not in (None, run.id):
        return None
    if asked.project == _HF_DEFAULT_PROJECT and not run.is_finished:
        run.answers_to.add(asked.project)
    if asked.project not in run.answers_to:
        return None
    voice.say(f"continuing run {run.name!r} ({run.id}) in project {run.project!r}")
    run.config.update(asked.config)
    return run


def _made_current(run: Run) -> Run:
    process.here.latest = run
    context_vars.current_run.set(run)
    context_vars.current_project.set(run.project)
    return run


def imported_run(project: str, name: str) -> Run:
    """A run that nobody in this process logs to by the way: its caller writes and finishes it. Starts a daemon if none
    runs."""
    ours, _ = settings.of_this_process()
    where = places.of(ours)
    launch.ensure(where, ours, _PATIENT_SECONDS)
    process.install()
    asked = request.understood(project, name, None, None, "never", "online", {}, ours._replace(run_id=""))
    return _new_run(asked, ours, is_ours=False)


def _new_run(asked: Request, ours: Settings, *, is_ours: bool = True) -> Run:
    where = places.of(ours)
    _warn_of_folder(where)
    facts = identity.facts_of_this_process()
    process.here.interactive = facts.interactive
    job = Job(Rank()) if ours.run_per_rank else identity.job_of(facts)
    run_id = _run_id(asked, job)
    resumed, highest_step = run_id, -1
    attempt = _attempt(asked, job, run_id)
    if asked.resume != "never" and (asked.run_id or asked.name):
        found = _find(where, asked, attempt, ours)
        if found is not None and found.run:
            resumed, highest_step = found.run, found.step
    name = asked.name or names.readable(resumed)
    rank = job.rank
    stream_facts = {
        "project": asked.project,
        "run": resumed,
        "name": name,
        "named": asked.name is not None,
        "group": asked.group,
        "resume": asked.resume,
        "role": "rank",
        "rank": rank.rank,
        "local_rank": rank.local_rank,
        "world_size": rank.world_size,
        "launcher": rank.launcher,
        "attempt": attempt,
        "restarts": identity.restarts_of(facts.environ),
        "interactive": facts.interactive,
        "sampling": dict(asked.sampling),
        "cuda_visible_devices": gauges.visible_devices(),
        "webhook": list(asked.webhook) if asked.webhook.url else None,
        **asked.about,
        "data": clean_text(where.data),
    }
    wish = _wish(asked, rank)
    if wish.facts:
        stream_facts["target"] = wish.facts

    def open_stream(stream_facts: dict[str, Any]) -> Stream:
        return process.here.open_stream(where, ours, stream_facts, wish.secrets)

    config = {**pending_config._take(), **asked.config}
    run = Run(
        Identity(resumed, name, asked.project, asked.group, {k: plain_config(v) for k, v in stream_facts.items()}),
        open_stream,
        highest_step=highest_step,
        config=config,
        webhook=asked.webhook,
    )
    if not is_ours:
        return run
    process.here.adopt(run, str(rank.rank) if rank.launcher != "none" else "")
    if rank.local_rank == 0:
        voice.say(f"run {name!r} ({resumed}) in project {asked.project!r}; see it with: trackio status")
    return run


def _wish(asked: Request, rank: Rank) -> targets.Wish:
    """Where the run is uploaded to; nothing offline."""
    url, private, token = asked.target
    if not url or asked.mode != "online":
        return targets.Wish({}, {})
    return targets.wish(url, private, token, os.environ, identity.nodes_of(os.environ, rank))


def _attempt(asked: Request, job: Job, run_id: str) -> str:
    """What the ranks of one start of the job have in common; where nodes share only the id, it is that."""
    if not job.key:
        return os.urandom(8).hex()
    shared = (run_id,) if asked.run_id or job.needs_store else job.key
    return names.derived_id(*shared, job.attempt)


def _run_id(asked: Request, job: Job) -> str:
    """The id all ranks of this launch arrive at, each alone (docs/semantics.md)."""
    ordinal, is_first = process.here.ordinal(asked.project, asked.name)
    if asked.run_id:
        return asked.run_id if ordinal == 0 else f"{asked.run_id}-{ordinal + 1}"
    if not job.key:
        return names.random_id()
    is_label = job.name_blind and is_first  # whatever each rank calls it, it is the same run
    which = "first" if is_label else f"name {asked.name or ''} {ordinal}"
    mine = names.derived_id(*job.key, asked.project, which)
    if not job.needs_store:
        return mine
    shared, problem = rendezvous.shared_id(mine, f"{asked.project}/{which}", job.rank.rank)
    if problem:
        voice.warn_once(
            "nodes", f"{problem}, so each node is a run of its own; set TRACKIO_RUN_ID to the same value on all of "
            "them to make it one."
        )  # fmt: skip
    return shared or mine


def _find(where: Places, asked: Request, attempt: str, ours: Settings) -> wire.Found | None:
    """Asks the daemon for a run of that id or name: briefly for "allow", with patience for "must"."""
    wanted = asked.run_id or asked.name or ""
    question = wire.Find(asked.project, wanted, attempt)
    must = asked.resume == "must"
    is_patient = must or bool(where.shared)  # the run may be another host's: then the daemon looks what it copied
    if is_patient:
        launch.ensure(where, ours, _PATIENT_SECONDS)
    answer = inquiry.ask(where, question, _PATIENT_SECONDS if is_patient else _ALLOW_SECONDS)
    if isinstance(answer, wire.Found):
        if must and not answer.run:
            raise Misuse(f"Run '{wanted}' does not exist in project '{asked.project}'")
        return answer
    if must or launch.is_running(where):
        voice.warn_once(
            "resume", f"the daemon did not say whether a run {wanted!r} exists; if it does, "
            "this run is shown as its continuation."
        )  # fmt: skip
    return None


def _of_network(where: Places) -> str:
    """What comes of a data folder on a network, in a sentence."""
    if where.live == where.data:
        return (
            f"{where.data} is on {where.network}, which is not known as a file system of this host; the store there "
            "stays in use, and may be damaged if hosts share it. Set TRACKIO_DIR to a disk of this host."
        )
    kind = "a network file system" if where.network in mounts.NETWORK_TYPES else "what may be a network file system"
    copied = f" and are copied to {where.shared} every minute." if where.shared else "."
    return f"{where.data} is on {kind} ({where.network}); this host's data lie in {where.live}{copied}"


def _warn_of_folder(where: Places) -> None:
    """One sentence if the data folder cannot hold the data where the user expects them."""
    if where.network:
        voice.warn_once("network", _of_network(where))
    try:
        where.make_live()
        problem = "" if os.access(where.live, os.W_OK | os.X_OK) else "no permission"
    except OSError as error:
        problem = error.strerror or str(error)
    if problem:
        voice.warn_once(
            "unwritable",
            f"the data folder {where.live} cannot be written ({problem}); metrics stay in shared memory until it "
            "can, or are lost with this host. Set TRACKIO_DIR to a folder of yours.",
        )
