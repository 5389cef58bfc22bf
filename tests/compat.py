"""What docs/compat.md says: upstream's names and wandb's, one by one. `tests/test_compat.py` holds it to the code."""

from __future__ import annotations

from test_differential import DIFFERENCES

from trackio import surface
from trackio.version import __upstream__

SAME = "same"

UPSTREAM = {
    "init": "takes every keyword; `dataset_id` or `bucket_id` is where the run is uploaded; `space_id` and "
    "`server_url` wait for these targets, `embed` for a dashboard; `auto_log_gpu` and `auto_log_cpu` are True if "
    "nothing is said, the intervals 5 s, and the smallest that a run on the node asks for samples",
    "log": "nested metrics are flattened with `/`, None is skipped, no key is reserved; also `data=` and `commit=`",
    "log_system": SAME,
    "log_gpu": "returns the node's newest sample, stores nothing: the node is sampled once, for all runs",
    "log_cpu": "as `log_gpu`",
    "log_artifact": "returns at once; the version is waited for where it is read",
    "use_artifact": "also `project/name:version`",
    "finish": "does nothing without a run; takes `exit_code` and `quiet`; waits for nothing unless `wait=` says so",
    "alert": "the daemon sends webhooks, and tries again for an hour; an unknown level counts as a warning",
    "AlertLevel": "also ordered: `AlertLevel.INFO < AlertLevel.ERROR`",
    "show": "prints what `trackio status` shows, and returns four times None: there is no dashboard yet",
    "sync": "uploads to `dataset_id` or `bucket_id`, else to the targets that the project has; waits at most `timeout` "
    "seconds and returns the target's URL. Nothing goes to a Space: with `space_id` it waits for nothing, returns None",
    "freeze": "says once that nothing is uploaded to Spaces yet, and returns None",
    "delete_project": "not while one of its runs is running",
    "import_csv": "into a project that exists too; column names are kept as they are",
    "import_tf_events": "by the tensorboard package; into a project that exists too",
    "save": "each file is kept under its content, and listed with the run: `files` in `get run --json`",
    "Artifact": "references other than `file://` are recorded, not fetched; no registry",
    "Settings": "takes any keyword; `init(settings=)` heeds `mode`, `project`, `run_name`, `run_id`",
    "Config": "our class of `trackio.config`; upstream's raises",
    "Image": "also floats from 0 to 1, tensors with channels first, figures of matplotlib",
    "Video": "GIF needs no ffmpeg; where there is none, MP4 and WebM become GIF, which `note` says",
    "Audio": "MP3 needs ffmpeg, else it is WAV, which `note` says; other integer types are scaled",
    "Html": "`data_is_not_path` is heeded; a path that is not there is taken as text",
    "Object3D": "what a file refers to is not looked for",
    "Table": "also `add_data`, `add_row`, `add_column`, `get_column`, `columns`, as wandb's",
    "Trace": SAME,
    "Histogram": "`num_bins=None` is 64; values that are not finite are counted in `non_finite`",
    "Markdown": SAME,
    "Api": "also `run()`, and `state`, `metrics` and `history()` of a run; no registries",
}
"""names of upstream's `__all__`: what differs"""

SUBMODULES = {
    "context_vars": "real ContextVars of the same names; `current_space_id` is None, since nothing goes to a Space",
    "utils.TRACKIO_DIR": "the data folder that the environment chooses",
    "sqlite_storage.SQLiteStorage": "absent: its store is another; read with `trackio.Api`, or `trackio get --json`",
    "run": "`trackio.run` is the current run or None, as wandb's; upstream's is a module",
    "__version__": f"above upstream's {__upstream__}, whose surface this is (`trackio.__upstream__`)",
}
"""attributes of submodules that callers use"""

COMMANDS = {
    "list spaces, freeze, bump": "nothing is uploaded to Spaces yet",
    "sync": "uploads to datasets and buckets on the Hub, and shows targets and how they stand",
    "list traces, get trace, get trace-summary": "a trace is a value of its metric: `get metric`",
    "list reports, get report": "a report is a value of its metric: `get metric`",
    "query project": "asks tables of rows, as uploads have them: `metrics(run, rank, step, time, metric, value, …)`",
    "config, skills, logbook, registry": "not built",
}
"""upstream's commands that are absent"""

WANDB = {
    "init": 'another call opens another run unless `reinit="return_previous"`; `reinit="create_new"` leaves earlier '
    "runs open; `entity`, `dir`, `save_code`, `sync_tensorboard` and the like are taken and ignored",
    "login": "does nothing and returns True",
    "run": "the current run, or None",
    "config": "one object before, during and after a run; `allow_val_change` is taken",
    "summary": "what is set in it; the last, least and greatest value of a metric are worked out when read",
    "log": "`step` may go back; `commit=False` keeps the counter; figures and data frames may be passed",
    "finish": SAME,
    "define_metric": "also `reduce=` over ranks; `hidden`, `overwrite` and `step_sync` are ignored",
    "alert": "`wait_duration` is ignored",
    "watch": "histograms of what is at hand when log() is called, so call it before gradients are zeroed; no graph",
    "unwatch": SAME,
    "save": "files are kept as they are at the call, whatever `policy` says",
    "Artifact": "`add_file`, `add_dir`, `add_reference`, `wait`, `download`; no `new_file`, `get_path`, `checkout`",
    "log_artifact": SAME,
    "use_artifact": SAME,
    "Table": "`data` is a list of maps; no joins, no typed columns",
    "Image": "`masks`, `boxes` and `classes` are ignored",
    "Video": SAME,
    "Audio": SAME,
    "Html": SAME,
    "Object3D": "points and files; no boxes",
    "Histogram": SAME,
    "Api": "`runs(project)`, `run(project, name)`: without an entity",
    "Settings": "`init` heeds `mode`, `project`, `run_name`, `run_id`",
    "util": "`generate_id`",
    "AlertLevel": SAME,
}
"""names of wandb's: what differs"""

RUN = (
    "`name` (may be set), `id`, `project`, `group`, `url` (None), `config`, `summary`, `tags`, `notes`, `job_type`, "
    "`step`, `resumed`, `dir`, `log`, `log_system`, `alert`, `save`, `log_artifact`, `use_artifact`, "
    "`define_metric`, `watch`, `unwatch`, `finish`, `get_url`, `project_name`"
)


def page() -> str:
    """docs/compat.md."""
    absent = {name: f"absent: {why}" for name, why in surface.ABSENT.items()}
    parts = [
        "# Coming from upstream, or from wandb\n\nScripts that say `import trackio`, or `import trackio as wandb`, run "
        "unchanged. This page says, name by name, what is the same, what differs and what is absent; it is made by "
        "`tests/compat.py`, which the tests hold against the package it is compared with. An absent name exists, and "
        "raises NotImplementedError with one sentence when it is used.\n",
        f"## Upstream {__upstream__}\n",
        _table("name", UPSTREAM | {n: w for n, w in absent.items() if n not in WANDB_ABSENT}),
        "## Attributes of modules\n", _table("name", SUBMODULES),
        "## Output of the commands\n\nThe same scripts and commands are run against both "
        "(`tests/test_differential.py`); all of what upstream prints as JSON is there and equal, but for:\n",
        _table("command and key", DIFFERENCES),
        "Times are those of the log() call; upstream gives all of a flush one.\n",
        "## Commands that are absent\n", _table("command", COMMANDS),
        "## wandb\n", _table("name", WANDB | {n: absent[n] for n in WANDB_ABSENT}),
        f"A run has {RUN}.\n",
    ]  # fmt: skip
    return "\n".join(parts)


WANDB_ABSENT = ("agent", "controller", "errors", "plot", "restore", "sweep")
"""of `surface.ABSENT`, those that are wandb's and not upstream's"""


def _table(head: str, rows: dict[str, str]) -> str:
    lines = [f"| {head} | |", "|---|---|", *(f"| `{name}` | {note} |" for name, note in rows.items())]
    return "\n".join(lines) + "\n"
