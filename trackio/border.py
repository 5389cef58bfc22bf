"""The border to the user's process: which exceptions cross it, what a call was given, keywords that are ignored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from trackio import voice
from trackio.interrupts import hand_on
from trackio.values import is_mapping, pairs_of, short_repr, type_name

P = ParamSpec("P")
R = TypeVar("R")
_TRIES = 3


def never_raises(otherwise: R, *misuse: type[Exception]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a public function skip what it cannot do, with one line, and return `otherwise`.

    What a signal handler raises passes, and so do the exceptions of `misuse`, which docs/semantics.md lists.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return function(*args, **kwargs)
            except misuse:
                raise
            except Exception as error:  # noqa: BLE001 the border to the user's process
                hand_on(error)
                name = function.__name__.strip("_")
                voice.warn_once(f"{name} {type_name(error)}", f"{name}() failed and was skipped: {short_repr(error)}")
                return otherwise

        return guarded

    return decorate


def raises_only(*misuse: type[Exception]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a public function raise nothing but these, which docs/semantics.md lists: whatever else the values that it
    is given raise becomes a ValueError. What a signal handler raises passes."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return function(*args, **kwargs)
            except misuse:
                raise
            except Exception as error:
                hand_on(error)
                name = function.__qualname__.removesuffix(".__init__")
                raise ValueError(f"{name} cannot use what it was given: {short_repr(error)}") from error

        return guarded

    return decorate


def seconds_of(value: Any, what: str, otherwise: float) -> float:
    """A number of seconds of any type of number; anything else is named once, and `otherwise` is meant."""
    try:
        seconds = float.__float__(float(value))
        if seconds == seconds:
            return seconds
    except Exception as error:  # noqa: BLE001 the user's type
        hand_on(error)
    voice.warn_once(what, f"{what}={short_repr(value)} is not a number of seconds; {otherwise:g} is used.")
    return otherwise


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
    if not is_mapping(metrics):
        raise TypeError(f"log() takes a mapping of names to values, not a {type_name(metrics)}")
    for _ in range(_TRIES):
        try:
            return dict(metrics)
        except Exception as error:  # noqa: BLE001 the user's type; another thread may be changing it
            hand_on(error)
            problem = short_repr(error)
    try:
        return dict(pairs_of(metrics))
    except Exception as error:  # noqa: BLE001 the user's type
        hand_on(error)
    voice.warn_once("log mapping", f"log() was given a mapping that cannot be read, and skipped it: {problem}")
    return {}
