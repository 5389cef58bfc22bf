"""`watch(model)`: a torch model's gradients and parameters as histograms, every so many log() calls."""

from __future__ import annotations

import weakref
from typing import Any

from trackio import voice
from trackio.rich import Histogram

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
                found[f"parameters/{self._prefix}{name}"] = Histogram(parameter)
            if self._log in ("gradients", "all") and parameter.grad is not None:
                found[f"gradients/{self._prefix}{name}"] = Histogram(parameter.grad)
        return found

    def is_of(self, model: Any) -> bool:
        return model is None or self._model() is model


def watch(
    models: Any, criterion: Any = None, log: str | None = "gradients", log_freq: int = 1000, idx: int | None = None,
    log_graph: bool = False,
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
    if log not in _WHAT:
        voice.warn_once("watch", f"watch(log={log!r}) is none of {', '.join(_WHAT)}; gradients are watched.")
        log = "gradients"
    many = list(models) if isinstance(models, (list, tuple)) else [models]
    for number, model in enumerate(many):
        if not hasattr(model, "named_parameters"):
            voice.warn_once(
                "watch model", f"watch() takes torch modules, not a {type(model).__name__}; it is left out."
            )
            continue
        place = (idx or 0) + number
        run._watched.append(_Watch(model, log, max(1, int(log_freq)), f"{place}/" if place else ""))


def unwatch(models: Any = None) -> None:
    """Ends `watch`: of these models, or of all."""
    from trackio import process

    run = process.here.latest
    if run is not None:
        many = models if isinstance(models, (list, tuple)) else [models]
        run._watched = [w for w in run._watched if not any(w.is_of(model) for model in many)]
