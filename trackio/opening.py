"""`init()`: which project, which name, which run, and whether it goes on with one that is there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from trackio import (
    context_vars,
    identity,
    inquiry,
    launch,
    names,
    places,
    process,
    rendezvous,
    settings,
    voice,
    wire,
)
from trackio.configuration import Config, as_mapping
from trackio.identity import Job, Rank
from trackio.places import Places
from trackio.runs import Identity, Run, warn_unknown
from trackio.settings import Settings
from trackio.stream import Stream
from trackio.values import clean_text

MAX_NAME_CHARS = 128
_RESUMES = ("never", "allow", "must")
_ALLOW_SECONDS = 0.05
_MUST_SECONDS = 5.0
_HF_DEFAULT_PROJECT = "huggingface"
_UNUSED = frozenset(
    (
        "space_id server_url dataset_id dataset_repo bucket_id private embed settings auto_log_gpu "
        "gpu_log_interval auto_log_cpu cpu_log_interval webhook_url webhook_min_level trackio_url trackio_token "
        "hf_token monitoring_mode dir entity tags notes job_type save_code reinit allow_val_change"
    ).split()
)
"""Words of upstream, wandb and earlier trackers that are taken without a word; what they ask for is not
there yet, or goes without saying."""

pending_config = Config()
"""What users set on `trackio.config` before init(); the next run starts with it."""


class Misuse(Exception):
    """The caller asked for what cannot be; init() raises it as a ValueError."""


class Request(NamedTuple):
    """What the caller of init() asked for, aliases resolved."""

    project: str
    name: str | None
    group: str | None
    config: dict[str, Any]
    resume: str
    run_id: str
    asked: tuple[str | None, str | None]
    """the name and the id that the call itself gives; those above may be the environment's"""


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
        voice.warn_once("init", f"init() failed ({error!r}); this process logs nothing.")
        return _made_current(_disabled(Request(str(project), None, None, {}, "never", "", (None, None))))


def _opened(
    project: Any, name: Any, group: Any, config: Any, resume: Any, mode: str | None, others: Mapping[str, Any]
) -> Run:
    ours, problems = settings.of_this_process()
    voice.quiet = ours.quiet
    for problem in problems:
        voice.warn_once(problem, problem)
    request = _understood(project, name, group, config, resume, others, ours)
    if (mode or ours.mode) == "disabled":
        return _made_current(_disabled(request))
    if (run := _continued(request)) is not None:
        return _made_current(run)
    if process.here.latest is not None:
        process.here.latest.finish()
    process.install()
    run = _new_run(request, ours)
    return _made_current(run)


def _understood(
    project: Any, name: Any, group: Any, config: Any, resume: Any, others: Mapping[str, Any], ours: Settings
) -> Request:
    unknown = dict(others)
    project = project or unknown.pop("project_name", None) or ours.project or "default"
    aliases = (unknown.pop("experiment_name", None), unknown.pop("run_name", None))
    asked_name = _name_or_none(name or next((a for a in aliases if a), None))
    asked_id = _text_or_none(unknown.pop("id", None))
    name = asked_name or _name_or_none(ours.run_name)
    run_id = asked_id or _text_or_none(ours.run_id) or ""
    warn_unknown("init", {k: v for k, v in unknown.items() if k not in _UNUSED})
    if resume in (None, False):
        resume = "never"
    elif resume is True or resume == "auto":
        resume = "allow"
    if resume not in _RESUMES:
        raise Misuse(f"resume must be one of: 'must', 'allow', or 'never', not {resume!r}")
    if resume == "must" and name is None and not asked_id:
        raise Misuse("Must provide a run name when resume='must'")
    return Request(
        project=_name(project, "project"),
        name=name,
        group=None if group is None else clean_text(str(group)),
        config=as_mapping(config),
        resume=resume,
        run_id=run_id,
        asked=(asked_name, asked_id),
    )


def _name_or_none(value: Any) -> str | None:
    return _name(value, "run") if value else None


def _text_or_none(value: Any) -> str | None:
    return clean_text(str(value)) if value else None


def _name(value: Any, what: str) -> str:
    text = clean_text(str(value))
    if len(text) > MAX_NAME_CHARS:
        voice.warn_once(f"long {what}", f"the {what} name is cut to {MAX_NAME_CHARS} characters.")
    return text[:MAX_NAME_CHARS]


def _disabled(request: Request) -> Run:
    run_id = request.run_id or names.random_id()
    identity = Identity(run_id, request.name or names.readable(run_id), request.project, request.group)
    return Run(identity, None, config=request.config)


def _continued(request: Request) -> Run | None:
    """`resume="allow"`, nameless or with its name, goes on with the run that is open, or was finished last,
    in this process: a script's own init() and the trainer's callback are one run, and so are `train()` and
    `evaluate()`. The callback's default project does not take an open run away."""
    run = process.here.latest
    if run is None or request.resume != "allow":
        return None
    name, run_id = request.asked
    if name not in (None, run.name) or run_id not in (None, run.id):
        return None
    if request.project == _HF_DEFAULT_PROJECT and not run.is_finished:
        run.answers_to.add(request.project)
    if request.project not in run.answers_to:
        return None
    voice.say(f"continuing run {run.name!r} ({run.id}) in project {run.project!r}")
    run.config.update(request.config)
    return run


def _made_current(run: Run) -> Run:
    process.here.latest = run
    context_vars.current_run.set(run)
    context_vars.current_project.set(run.project)
    return run


def _new_run(request: Request, ours: Settings) -> Run:
    where = places.find(ours.data_dir, ours.spool_dir)
    _warn_of_folder(where)
    facts = identity.facts_of_this_process()
    process.here.interactive = facts.interactive
    job = Job(Rank()) if ours.run_per_rank else identity.job_of(facts)
    run_id = _run_id(request, job)
    resumed, highest_step = run_id, -1
    attempt = _attempt(request, job, run_id)
    if request.resume != "never" and (request.run_id or request.name):
        found = _find(where, request, attempt, ours)
        if found is not None and found.run:
            resumed, highest_step = found.run, found.step
    name = request.name or names.readable(resumed)
    rank = job.rank
    stream_facts = {
        "project": request.project,
        "run": resumed,
        "name": name,
        "named": request.name is not None,
        "group": request.group,
        "resume": request.resume,
        "role": "rank",
        "rank": rank.rank,
        "local_rank": rank.local_rank,
        "world_size": rank.world_size,
        "launcher": rank.launcher,
        "attempt": attempt,
        "interactive": facts.interactive,
        "data": clean_text(where.data),
    }

    def open_stream(stream_facts: dict[str, Any]) -> Stream:
        return process.here.open_stream(where, ours, stream_facts)

    config = {**pending_config._take(), **request.config}
    run = Run(
        Identity(resumed, name, request.project, request.group, stream_facts),
        open_stream,
        highest_step=highest_step,
        config=config,
    )
    process.here.adopt(run, str(rank.rank) if rank.launcher != "none" else "")
    if rank.local_rank == 0:
        voice.say(f"run {name!r} ({resumed}) in project {request.project!r}; see it with: trackio status")
    return run


def _attempt(request: Request, job: Job, run_id: str) -> str:
    """What the ranks of one start of the job have in common; where nodes share only the id, it is that."""
    if not job.key:
        return os.urandom(8).hex()
    shared = (run_id,) if request.run_id or job.needs_store else job.key
    return names.derived_id(*shared, job.attempt)


def _run_id(request: Request, job: Job) -> str:
    """The id all ranks of this launch arrive at, each alone (docs/semantics.md)."""
    ordinal, is_first = process.here.ordinal(request.project, request.name)
    if request.run_id:
        return request.run_id if ordinal == 0 else f"{request.run_id}-{ordinal + 1}"
    if not job.key:
        return names.random_id()
    is_label = job.name_blind and is_first  # whatever each rank calls it, it is the same run
    which = "first" if is_label else f"name {request.name or ''} {ordinal}"
    mine = names.derived_id(*job.key, request.project, which)
    if not job.needs_store:
        return mine
    shared = rendezvous.shared_id(mine, f"{request.project}/{which}", job.rank.rank)
    if shared is None:
        voice.warn_once(
            "nodes", "the launcher gives the nodes nothing to tell this job by, so each node is a run of its "
            "own; set TRACKIO_RUN_ID to the same value on all of them to make it one."
        )  # fmt: skip
        return mine
    return shared


def _find(where: Places, request: Request, attempt: str, ours: Settings) -> wire.Found | None:
    """Asks the daemon for a run of that id or name: briefly for "allow", with patience for "must"."""
    wanted = request.run_id or request.name or ""
    question = wire.Find(request.project, wanted, attempt)
    must = request.resume == "must"
    if must and ours.autostart and not launch.is_running(where):
        _start_and_wait(where)
    answer = inquiry.ask(where, question, _MUST_SECONDS if must else _ALLOW_SECONDS)
    if isinstance(answer, wire.Found):
        if must and not answer.run:
            raise Misuse(f"Run '{wanted}' does not exist in project '{request.project}'")
        return answer
    if must or launch.is_running(where):
        voice.warn_once(
            "resume", f"the daemon did not say whether a run {wanted!r} exists; if it does, "
            "this run is shown as its continuation."
        )  # fmt: skip
    return None


def _start_and_wait(where: Places) -> None:
    try:
        launch.reap_soon(launch.spawn(where, "--autostarted"), _MUST_SECONDS)
    except (OSError, TypeError, ValueError):
        return


def _warn_of_folder(where: Places) -> None:
    """One sentence if the data folder cannot hold the data where the user expects them."""
    if where.network:
        voice.warn_once(
            "network",
            f"{where.data} is on a network file system ({where.network}); this host's data lie in {where.live}.",
        )  # fmt: skip
    try:
        places.make_private(where.live)
        problem = "" if os.access(where.live, os.W_OK | os.X_OK) else "no permission"
    except OSError as error:
        problem = error.strerror or str(error)
    if problem:
        voice.warn_once(
            "unwritable",
            f"the data folder {where.live} cannot be written ({problem}); metrics stay in shared memory until it "
            "can, or are lost with this host. Set TRACKIO_DIR to a folder of yours.",
        )
