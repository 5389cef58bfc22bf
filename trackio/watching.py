"""`watch(model)`: a torch model's gradients and parameters as histograms, every so many log() calls."""

from __future__ import annotations

import weakref
from typing import Any

from trackio import voice
from trackio.border import never_raises
from trackio.interrupts import hand_on
from trackio.rich import Histogram
from trackio.steps import integral
from trackio.values import clean_text, short_repr, type_name

_WHAT = ("gradients", "parameters", "all")


class _Watch:
    """What is watched of one model for one run. Logged with the run's own metrics, at their step."""

    def __init__(self, model: Any, log: str, every: int, prefix: str) -> None:
        self._model = weakref.ref(model)
        self._log, self._every, self._prefix = log, every, prefix
        self._calls = 0

    def metrics(self) -> dict[str, Any]:
        """The histograms that are due with this log() call, or nothing."""
        model = self._model()
        self._calls += 1
        if model is None or (self._calls - 1) % self._every:
            return {}
        found: dict[str, Any] = {}
        for name, parameter in model.named_parameters():
            if self._log in ("parameters", "all"):
                _add(found, f"parameters/{self._prefix}{name}", parameter)
            if self._log in ("gradients", "all") and parameter.grad is not None:
                _add(found, f"gradients/{self._prefix}{name}", parameter.grad)
        return found

    def is_of(self, model: Any) -> bool:
        return model is None or self._model() is model


def _add(found: dict[str, Any], name: str, tensor: Any) -> None:
    """A histogram of the tensor, if it has values that can be read: one of another device's, say, costs no other."""
    try:
        found[name] = Histogram(tensor)
    except ValueError as error:
        voice.warn_once(f"watch {name}", f"{name!r} is not watched: {error}")


@never_raises(None, RuntimeError)
def watch(
    models: Any, criterion: Any = None, log: str | None = "gradients", log_freq: int = 1000, idx: int | None = None,
    log_graph: bool = False, **unused: Any,
) -> None:  # fmt: skip
    """From now on every `log_freq`-th `trackio.log()` also stores a histogram of each parameter's gradient
    (`log="gradients"`), values (`"parameters"`), or both (`"all"`). Nothing hooks into backward(): gradients are those
    at hand when log() is called, so call it before they are zeroed. Raises RuntimeError before any init()."""
    from trackio import process

    run = process.here.latest
    if run is None:
        raise RuntimeError("Call trackio.init() before trackio.watch().")
    if log is None:
        return
    log = clean_text(log) if isinstance(log, str) else log
    if not isinstance(log, str) or log not in _WHAT:
        voice.warn_once("watch", f"watch(log={short_repr(log)}) is none of {', '.join(_WHAT)}; gradients are watched.")
        log = "gradients"
    many = list(models) if isinstance(models, (list, tuple)) else [models]
    for number, model in enumerate(many):
        try:
            run._watched.append(_watched(model, log, log_freq, (integral(idx) or 0) + number))
        except Exception as error:  # noqa: BLE001 the user's type
            hand_on(error)
            voice.warn_once("watch model", f"watch() takes torch modules, not a {type_name(model)}; it is left out.")


def _watched(model: Any, log: str, log_freq: Any, place: int) -> _Watch:
    """Raises whatever that raises which is no module."""
    if not callable(model.named_parameters):
        raise TypeError
    every = integral(log_freq)
    if every is None or every < 1:
        voice.warn_once("watch every", f"watch(log_freq={short_repr(log_freq)}) is not a number above 0; 1000 is used.")
        every = 1000
    return _Watch(model, log, every, f"{place}/" if place else "")


@never_raises(None)
def unwatch(models: Any = None) -> None:
    """Ends `watch`: of these models, or of all."""
    from trackio import process

    run = process.here.latest
    if run is not None:
        many = models if isinstance(models, (list, tuple)) else [models]
        run._watched = [w for w in run._watched if not any(w.is_of(model) for model in many)]
