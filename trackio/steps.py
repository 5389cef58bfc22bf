"""Which step a record gets: the caller's, the run's step metric's, or the process's counter's. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trackio.interrupts import hand_on
from trackio.record import Origin

HF_STEP_METRIC = "train/global_step"
"""How every Hugging Face trainer tells the step: as a metric, never as `step=`."""
_METRIC, _COUNTER = int(Origin.METRIC), int(Origin.COUNTER)
_LEAST, _MOST = -(1 << 63), (1 << 63) - 1
_FAR = 1 << 62
"""steps beyond this do not count as the highest: those that follow would leave 64 bits"""


class Steps:
    """The counter and the rules of one stream.

    Simple attribute steps without calls in between are atomic under the GIL; two threads never get one step.
    """

    __slots__ = ("highest", "rules")

    def __init__(self, highest: int = -1) -> None:
        self.highest = min(highest, _FAR)
        self.rules: list[tuple[str, str]] = []

    def define(self, pattern: str, step_metric: str) -> None:
        """Records that hold `step_metric` and a metric that matches `pattern` take their step from it."""
        self.rules.insert(0, (pattern, step_metric))

    def choose(self, metrics: Mapping[str, Any], commit: bool | None) -> tuple[int, int]:
        """The step of a record that was given none. With `commit=False` the counter stays where it is."""
        if self.rules or HF_STEP_METRIC in metrics:
            step = self._by_metric(metrics)
            if step is not None:
                self.take(step)
                return step, _METRIC
        if commit is False:
            return self.highest + 1, _COUNTER
        step = self.highest + 1
        self.highest = step
        return step, _COUNTER

    def _by_metric(self, metrics: Mapping[str, Any]) -> int | None:
        for pattern, step_metric in (*self.rules, ("*", HF_STEP_METRIC)):
            value = metrics.get(step_metric)
            if value is None or (pattern != "*" and not _matches_any(pattern, metrics)):
                continue
            if (step := integral(value)) is not None:
                return step
        return None

    def take(self, step: int) -> None:
        """Notes a step the caller gave."""
        if step > self.highest:
            self.highest = min(step, _FAR)


def _matches_any(pattern: str, metrics: Mapping[str, Any]) -> bool:
    from fnmatch import fnmatchcase  # most jobs never define a metric

    return any(fnmatchcase(name, pattern) for name in metrics)


def integral(value: Any) -> int | None:
    """`value` as an int if it is one in substance (3, 3.0, numpy's and torch's), else None."""
    if type(value) is not int:
        try:
            number = value.item() if hasattr(value, "item") else value
            if isinstance(number, str) or not _LEAST <= number <= _MOST or int(number) != number:
                return None  # compared first: `int(Decimal("1e999999"))` takes minutes
            value = int.__int__(int(number))
        except Exception as error:  # noqa: BLE001 the user's type, NaN, infinity
            hand_on(error)
            return None
    return value if _LEAST <= value <= _MOST else None
