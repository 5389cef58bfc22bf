"""What users log, made plain: None, bool, int, float, str, and lists and maps of them. Pure.

The fast path of log() packs plain values as they are. Everything else comes here first, so no code of the
user's ever runs inside a pack: numpy and torch scalars, nested dicts, odd keys, ints beyond 64 bits, lone
surrogates. What cannot be stored is named, never guessed, and never costs the other keys of the call.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

are_plain = frozenset({float, int, bool, str}).issuperset
"""Whether all of these types are of values that can be packed as they are."""
_INT_MIN, _INT_MAX = -(1 << 63), (1 << 64) - 1
_MAX_DEPTH = 16
_MAX_REPR = 1000

_known_names: set[str] = set()
are_known = _known_names.issuperset
"""Whether all of these were seen to be text: half as long as a look at each."""
_MOST_KNOWN_NAMES = 10_000


Keep = Callable[[Any], Any]
"""Gives the plain form of media, tables and figures, whose files it keeps; None for what it does not know. May raise
Unstorable."""


class Unstorable(Exception):
    """A value that has no plain form; its text says why, or is empty where the type alone does."""


def are_names(metrics: Mapping[Any, Any]) -> bool:
    """Whether every key is text; such names are known from then on."""
    try:
        "".join(metrics)  # the quickest way to ask
    except TypeError:
        return False
    if len(_known_names) < _MOST_KNOWN_NAMES:
        _known_names.update(metrics)
    return True


def plain_metrics(metrics: Mapping[Any, Any], keep: Keep | None = None) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Flattens nested maps with `/`, drops None, resolves scalars, has media kept.

    Returns the storable metrics and, for each value left out, its key and why.
    """
    kept: dict[str, Any] = {}
    left_out: list[tuple[str, str]] = []
    for key, value in _flatten(metrics, "", 0):
        if value is None:
            continue
        try:
            kept[key] = plain(value, 0, keep)
        except Unstorable as error:
            why = str(error) or f"a value of type {type(value).__name__} cannot be stored as a metric"
            left_out.append((key, why))
    return kept, left_out


def _flatten(metrics: Mapping[Any, Any], prefix: str, depth: int) -> Iterator[tuple[str, Any]]:
    for key, value in list(metrics.items()):
        name = prefix + clean_text(key if isinstance(key, str) else short_repr(key))
        if isinstance(value, Mapping) and depth < _MAX_DEPTH:
            yield from _flatten(value, name + "/", depth + 1)
        else:
            yield name, value


def plain(value: Any, depth: int = 0, keep: Keep | None = None) -> Any:
    """The plain form of `value`. Raises Unstorable."""
    if value is None or type(value) is bool or type(value) is float:
        return value
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, bool):
        return bool(value)
    if isinstance(value, int):
        return _plain_int(int(value))
    if isinstance(value, float):
        return float(value)
    if depth < _MAX_DEPTH and isinstance(value, (list, tuple)):
        return [plain(v, depth + 1, keep) for v in value]
    if depth < _MAX_DEPTH and isinstance(value, Mapping):
        return {_key(k): plain(v, depth + 1, keep) for k, v in value.items()}
    try:
        return _plain_scalar(value, depth)
    except Unstorable:
        if keep is not None and (kept := keep(value)) is not None:
            return kept
        raise


def _plain_int(value: int) -> int | float:
    """Ints that msgpack holds stay ints; beyond 64 bits the nearest float, infinite past its range."""
    if _INT_MIN <= value <= _INT_MAX:
        return value
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _plain_scalar(value: Any, depth: int) -> Any:
    """numpy and torch scalars, and other objects that are one number; arrays of one element included."""
    item = getattr(value, "item", None)
    if callable(item):
        try:
            inner = item()
        except Exception as error:
            raise Unstorable from error
        if inner is not value and not hasattr(inner, "item"):
            return plain(inner, depth + 1)
        return plain(float(inner), depth + 1) if hasattr(inner, "__float__") else _refuse()
    if hasattr(type(value), "__float__"):
        try:
            return float(value)
        except Exception as error:
            raise Unstorable from error
    return _refuse()


def _refuse() -> Any:
    raise Unstorable


def _key(key: Any) -> str:
    return clean_text(key) if isinstance(key, str) else short_repr(key)


def clean_text(text: str) -> str:
    """`text` with lone surrogates, which UTF-8 cannot hold, written as escapes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode()
    return str(text)


def short_repr(value: Any) -> str:
    """repr(), bounded and encodable, whatever the type does."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 the user's __repr__
        text = f"<{type(value).__name__}>"
    return clean_text(text if len(text) <= _MAX_REPR else text[: _MAX_REPR - 1] + "…")


def plain_config(value: Any, depth: int = 0) -> Any:
    """A configuration value as plain data: `to_dict`, dataclass, pydantic, OmegaConf, Namespace, then repr.

    Never raises; what is bottomless or odd ends as its bounded repr.
    """
    try:
        return plain(value)
    except Unstorable:
        pass
    except Exception:  # noqa: BLE001 the user's types
        return short_repr(value)
    if depth >= _MAX_DEPTH:
        return short_repr(value)
    if isinstance(value, Mapping):
        return {_key(k): plain_config(v, depth + 1) for k, v in list(value.items())}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain_config(v, depth + 1) for v in value]
    expanded = _expanded(value)
    if expanded is None:
        return short_repr(value)
    return plain_config(expanded, depth + 1)


def _expanded(value: Any) -> Mapping[Any, Any] | list[Any] | None:
    """The mapping or list behind a configuration object, by the ways such objects offer."""
    if isinstance(value, type):
        return None
    try:
        if (fields := _dataclass_fields(value)) and not callable(getattr(value, "to_dict", None)):
            return {name: getattr(value, name) for name in fields}
        for way in ("to_dict", "model_dump", "to_container"):
            method = getattr(value, way, None)
            if callable(method) and isinstance(got := method(), (Mapping, list)):
                return got
        if type(value).__module__.startswith("omegaconf"):
            return {k: value[k] for k in value} if hasattr(value, "keys") else list(value)
        attributes = vars(value)
    except Exception:  # noqa: BLE001 the user's types
        return None
    return attributes if type(value).__name__ in ("Namespace", "SimpleNamespace") else None


def _dataclass_fields(value: Any) -> list[str]:
    """The field names of a dataclass's instance. Without that module imported there are none."""
    dataclasses = sys.modules.get("dataclasses")
    if dataclasses is None or not dataclasses.is_dataclass(value):
        return []
    return [f.name for f in dataclasses.fields(value)]
