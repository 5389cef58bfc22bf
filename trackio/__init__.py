"""Experiment tracking for distributed training that costs the training nothing.

    import trackio

    run = trackio.init(project="mnist", config={"lr": 0.1})
    trackio.log({"loss": 0.5})
    trackio.finish()

`log()` writes into shared memory and returns; one daemon per host, `trackiod`, does everything slow.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trackio import context_vars, opening, process, voice
from trackio.configuration import Config, CurrentConfig
from trackio.runs import Run
from trackio.unbuilt import Image, Table, Trace
from trackio.version import __upstream__, __version__

__all__ = [
    "Image",
    "Run",
    "Table",
    "Trace",
    "__upstream__",
    "__version__",
    "config",
    "context_vars",
    "define_metric",
    "finish",
    "freeze",
    "init",
    "log",
    "sync",
]

_current_run = context_vars.current_run.get


def init(
    project: str | None = None,
    name: str | None = None,
    *,
    group: str | None = None,
    config: Any = None,
    resume: str | bool | None = "never",
    mode: str | None = None,
    **others: Any,
) -> Run:
    """Opens a run and makes it the current one.

    Every rank of a torchrun, accelerate, SLURM or MPI job may call it: they are one run. `resume="allow"`
    goes on with the newest run of that name, or without a name with the run this process has;
    `"must"` raises ValueError if there is none. `mode` is `online`, `offline` or `disabled`.
    `project_name`, `experiment_name` and `run_name` are taken too; unknown keywords are named once.
    Takes a few milliseconds; with `resume="allow"` up to 50 more, with `"must"` up to some seconds.
    """
    return opening.open_run(project, name, group, config, resume, mode, others)


def log(
    metrics: Mapping[str, Any] | None = None,
    step: int | None = None,
    *,
    data: Mapping[str, Any] | None = None,
    commit: bool | None = None,
    **unknown: Any,
) -> None:
    """Records metrics in the current run: `Run.log`. Raises RuntimeError before any `init()`."""
    run = _current_run() or process.here.latest
    if run is None:
        raise RuntimeError("Call trackio.init() before trackio.log().")
    if type(metrics) is dict and commit is None and not unknown:
        run._log(metrics, step, None)
    else:
        run.log(metrics, step, data=data, commit=commit, **unknown)


def finish(exit_code: int | None = None, quiet: bool | None = None) -> None:
    """Ends the current run: `Run.finish`. Does nothing without one."""
    run = _current_run() or process.here.latest
    if run is not None:
        run.finish(exit_code, quiet)


def define_metric(name: str, step_metric: str | None = None, **options: Any) -> None:
    """Says how metrics are read: `Run.define_metric`. Raises RuntimeError before any `init()`."""
    run = _current_run() or process.here.latest
    if run is None:
        raise RuntimeError("Call trackio.init() before trackio.define_metric().")
    run.define_metric(name, step_metric, **options)


def sync(**where: Any) -> None:
    """Uploads a project: not built yet. Says so once and returns None; the data stay on this host."""
    voice.warn_once("upload", "uploads are not built yet; the data stay on this host.")


def freeze(**where: Any) -> None:
    """Uploads a frozen copy: not built yet, as `sync`."""
    sync(**where)


def _current_config() -> Config:
    run = process.here.latest
    return opening.pending_config if run is None else run.config


config = CurrentConfig(_current_config)
"""The current run's configuration; before init(), what the next run will start with."""
