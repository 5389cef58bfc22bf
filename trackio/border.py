"""The border to the user's process: whose an exception is, what a call was given, keywords that are ignored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trackio import voice
from trackio.values import short_repr

_TRIES = 3
_OURS = ("trackio", "threading")
"""packages whose code runs where nothing of the user's does"""


def is_ours(error: BaseException) -> bool:
    """Whether it was raised by our own code, or by what that calls of C: not by a signal handler that ran in the midst
    of it, whose exception is the user's."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    name = trace.tb_frame.f_globals.get("__name__", "") if trace is not None else ""
    return str(name).partition(".")[0] in _OURS


def warn_unknown(function: str, keywords: Mapping[str, object]) -> None:
    """Names keywords that are taken and ignored: by name only, since a value may be a token."""
    for name in keywords:
        voice.warn_once(f"{function} {name}", f"{function}() knows no {name!r}; it is ignored.")


def as_dict(metrics: Any, unknown: Mapping[str, object]) -> dict[Any, Any]:
    """What log() was given, as a dict that it may keep or only reads. Raises TypeError if it is no mapping."""
    if unknown:
        warn_unknown("log", unknown)
    if type(metrics) is dict:
        return metrics
    if metrics is None:
        return {}
    if not isinstance(metrics, Mapping):
        raise TypeError(f"log() takes a mapping of names to values, not a {type(metrics).__name__}")
    for _ in range(_TRIES):
        try:
            return dict(metrics)
        except Exception as error:  # noqa: BLE001 the user's type; another thread may be changing it
            problem = short_repr(error)
    voice.warn_once("log mapping", f"log() was given a mapping that cannot be read, and skipped it: {problem}")
    return {}
