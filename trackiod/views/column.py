"""The points of one series as arrays, and what can be done to such columns. Pure; knows numpy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Values = NDArray[Any]
"""float64, int64, or object where a series holds anything else or several types"""


class Column(NamedTuple):
    """The points of one series in the stream's order, all arrays of one length."""

    steps: Ints
    times_ns: Ints
    is_counted: Bools
    """whether the process's counter gave the step"""
    values: Values

    @property
    def size(self) -> int:
        return len(self.steps)

    def take(self, chosen: Any) -> Column:
        """The points that an index array, a mask or a slice chooses."""
        return Column._make(array[chosen] for array in self)


def typed(values: Sequence[Any]) -> Values:
    """The values as an array of their type; of objects if they have several or another than float and int."""
    types = set(map(type, values))
    if types == {float}:
        return np.array(values, np.float64)
    if types == {int}:
        try:
            return np.array(values, np.int64)
        except OverflowError:
            pass  # msgpack has unsigned ints of 64 bits too
    return np.fromiter(values, object, len(values))


def join(arrays: Sequence[Values]) -> Values:
    """One array of all; of objects where their types differ, so that 3 does not become 3.0."""
    if not arrays:
        return np.empty(0, np.float64)
    if len({array.dtype for array in arrays}) > 1:
        arrays = [array.astype(object) for array in arrays]
    return np.concatenate(arrays)


def concatenate(columns: Iterable[Column]) -> Column:
    """One column of all, in their order."""
    columns = list(columns)
    if len(columns) == 1:
        return columns[0]
    if not columns:
        nothing = np.empty(0, np.int64)
        return Column(nothing, nothing, nothing.astype(bool), np.empty(0, np.float64))
    steps, times_ns, is_counted, values = zip(*columns, strict=True)
    return Column(np.concatenate(steps), np.concatenate(times_ns), np.concatenate(is_counted), join(values))


def is_ascending(steps: Ints) -> bool:
    """Whether each step is higher than the one before."""
    return bool((steps[1:] > steps[:-1]).all())


def last_per_step(steps: Ints) -> Ints | slice:
    """What chooses, in the order of steps, the last logged point of each."""
    if is_ascending(steps):
        return slice(None)
    order = np.argsort(steps, kind="stable")
    ordered = steps[order]
    last: Ints = order[np.append(ordered[1:] != ordered[:-1], True)]
    return last


def numbers(values: Values) -> Floats:
    """The values as floats, NaN for what is no number."""
    if values.dtype != object:
        return values.astype(np.float64)
    return np.array([float(v) if isinstance(v, (int, float)) else np.nan for v in values], np.float64)
