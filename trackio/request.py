"""What the caller of init() asks for, in our words, upstream's or wandb's. Pure but for saying what is odd."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from trackio import alerts, targets, voice
from trackio.border import warn_unknown
from trackio.configuration import as_mapping
from trackio.names import HOST, MAX_NAME_CHARS
from trackio.settings import LONGEST_SAMPLE_SECONDS, SHORTEST_SAMPLE_SECONDS, Settings
from trackio.values import clean_text, short_repr

_RESUMES = ("never", "allow", "must")
_MODES = ("online", "offline", "disabled")
_REINITS = {True: "finish_previous", False: "return_previous", None: "", "default": ""}
_MOST_ABOUT_CHARS = 10_000
_UNUSED = frozenset(
    (
        "space_id server_url embed trackio_url trackio_token monitoring_mode dir entity save_code "
        "allow_val_change force anonymous magic tensorboard sync_tensorboard monitor_gym"
    ).split()
)
"""Words of upstream, wandb and earlier trackers that are taken without a word; what they ask for is not
there yet, or goes without saying."""


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
    mode: str = "online"
    reinit: str = ""
    """what becomes of an open run: it is finished, returned (`return_previous`) or left open (`create_new`)"""
    about: Mapping[str, Any] = {}
    """tags, notes and the kind of job, for those who read"""
    webhook: alerts.Webhook = alerts.NO_WEBHOOK
    target: tuple[str, bool | None, str | None] = ("", None, None)
    """where it is uploaded to (a URL, or empty), whether it is to be private, and a token"""
    sampling: Mapping[str, Any] = {}
    """what the run wants of the node's sampler: `gpu` and `cpu` (None: as is the rule), and at which intervals"""


def nothing(project: Any) -> Request:
    """A request of which only the project is known."""
    return Request(str(project), None, None, {}, "never", "", (None, None))


def understood(
    project: Any, name: Any, group: Any, config: Any, resume: Any, mode: Any, others: Mapping[str, Any], ours: Settings
) -> Request:
    """The request behind init()'s arguments. Raises Misuse."""
    unknown = dict(others)
    wanted = as_mapping(unknown.pop("settings", None))
    project = project or unknown.pop("project_name", None) or wanted.get("project") or ours.project or "default"
    aliases = (unknown.pop("experiment_name", None), unknown.pop("run_name", None), wanted.get("run_name"))
    asked_name = _name_or_none(name or next((a for a in aliases if a), None))
    asked_id = _text_or_none(unknown.pop("id", None) or wanted.get("run_id"))
    webhook = _webhook(unknown.pop("webhook_url", None), unknown.pop("webhook_min_level", None), ours)
    about = {word: unknown.pop(word, None) for word in ("tags", "notes", "job_type")}
    reinit = unknown.pop("reinit", None)
    sampling = _sampling(unknown, wanted)
    target = _target(unknown, ours)
    config = _without(config, unknown.pop("config_exclude_keys", None), unknown.pop("config_include_keys", None))
    warn_unknown("init", {k: v for k, v in unknown.items() if k not in _UNUSED})
    name = asked_name or _name_or_none(ours.run_name)
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
        config=config,
        resume=resume,
        run_id=asked_id or _text_or_none(ours.run_id) or "",
        asked=(asked_name, asked_id),
        mode=_mode(mode or wanted.get("mode"), ours),
        reinit=str(_REINITS.get(reinit, reinit) if isinstance(reinit, (str, bool, type(None))) else ""),
        about={word: _about(value) for word, value in about.items() if value},
        webhook=webhook,
        target=target,
        sampling=sampling,
    )


def _mode(mode: Any, ours: Settings) -> str:
    if mode is None or mode in _MODES:
        return mode or ours.mode
    if mode != "shared":  # wandb's word for several writers of one run, which is how it is here
        voice.warn_once("mode", f"mode={short_repr(mode)} is none of {', '.join(_MODES)}; it is ignored.")
    return ours.mode


def _webhook(url: Any, least: Any, ours: Settings) -> alerts.Webhook:
    try:
        level = alerts.level_of(least or ours.webhook_min_level or "info")
    except ValueError:
        voice.warn_once("webhook_min_level", f"webhook_min_level={short_repr(least)} is no level; all alerts are sent.")
        level = alerts.AlertLevel.INFO
    return alerts.Webhook(_text_or_none(url or ours.webhook_url), level)


def _target(asked: dict[str, Any], ours: Settings) -> tuple[str, bool | None, str | None]:
    """upstream's `dataset_id`, `bucket_id`, `private` and `hf_token`, taken out of `asked`."""
    datasets = (asked.pop("dataset_id", None), asked.pop("dataset_repo", None))
    bucket = asked.pop("bucket_id", None)
    dataset = next((name for name in datasets if name), None)
    name, prefix = (bucket, targets.BUCKETS) if bucket and not dataset else (dataset or ours.dataset, targets.DATASETS)
    private, token = asked.pop("private", None), _text_or_none(asked.pop("hf_token", None))
    if bucket and dataset:
        voice.warn_once("targets", f"it is uploaded to {name}; to the bucket too: trackio sync --project P --to URL")
    try:
        return targets.url_of(str(name), prefix) if name else "", private, token
    except ValueError as error:
        voice.warn_once("target", f"{error}; the run is not uploaded.")
        return "", private, token


def _sampling(asked: dict[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """upstream's `auto_log_gpu`, `gpu_log_interval` and the same of the CPU, taken out of `asked`; `wanted` are wandb's
    settings."""
    off, every = bool(wanted.get("x_disable_stats")), wanted.get("x_stats_sampling_interval")
    found: dict[str, Any] = {}
    for what in ("gpu", "cpu"):
        wants = asked.pop(f"auto_log_{what}", None)
        found[what] = False if off and wants is None else wants if wants is None else bool(wants)
        seconds = asked.pop(f"{what}_log_interval", None)
        found[f"{what}_interval"] = _seconds(f"{what}_log_interval", every if seconds is None else seconds)
    return found


def _seconds(word: str, value: Any) -> float | None:
    if value is None:
        return None
    try:
        seconds = float(value)
        if not 0 < seconds < float("inf"):
            raise ValueError
    except (TypeError, ValueError):
        voice.warn_once(word, f"{word}={short_repr(value)} is no number of seconds above 0; the default is used.")
        return None
    if not SHORTEST_SAMPLE_SECONDS <= seconds <= LONGEST_SAMPLE_SECONDS:
        seconds = min(max(seconds, SHORTEST_SAMPLE_SECONDS), LONGEST_SAMPLE_SECONDS)
        voice.warn_once(word, f"{word}={short_repr(value)} becomes {seconds:g}: samples are 0.1 to 3600 seconds apart.")
    return seconds


def _without(config: Any, left_out: Any, taken: Any) -> dict[str, Any]:
    """wandb's two ways to take only some of a configuration."""
    values = as_mapping(config)
    return {k: v for k, v in values.items() if k not in (left_out or ()) and (not taken or k in taken)}


def _about(value: Any) -> Any:
    if isinstance(value, (list, tuple, set, frozenset)):
        return [clean_text(str(item))[:MAX_NAME_CHARS] for item in list(value)[:100]]
    return clean_text(str(value))[:_MOST_ABOUT_CHARS]


def _name_or_none(value: Any) -> str | None:
    return _name(value, "run") if value else None


def _text_or_none(value: Any) -> str | None:
    return clean_text(str(value)) if value else None


def _name(value: Any, what: str) -> str:
    text = clean_text(str(value)).replace(HOST, "host")
    if len(text) > MAX_NAME_CHARS:
        voice.warn_once(f"long {what}", f"the {what} name is cut to {MAX_NAME_CHARS} characters.")
    return text[:MAX_NAME_CHARS]
