"""`run.config`, `trackio.config`, `run.summary`: mappings with attribute access that tell the run what changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from typing import Any

from trackio.border import never_raises
from trackio.interrupts import hand_on
from trackio.values import is_mapping, key_text, pairs_of, plain_config, short_repr

_CONTROL_WORDS = frozenset({"allow_val_change"})
"""Words that wandb's `update` takes beside values: readable afterwards, never stored."""
_PLAIN_KEYS = frozenset({int, float, bool, type(None)})
_DEFAULTS = ("project_name", "experiment_name")


class Told(MutableMapping[str, Any]):
    """What the user tells of a run. Values read back as they were set; what is stored is their plain form."""

    def __init__(self, defaults: Mapping[str, Any] | None = None) -> None:
        object.__setattr__(self, "_values", as_mapping(defaults))
        object.__setattr__(self, "_set", {})
        object.__setattr__(self, "_on_change", None)

    def _bind(self, on_change: Callable[[dict[str, Any]], None]) -> None:
        """From now on `on_change` gets the plain form of what is set."""
        object.__setattr__(self, "_on_change", on_change)

    @never_raises(None)
    def _change(self, pairs: Iterable[tuple[Any, Any]]) -> None:
        stored: dict[str, Any] = {}
        for key, value in pairs:
            name = key_text(key)
            key = _usable(key, name)
            self._values[key] = self._set[key] = value
            if name not in _CONTROL_WORDS:
                stored[name] = plain_config(value)
        if self._on_change is not None and stored:
            self._on_change(stored)

    def __getitem__(self, key: str) -> Any:
        return self._values[_usable(key, key_text(key))]

    def __setitem__(self, key: str, value: Any) -> None:
        self._change([(key, value)])

    def __delitem__(self, key: str) -> None:
        key = _usable(key, key_text(key))
        del self._values[key]
        self._set.pop(key, None)
        if self._on_change is not None:
            self._on_change({key_text(key): None})

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._values))

    def __len__(self) -> int:
        return len(self._values)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        try:
            return self._values[name]
        except KeyError:
            raise AttributeError(f"the {type(self).__name__.lower()} has no {name!r}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        self._change([(name, value)])

    def __delattr__(self, name: str) -> None:
        del self[name]

    def update(self, *args: Any, **kwargs: Any) -> None:
        """As `dict.update`; objects that hold a configuration (`Namespace`, dataclass) are taken too. Raises nothing:
        a value that cannot be read is named in its place."""
        for source in args:
            self._change(as_mapping(source).items())
        self._change(kwargs.items())

    def as_dict(self) -> dict[str, Any]:
        """All of it, as wandb has it."""
        return dict(self._values)

    def __repr__(self) -> str:
        try:
            return repr(self._values)
        except Exception as error:  # noqa: BLE001 the user's values
            hand_on(error)
            return (
                "{" + ", ".join(f"{short_repr(key)}: {short_repr(value)}" for key, value in self._values.items()) + "}"
            )

    def __reduce__(self) -> Any:
        """A copy, also a deep or a pickled one, is the user's own: what is set there is told to nobody."""
        return type(self), (dict(self._values),)


class Config(Told):
    """A run's configuration."""

    def __init__(self, defaults: Mapping[str, Any] | None = None) -> None:
        super().__init__(dict.fromkeys(_DEFAULTS) | as_mapping(defaults))

    def _take(self) -> dict[str, Any]:
        """Hands over what was set so far and starts afresh."""
        taken = dict(self._set)
        self._set.clear()
        self._values.clear()
        self._values.update(dict.fromkeys(_DEFAULTS))
        return taken


class Summary(Told):
    """What the user sets as a run's result: `run.summary["best_accuracy"] = 0.93`. Readers show it beside the last,
    least, greatest and mean values of what was logged, which they work out themselves."""


def as_mapping(source: Any) -> dict[Any, Any]:
    """A configuration object as a dict; one that cannot be read as one becomes `{"config": ...}`. Never raises."""
    if source is None:
        return {}
    if is_mapping(source):
        try:
            return {_usable(key, key_text(key)): value for key, value in pairs_of(source)}
        except Exception as error:  # noqa: BLE001 the user's type
            hand_on(error)
    plain = plain_config(source)
    return plain if isinstance(plain, dict) else {"config": plain}


def _usable(key: Any, name: str) -> Any:
    """The key, if comparing it runs no code of the user's, else its `name`."""
    if issubclass(type(key), str):  # what it says of its class may be anything
        return str.__str__(key)
    return key if type(key) in _PLAIN_KEYS else name


class Current(MutableMapping[str, Any]):
    """`trackio.config` and `trackio.summary`: whatever is the current run's when they are used."""

    def __init__(self, current: Callable[[], Told]) -> None:
        object.__setattr__(self, "_current", current)

    def __getitem__(self, key: str) -> Any:
        return self._current()[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._current()[key] = value

    def __delitem__(self, key: str) -> None:
        del self._current()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._current())

    def __len__(self) -> int:
        return len(self._current())

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._current(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._current(), name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._current(), name)

    def update(self, *args: Any, **kwargs: Any) -> None:
        self._current().update(*args, **kwargs)

    def __repr__(self) -> str:
        return repr(self._current())
