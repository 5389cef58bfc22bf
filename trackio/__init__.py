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

from trackio import context_vars, gauges, opening, process, surface, values, voice
from trackio.alerts import AlertLevel
from trackio.configuration import Config, Current, Summary
from trackio.runs import Run
from trackio.version import __upstream__, __version__

__all__ = [
    "AlertLevel",
    "Config",
    "Run",
    "__upstream__",
    "__version__",
    "alert",
    "config",
    "context_vars",
    "define_metric",
    "finish",
    "init",
    "log",
    "log_artifact",
    "log_cpu",
    "log_gpu",
    "log_system",
    "login",
    "save",
    "summary",
    "use_artifact",
    *surface.ELSEWHERE,
    *surface.ABSENT,
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
    The node is sampled for it every 5 seconds; `auto_log_gpu=False` and `auto_log_cpu=False` leave that out of this
    run, `gpu_log_interval` and `cpu_log_interval` ask for other seconds.
    `id`, `tags`, `notes`, `job_type`, `reinit`, `settings`, `webhook_url` and `webhook_min_level` are wandb's
    and upstream's; `project_name`, `experiment_name` and `run_name` are taken too; unknown keywords are named once.
    Takes a few milliseconds; with `resume="allow"` up to 50 more, with `"must"`, or where the run may be another host's
    (`TRACKIO_SHARED_DIR`), up to some seconds.
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


def finish(
    exit_code: int | None = None, quiet: bool | None = None, *, wait: str = "", timeout: float = 600.0
) -> None:  # fmt: skip
    """Ends the current run: `Run.finish`. Does nothing without one."""
    run = _current()
    if run is not None:
        run.finish(exit_code, quiet, wait=wait, timeout=timeout)


def define_metric(name: str, step_metric: str | None = None, **options: Any) -> None:
    """Says how metrics are read: `Run.define_metric`. Raises RuntimeError before any `init()`."""
    _needed("define_metric").define_metric(name, step_metric, **options)


def alert(
    title: str, text: str | None = None, level: AlertLevel | str = AlertLevel.WARN, webhook_url: str | None = None,
    **others: Any,
) -> None:  # fmt: skip
    """Says that something wants attention: `Run.alert`. Raises RuntimeError before any `init()`."""
    _needed("alert").alert(title, text, level, webhook_url=webhook_url, **others)


def log_system(metrics: Mapping[str, Any]) -> None:
    """Records metrics of the machine, which have no step: `Run.log_system`. Raises RuntimeError before any `init()`."""
    _needed("log_system").log_system(metrics)


def log_gpu(run: Run | None = None, device: int | None = None) -> dict[str, Any]:
    """The newest sample of the GPUs that this process may use, or of one, by CUDA's index: `gpu/0/power` in W and what
    else docs/system-metrics.md names. Empty where there is none. Stores nothing: the node is sampled, once, while a
    run lives. Raises RuntimeError before any `init()`."""
    _needed("log_gpu", run)
    return gauges.gpus(device)


def log_cpu(run: Run | None = None) -> dict[str, Any]:
    """The newest sample of the host and of this process, as `log_gpu`. Raises RuntimeError before any `init()`."""
    _needed("log_cpu", run)
    return gauges.host()


def log_artifact(artifact_or_path: Any, *names: Any, **options: Any) -> Any:
    """Logs an artifact, a file or a folder: `Run.log_artifact`. Raises RuntimeError before any `init()`."""
    return _needed("log_artifact").log_artifact(artifact_or_path, *names, **options)


def use_artifact(artifact_or_name: Any, type: str | None = None, **options: Any) -> Any:
    """A logged artifact, noted as used: `Run.use_artifact`. Raises RuntimeError before any `init()`."""
    return _needed("use_artifact").use_artifact(artifact_or_name, type, **options)


def save(glob_str: Any, base_path: Any = None, policy: str | None = None, *, project: str | None = None) -> str:
    """Keeps the files that a path or pattern names with the current run: `Run.save`. Returns the folder that they come
    to lie in. Raises ValueError if there is none, RuntimeError before any `init()`."""
    run = _needed("save")
    if project is not None and values.text_of(project) != run.project:
        voice.warn_once("save project", f"save() keeps files with the current run, whose project is {run.project!r}.")
    return run.save(glob_str, base_path, policy)


def login(*args: Any, **kwargs: Any) -> bool:
    """Does nothing: nobody has to log in to log. Returns True, as wandb's does."""
    return True


def _current() -> Run | None:
    return _current_run() or process.here.latest


def _needed(function: str, run: Run | None = None) -> Run:
    run = run if run is not None else _current()
    if run is None:
        raise RuntimeError(f"Call trackio.init() before trackio.{function}().")
    return run


def _current_config() -> Config:
    run = process.here.latest
    return opening.pending_config if run is None else run.config


config = Current(_current_config)
"""The current run's configuration; before init(), what the next run will start with."""


def _current_summary() -> Summary:
    return _needed("summary").summary


summary = Current(_current_summary)
"""The current run's summary. Using it raises RuntimeError before any init()."""


def __getattr__(name: str) -> Any:
    """`run`, None before init() and after finish(), and every name that is loaded at its first use."""
    if name == "run":
        run = _current()
        return None if run is None or run.is_finished else run
    found = surface.find(name)
    if name in surface.ELSEWHERE:
        globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "run", "util"})
