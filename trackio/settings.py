"""Our own settings: one frozen value per process, read from the environment in this one place.

`docs/settings.md` shows the table below; a test fails when they part.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

MOST_FILE_BYTES = 64 << 20
SHORTEST_SAMPLE_SECONDS, LONGEST_SAMPLE_SECONDS = 0.1, 3600.0


class Settings(NamedTuple):
    """What the environment asks of us. `VARIABLES` says where each comes from and what it means."""

    data_dir: str = ""
    spool_dir: str = ""
    spool_bytes: int = 16 << 20
    spill_bytes: int = 1 << 30
    mode: str = "online"
    autostart: bool = True
    quiet: bool = False
    project: str = ""
    run_name: str = ""
    run_id: str = ""
    run_per_rank: bool = False
    idle_seconds: float = 600.0
    webhook_url: str = ""
    webhook_min_level: str = ""
    sampling: bool = True
    sample_seconds: float = 5.0
    sample_bytes: int = 1 << 30
    shared_dir: str = ""
    shared_file_bytes: int = MOST_FILE_BYTES
    shared_group: str = ""
    dataset: str = ""


class Variable(NamedTuple):
    """One setting's environment variables, the first that is set and not empty wins."""

    names: tuple[str, ...]
    read: Callable[[str], Any]
    about: str


def _text(text: str) -> str:
    return text


def _switch(text: str) -> bool:
    if text.lower() in ("1", "true", "yes", "on"):
        return True
    if text.lower() in ("0", "false", "no", "off"):
        return False
    raise ValueError("expected 0 or 1")


def _mib(text: str) -> int:
    value = _number(text, "expected a size in MiB")
    if not 0 <= value < 1 << 30:
        raise ValueError("expected a size in MiB")
    return int(value * (1 << 20))


def _number(text: str, otherwise: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(otherwise) from None


def _seconds(text: str) -> float:
    value = _number(text, "expected seconds")
    if not value >= 0:
        raise ValueError("expected seconds")
    return value


def _interval(text: str) -> float:
    value = _number(text, "expected seconds from 0.1 to 3600")
    if not SHORTEST_SAMPLE_SECONDS <= value <= LONGEST_SAMPLE_SECONDS:
        raise ValueError("expected seconds from 0.1 to 3600")
    return value


def _mode(text: str) -> str:
    if text.lower() not in ("online", "offline", "disabled"):
        raise ValueError("expected online, offline or disabled")
    return text.lower()


VARIABLES: dict[str, Variable] = {
    "data_dir": Variable(("TRACKIO_DIR",), _text, "Data folder. Default: `~/.local/share/trackio`."),
    "spool_dir": Variable(
        ("TRACKIO_SPOOL_DIR",), _text, "Where spools and the socket lie. Default: a tmpfs of the user's."
    ),
    "spool_bytes": Variable(
        ("TRACKIO_SPOOL_MIB",), _mib, "Most shared memory one process's spool grows to, in MiB. Default: 16."
    ),
    "spill_bytes": Variable(
        ("TRACKIO_SPILL_MIB",), _mib, "Most disk one process's unacked data may take, in MiB. Default: 1024."
    ),
    "shared_dir": Variable(
        ("TRACKIO_SHARED_DIR",),
        _text,
        "A folder that all hosts see: runs are copied there every minute, and read there on every host; `off`: none. "
        "Default: `hosts` in the data folder or in `~/.local/share/trackio`, if that outlives the store.",
    ),
    "shared_file_bytes": Variable(
        ("TRACKIO_SHARED_FILE_MIB",),
        _mib,
        "Files of values and artifacts up to this size, in MiB, are copied there too. Default: 64.",
    ),
    "shared_group": Variable(
        ("TRACKIO_SHARED_GROUP",),
        _text,
        "A group, by name or number, that may read these copies (files 0640, folders 2750). Default: nobody else.",
    ),
    "dataset": Variable(
        ("TRACKIO_DATASET_ID", "TRACKIO_DATASET_REPO"),
        _text,
        "A dataset on the Hugging Face Hub to upload runs to; or `hf://buckets/owner/name`.",
    ),
    "mode": Variable(("TRACKIO_MODE",), _mode, "`online`, `offline` (never uploads) or `disabled` (does nothing)."),
    "autostart": Variable(("TRACKIO_AUTOSTART",), _switch, "`0`: training processes never start a daemon. Default: 1."),
    "quiet": Variable(("TRACKIO_QUIET",), _switch, "`1`: no line when a run starts. Default: 0."),
    "project": Variable(
        ("TRACKIO_PROJECT", "TRACKIO_PROJECT_NAME", "EXPERIMENT_NAME"), _text, "Project. Default: `default`."
    ),
    "run_name": Variable(("TRACKIO_RUN_NAME",), _text, "The run's name. Default: a generated one."),
    "run_id": Variable(("TRACKIO_RUN_ID",), _text, "The run's id: processes that share it are one run."),
    "run_per_rank": Variable(("TRACKIO_RUN_PER_RANK",), _switch, "`1`: every rank is a run of its own. Default: 0."),
    "idle_seconds": Variable(
        ("TRACKIO_IDLE_SECONDS",),
        _seconds,
        "An autostarted daemon leaves after this long with nothing to do. Default: 600.",
    ),
    "webhook_url": Variable(
        ("TRACKIO_WEBHOOK_URL",), _text, "Where alerts are sent: Slack, Discord, or any that takes JSON."
    ),
    "webhook_min_level": Variable(
        ("TRACKIO_WEBHOOK_MIN_LEVEL",),
        _text,
        "`info`, `warn` or `error`: the least grave alert that is sent. Default: all.",
    ),
    "sampling": Variable(("TRACKIO_SAMPLING",), _switch, "`0`: the daemon samples neither GPUs nor host. Default: 1."),
    "sample_seconds": Variable(
        ("TRACKIO_SAMPLE_SECONDS",),
        _interval,
        "From sample to sample of GPUs and host, where a run asks for nothing else, in seconds from 0.1. Default: 5.",
    ),
    "sample_bytes": Variable(
        ("TRACKIO_SAMPLES_MIB",),
        _mib,
        "Most disk that a node's samples take, in MiB; then the oldest go. Default: 1024, a month of 8 GPUs, 64 ranks.",
    ),
}


def read(environ: Mapping[str, str], beneath: Mapping[str, str] | None = None) -> tuple[Settings, list[str]]:
    """The settings in `environ`, else in `beneath`, and a sentence for each that was not understood and keeps its
    default."""
    values: dict[str, Any] = {}
    problems: list[str] = []
    for setting, variable in VARIABLES.items():
        found = [texts[name] for texts in (environ, beneath or {}) for name in variable.names if texts.get(name)]
        if not found:
            continue
        try:
            values[setting] = variable.read(found[0])
        except ValueError as error:
            name = next(n for n in variable.names if found[0] in (environ.get(n), (beneath or {}).get(n)))
            problems.append(f"{name}={found[0]!r} is not understood ({error}); the default is used.")
    return Settings(**values), problems


def of_this_process() -> tuple[Settings, list[str]]:
    """`read` of this process's environment, and beneath it of the user's settings file."""
    in_file, problems = _of_file(_file(os.environ))
    settings, more = read(os.environ, in_file)
    return settings, problems + more


def _file(environ: Mapping[str, str]) -> str:
    base = environ.get("XDG_CONFIG_HOME", "")
    return os.path.join(base if os.path.isabs(base) else os.path.expanduser("~/.config"), "trackio", "settings.toml")


def _of_file(path: str) -> tuple[dict[str, str], list[str]]:
    """What a settings file says, as environment variables would; a sentence if it cannot be read."""
    try:
        with open(path, "rb") as file:
            import tomllib  # seldom there

            values = tomllib.load(file)
    except FileNotFoundError:
        return {}, []
    except (OSError, ValueError) as error:
        return {}, [f"{path} cannot be read ({error}); its settings are not used."]
    known = {name for variable in VARIABLES.values() for name in variable.names}
    named = {f"TRACKIO_{key.upper()}": value for key, value in values.items()}
    problems = [f"{path} has no setting to be called {name.removeprefix('TRACKIO_').lower()!r}." for name in named
                if name not in known]  # fmt: skip
    return {name: str(int(v) if isinstance(v, bool) else v) for name, v in named.items() if name in known}, problems
