"""What the caller of init() asks for, in our words, upstream's or wandb's. Pure but for saying what is odd."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any, NamedTuple

from trackio import alerts, targets, voice
from trackio.border import warn_unknown
from trackio.configuration import as_mapping
from trackio.interrupts import hand_on
from trackio.names import HOST, MAX_NAME_CHARS
from trackio.settings import LONGEST_SAMPLE_SECONDS, SHORTEST_SAMPLE_SECONDS, Settings
from trackio.values import clean_text, is_given, key_text, short_repr, text_of, type_name

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


def nothing(project: Any, ours: Settings | None = None) -> Request:
    """A request of which only the project is known, and what the settings say."""
    name = _first(project, ours.project if ours else "") or "default"
    mode = ours.mode if ours else "disabled"
    return Request(_name(name, "project"), None, None, {}, "never", "", (None, None), mode)


def understood(
    project: Any, name: Any, group: Any, config: Any, resume: Any, mode: Any, others: Mapping[str, Any], ours: Settings
) -> Request:
    """The request behind init()'s arguments. Raises Misuse."""
    unknown = dict(others)
    wanted = as_mapping(unknown.pop("settings", None))
    project = _first(project, unknown.pop("project_name", None), wanted.get("project"), ours.project) or "default"
    aliases = (unknown.pop("experiment_name", None), unknown.pop("run_name", None), wanted.get("run_name"))
    asked_name = _name_or_none(_first(name, *aliases))
    asked_id = _first(unknown.pop("id", None), wanted.get("run_id"))
    webhook = _webhook(unknown.pop("webhook_url", None), unknown.pop("webhook_min_level", None), ours)
    about = {word: unknown.pop(word, None) for word in ("tags", "notes", "job_type")}
    reinit = unknown.pop("reinit", None)
    sampling = _sampling(unknown, wanted)
    target = _target(unknown, ours)
    config = _without(config, unknown.pop("config_exclude_keys", None), unknown.pop("config_include_keys", None))
    warn_unknown("init", {k: v for k, v in unknown.items() if k not in _UNUSED})
    run_name = asked_name or _name_or_none(_first(ours.run_name))
    how = _resume(resume)
    if how == "must" and run_name is None and not asked_id:
        raise Misuse("Must provide a run name when resume='must'")
    return Request(
        project=_name(project, "project"),
        name=run_name,
        group=None if group is None else text_of(group)[:_MOST_ABOUT_CHARS],
        config=config,
        resume=how,
        run_id=asked_id or _first(ours.run_id) or "",
        asked=(asked_name, asked_id),
        mode=_mode(mode if is_given(mode) else wanted.get("mode"), ours),
        reinit=_reinit(reinit),
        about={word: _about(value) for word, value in about.items() if is_given(value)},
        webhook=webhook,
        target=target,
        sampling=sampling,
    )


def _resume(resume: Any) -> str:
    """Raises Misuse."""
    if resume is None:
        return "never"
    if type_name(resume) in ("bool", "bool_"):  # Python's or numpy's
        return "allow" if is_given(resume) else "never"
    word = clean_text(resume) if isinstance(resume, str) else ""
    if word == "auto":
        return "allow"
    if word not in _RESUMES:
        raise Misuse(f"resume must be one of: 'must', 'allow', or 'never', not {short_repr(resume)}")
    return word


def _reinit(reinit: Any) -> str:
    if isinstance(reinit, str):
        reinit = clean_text(reinit)
    elif type(reinit) is not bool:
        return ""
    return str(_REINITS.get(reinit, reinit))


def _mode(mode: Any, ours: Settings) -> str:
    word = clean_text(mode) if isinstance(mode, str) else ""
    if mode is None or word in _MODES:
        return word or ours.mode
    if word != "shared":  # wandb's word for several writers of one run, which is how it is here
        voice.warn_once("mode", f"mode={short_repr(mode)} is none of {', '.join(_MODES)}; it is ignored.")
    return ours.mode


def _webhook(url: Any, least: Any, ours: Settings) -> alerts.Webhook:
    try:
        level = alerts.level_of(least if is_given(least) else ours.webhook_min_level or "info")
    except ValueError:
        voice.warn_once("webhook_min_level", f"webhook_min_level={short_repr(least)} is no level; all alerts are sent.")
        level = alerts.AlertLevel.INFO
    return alerts.Webhook(_first(url, ours.webhook_url), level)


def _target(asked: dict[str, Any], ours: Settings) -> tuple[str, bool | None, str | None]:
    """upstream's `dataset_id`, `bucket_id`, `private` and `hf_token`, taken out of `asked`."""
    dataset = _first(asked.pop("dataset_id", None), asked.pop("dataset_repo", None))
    bucket = _first(asked.pop("bucket_id", None))
    name, prefix = (bucket, targets.BUCKETS) if bucket and not dataset else (dataset or ours.dataset, targets.DATASETS)
    private, token = asked.pop("private", None), _first(asked.pop("hf_token", None))
    private = None if private is None else is_given(private)
    if bucket and dataset:
        voice.warn_once("targets", f"it is uploaded to {name}; to the bucket too: trackio sync --project P --to URL")
    try:
        return targets.url_of(name, prefix) if name else "", private, token
    except ValueError as error:
        voice.warn_once("target", f"{error}; the run is not uploaded.")
        return "", private, token


def _sampling(asked: dict[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """upstream's `auto_log_gpu`, `gpu_log_interval` and the same of the CPU, taken out of `asked`; `wanted` are wandb's
    settings."""
    off, every = is_given(wanted.get("x_disable_stats")), wanted.get("x_stats_sampling_interval")
    found: dict[str, Any] = {}
    for what in ("gpu", "cpu"):
        wants = asked.pop(f"auto_log_{what}", None)
        found[what] = False if off and wants is None else wants if wants is None else is_given(wants)
        seconds = asked.pop(f"{what}_log_interval", None)
        found[f"{what}_interval"] = _seconds(f"{what}_log_interval", every if seconds is None else seconds)
    return found


def _seconds(word: str, value: Any) -> float | None:
    if value is None:
        return None
    try:
        seconds = float.__float__(float(value))
        if not 0 < seconds < float("inf"):
            raise ValueError
    except Exception as error:  # noqa: BLE001 the user's type
        hand_on(error)
        voice.warn_once(word, f"{word}={short_repr(value)} is no number of seconds above 0; the default is used.")
        return None
    if not SHORTEST_SAMPLE_SECONDS <= seconds <= LONGEST_SAMPLE_SECONDS:
        seconds = min(max(seconds, SHORTEST_SAMPLE_SECONDS), LONGEST_SAMPLE_SECONDS)
        voice.warn_once(word, f"{word}={short_repr(value)} becomes {seconds:g}: samples are 0.1 to 3600 seconds apart.")
    return seconds


def _without(config: Any, left_out: Any, taken: Any) -> dict[str, Any]:
    """wandb's two ways to take only some of a configuration."""
    values = as_mapping(config)
    without, only = _keys(left_out), _keys(taken)
    return {k: v for k, v in values.items() if key_text(k) not in without and (not only or key_text(k) in only)}


def _keys(given: Any) -> set[str]:
    """The keys that an argument names: a text is one."""
    if not is_given(given):
        return set()
    if isinstance(given, str):
        return {clean_text(given)}
    try:
        return {key_text(key) for key in islice(given, _MOST_ABOUT_CHARS)}
    except Exception as error:  # noqa: BLE001 the user's type
        hand_on(error)
        voice.warn_once("config keys", f"{short_repr(given)} is not a list of configuration keys; it is ignored.")
        return set()


def _about(value: Any) -> Any:
    if not isinstance(value, (str, bytes)):
        try:
            return [text_of(item)[:MAX_NAME_CHARS] for item in islice(value, 100)]
        except Exception as error:  # noqa: BLE001 the user's type; most are no list of anything
            hand_on(error)
    return text_of(value)[:_MOST_ABOUT_CHARS]


def _first(*values: Any) -> str | None:
    """The first that is given, as text."""
    for value in values:
        if is_given(value) and (text := text_of(value)):
            return text
    return None


def _name_or_none(text: str | None) -> str | None:
    return _name(text, "run") if text else None


def _name(text: str, what: str) -> str:
    text = text.replace(HOST, "host")
    if len(text) > MAX_NAME_CHARS:
        voice.warn_once(f"long {what}", f"the {what} name is cut to {MAX_NAME_CHARS} characters.")
    return text[:MAX_NAME_CHARS]
