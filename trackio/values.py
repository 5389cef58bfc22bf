"""What users log, made plain: None, bool, int, float, str, and lists and maps of them. Pure.

The fast path of log() packs plain values as they are. Everything else comes here first, so no code of the
user's ever runs inside a pack: numpy and torch scalars, nested dicts, odd keys, ints beyond 64 bits, lone
surrogates. What cannot be stored is named, never guessed, and never costs the other keys of the call.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, TypeVar

from trackio.interrupts import hand_on

T = TypeVar("T")

are_plain = frozenset({float, int, bool, str}).issuperset
"""Whether all of these types are of values that can be packed as they are."""
_INT_MIN, _INT_MAX = -(1 << 63), (1 << 64) - 1
_MAX_DEPTH = 16
_MAX_REPR = 1000
_MOST_VALUES = 100_000
"""of one call or configuration value: what holds itself has no end"""

_known_names: set[str] = set()
are_known = _known_names.issuperset
"""Whether all of these were seen to be text: half as long as a look at each."""
_name_of = type.__dict__["__name__"]
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
    budget = Budget()
    for key, value in _flatten(metrics, "", 0, budget, left_out):
        try:
            if key in kept:
                raise Unstorable("another value of the call has that name")
            if (found := plain(value, 0, keep, budget)) is not None:
                kept[key] = found
        except Unstorable as error:
            why = str(error) or f"a value of type {type_name(value)} cannot be stored as a metric"
            left_out.append((key, why))
        except Exception as error:  # noqa: BLE001 the user's types
            hand_on(error)
            left_out.append((key, f"its value raises {type_name(error)}"))
    return kept, left_out


class Budget:
    """How many values may still be looked at, and inside of which we are."""

    __slots__ = ("inside", "keys", "left")

    def __init__(self) -> None:
        self.keys = self.left = _MOST_VALUES
        self.inside: set[int] = set()

    def spend(self, values: int) -> None:
        """So many more. Raises Unstorable."""
        self.left -= values
        if self.left < 0:
            raise Unstorable(f"what was logged with it is more than {_MOST_VALUES:,} values")

    def first(self, values: Iterable[T]) -> list[T]:
        """As many as may be looked at."""
        some = list(islice(values, self.left))
        self.left -= len(some)
        return some


def _flatten(
    metrics: Mapping[Any, Any], prefix: str, depth: int, budget: Budget, left_out: list[tuple[str, str]]
) -> Iterator[tuple[str, Any]]:
    if id(metrics) in budget.inside:
        left_out.append((prefix.rstrip("/"), "it holds itself"))
        return
    budget.inside.add(id(metrics))
    try:
        items = list(islice(metrics.items(), budget.keys + 1))
    except Exception as error:  # noqa: BLE001 the user's types
        hand_on(error)
        left_out.append((prefix.rstrip("/") or "a call", f"it raises {type_name(error)}"))
        return
    for key, value in items:
        name = prefix + key_text(key)
        if not budget.keys:
            left_out.append((name, f"with what comes after it the call has more than {_MOST_VALUES:,} keys"))
            break
        budget.keys -= 1
        if is_mapping(value) and depth < _MAX_DEPTH:
            yield from _flatten(value, name + "/", depth + 1, budget, left_out)
        else:
            yield name, value
    budget.inside.discard(id(metrics))


def is_mapping(value: Any) -> bool:
    """Whether it says that it is one; never raises."""
    try:
        return isinstance(value, Mapping)
    except Exception as error:  # noqa: BLE001 the user's `__class__`
        hand_on(error)
        return False


def plain(value: Any, depth: int = 0, keep: Keep | None = None, budget: Budget | None = None) -> Any:
    """The plain form of `value`. Raises Unstorable, or what the user's type raises."""
    if value is None or type(value) is bool or type(value) is float:
        return value
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, bool):
        return bool(value)
    if isinstance(value, int):
        return _plain_int(int.__int__(value))  # of a subclass too, whatever its own method does
    if isinstance(value, float):
        return float.__float__(value)
    if depth < _MAX_DEPTH and isinstance(value, (list, tuple)):
        budget = budget or Budget()
        items = list(islice(value, budget.left + 1))  # another thread may be changing it
        budget.spend(len(items))
        return [plain(v, depth + 1, keep, budget) for v in items]
    if depth < _MAX_DEPTH and isinstance(value, Mapping):
        budget = budget or Budget()
        pairs = list(islice(value.items(), budget.left + 1))
        budget.spend(len(pairs))
        return {key_text(k): plain(v, depth + 1, keep, budget) for k, v in pairs}
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
    """numpy and torch scalars, and other objects that are one number; arrays of one element included. A masked one is
    None."""
    if _is_masked(value):
        return None
    item = getattr(value, "item", None)
    if callable(item):
        try:
            inner = item()
        except Exception as error:
            hand_on(error)
            raise Unstorable from error
        if inner is not value and not hasattr(inner, "item"):
            return plain(inner, depth + 1)
        return plain(float(inner), depth + 1) if hasattr(inner, "__float__") else _refuse()
    if hasattr(type(value), "__float__"):
        try:
            return float.__float__(float(value))
        except Exception as error:
            hand_on(error)
            raise Unstorable from error
    return _refuse()


def _is_masked(value: Any) -> bool:
    """Whether it is one element of numpy's that is marked as missing."""
    ma = sys.modules.get("numpy.ma")
    if ma is None or not isinstance(value, ma.MaskedArray):
        return False
    return value.size == 1 and bool(ma.getmaskarray(value).all())


def _refuse() -> Any:
    raise Unstorable


def key_text(key: Any) -> str:
    """A key as text."""
    return clean_text(key) if issubclass(type(key), str) else short_repr(key)


def clean_text(text: str) -> str:
    """`text` with lone surrogates, which UTF-8 cannot hold, written as escapes. Of a subclass of str, what it holds."""
    text = str.__str__(text)
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode()
    return text


def text_of(value: Any) -> str:
    """Whatever it is as text that UTF-8 can hold; never raises."""
    try:
        return clean_text(value if issubclass(type(value), str) else str(value))
    except Exception as error:  # noqa: BLE001 the user's types
        hand_on(error)
        return short_repr(value)


def is_given(value: Any) -> bool:
    """Whether an argument is true; one that cannot say (an array, a proxy) is. Never raises."""
    try:
        return bool(value)
    except Exception as error:  # noqa: BLE001 the user's types
        hand_on(error)
        return True


def type_name(value: Any) -> str:
    """The name of its type, whatever its metaclass does."""
    return clean_text(_name_of.__get__(type(value)))


def short_repr(value: Any) -> str:
    """repr(), bounded and encodable, whatever the type does."""
    try:
        text = str.__str__(repr(value))
    except Exception as error:  # noqa: BLE001 the user's __repr__
        hand_on(error)
        text = f"<{type_name(value)}>"
    return clean_text(text if len(text) <= _MAX_REPR else text[: _MAX_REPR - 1] + "…")


def pairs_of(mapping: Mapping[Any, Any], most: int = _MOST_VALUES) -> list[tuple[Any, Any]]:
    """Its keys and values; a value that cannot be read is what stands there unresolved (OmegaConf's `???`), or a text
    that says so. Raises what the user's type raises if it cannot even tell its keys."""
    try:
        return list(islice(mapping.items(), most))
    except Exception as error:  # noqa: BLE001 the user's types
        hand_on(error)
    return [(key, _read(mapping, key)) for key in islice(mapping, most)]


def _read(container: Any, key: Any) -> Any:
    try:
        return container[key]
    except Exception as error:  # noqa: BLE001 the user's types
        hand_on(error)
        raw = _unresolved(container)
        try:
            return raw[key]
        except (KeyError, IndexError, TypeError):
            return f"<not readable: {type_name(error)}>"


def _unresolved(value: Any) -> Any:
    """What an object of OmegaConf's holds, as it was written; None for any other."""
    omegaconf = sys.modules.get("omegaconf")
    try:
        if omegaconf is not None and omegaconf.OmegaConf.is_config(value):
            return omegaconf.OmegaConf.to_container(value, resolve=False)
    except Exception as error:  # noqa: BLE001 an odd one
        hand_on(error)
    return None


def plain_config(value: Any) -> Any:
    """A configuration value as plain data: `to_dict`, dataclass, pydantic, OmegaConf, Namespace, then repr.

    Never raises; what is bottomless or odd ends as its bounded repr, and of what is very long the beginning is left.
    """
    return _plain_config(value, 0, Budget())


def _plain_config(value: Any, depth: int, budget: Budget) -> Any:
    if id(value) in budget.inside:
        return f"<{type_name(value)} that holds itself>"
    budget.inside.add(id(value))
    try:
        if depth >= _MAX_DEPTH:
            return short_repr(value)
        if isinstance(value, Mapping):
            pairs = budget.first(pairs_of(value, budget.left))
            return {key_text(k): _plain_config(v, depth + 1, budget) for k, v in pairs}
        if isinstance(value, (list, tuple, set, frozenset)):
            return [_plain_config(v, depth + 1, budget) for v in budget.first(value)]
        try:
            return plain(value, 0, None, budget)
        except Unstorable:
            expanded = _expanded(value)
        return short_repr(value) if expanded is None else _plain_config(expanded, depth + 1, budget)
    except Exception as error:  # noqa: BLE001 the user's types
        hand_on(error)
        return short_repr(value)
    finally:
        budget.inside.discard(id(value))


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
        if _unresolved(value) is not None:  # a list of OmegaConf's: its maps are mappings
            return [_read(value, place) for place in range(len(value))]
        attributes = vars(value)
    except Exception as error:  # noqa: BLE001 the user's types
        hand_on(error)
        return None
    return attributes if type_name(value) in ("Namespace", "SimpleNamespace") else None


def _dataclass_fields(value: Any) -> list[str]:
    """The field names of a dataclass's instance. Without that module imported there are none."""
    dataclasses = sys.modules.get("dataclasses")
    if dataclasses is None or not dataclasses.is_dataclass(value):
        return []
    return [f.name for f in dataclasses.fields(value)]
