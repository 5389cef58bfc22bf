"""What the values of several ranks amount to. Pure, and without numpy: for few values of any kind."""

from __future__ import annotations

import math
from typing import Any


def amount(values: list[Any], how: str) -> Any:
    """Values in the order of ranks, reduced. Those that are no numbers are not: the lowest rank's stands. Equal ones
    are returned as they are, type included, so a mean cannot change the last bit; but for a sum."""
    if how == "last":
        return values[-1]
    is_same = how != "sum" and all(type(v) is type(values[0]) and v == values[0] for v in values)
    if how == "first" or is_same or not all(isinstance(v, (int, float)) for v in values):
        return values[0]
    if any(map(is_nan, values)):
        return math.nan
    if how in ("min", "max"):
        return min(values) if how == "min" else max(values)
    if how == "sum":
        return sum(values)
    try:
        return math.fsum(values) / len(values)
    except (OverflowError, ValueError):  # inf - inf, or a sum past the largest float
        return sum(v / len(values) for v in map(float, values))


def is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)
