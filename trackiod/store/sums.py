"""What many log() calls amount to, without the calls: sums of values, steps, the last of each. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

_INT64_MIN, _INT64_MAX = -(1 << 63), (1 << 63) - 1
_NUMBERS = frozenset({float, int, bool})
_ROWS_AT_ONCE = 256


class Sums(NamedTuple):
    """Values in short: how many are numbers, how many NaN, and the least, greatest and total of the numbers."""

    numbers: int = 0
    nans: int = 0
    low: float | None = None
    high: float | None = None
    total: float = 0

    def plus(self, other: Sums) -> Sums:
        """Both together."""
        if not other.numbers or not self.numbers:
            return (self if self.numbers else other)._replace(nans=self.nans + other.nans)
        low = min(self.low, other.low)  # type: ignore[type-var]
        high = max(self.high, other.high)  # type: ignore[type-var]
        return Sums(self.numbers + other.numbers, self.nans + other.nans, low, high, self.total + other.total)


def sums_of(values: Sequence[Any]) -> Sums:
    """The sums of one metric's values."""
    if values and _NUMBERS.issuperset(map(type, values)):
        total = sum(values)
        if total == total:
            return Sums(len(values), 0, _number(min(values)), _number(max(values)), total)
    numbers = [v for v in values if type(v) in _NUMBERS and v == v]
    nans = sum(1 for v in values if v != v)
    if not numbers:
        return Sums(nans=nans)
    return Sums(len(numbers), nans, _number(min(numbers)), _number(max(numbers)), sum(numbers))


def _number(value: float) -> float:
    """A bool as the number it counts for, and a whole number past 64 bits with sign as the nearest float: what the
    database can hold."""
    if isinstance(value, float):
        return value
    return int(value) if _INT64_MIN <= value <= _INT64_MAX else float(value)


class Stretch(NamedTuple):
    """log() calls of one batch with the same names, summed up."""

    names: tuple[str, ...]
    records: int
    counted: int
    """of these, calls whose step the process's counter gave"""
    first_step: int
    max_step: int
    last_step: int
    last_ns: int
    last: Sequence[Any]
    """the last call's values"""
    ascending: bool
    """whether each step was higher than the one before"""
    sums: Sequence[Sums]
    end: int
    """the offset of the last call"""


class Rows:
    """log() calls with the same names, taken one by one."""

    __slots__ = ("ascending", "counted", "end", "first_step", "last_ns", "last_step", "max_step", "records", "row",
                 "rows", "sums")  # fmt: skip

    def __init__(self, step: int) -> None:
        """`step` is the first call's."""
        self.records = self.counted = self.last_ns = self.end = 0
        self.first_step = self.last_step = step
        self.max_step = step - 1
        self.ascending = True
        self.row: Sequence[Any] = ()
        self.rows: list[Sequence[Any]] = []
        self.sums: list[Sums] = []

    def add(self, offset: int, time_ns: int, step: int, row: Sequence[Any], *, is_counted: bool) -> None:
        """The next call, at `offset` of its stream."""
        self.records += 1
        self.counted += is_counted
        if step > self.max_step:
            self.max_step = step
        else:
            self.ascending = False
            self.first_step = min(self.first_step, step)
        self.last_step, self.last_ns, self.row, self.end = step, time_ns, row, offset
        self.rows.append(row)
        if len(self.rows) == _ROWS_AT_ONCE:
            self._sum_up()

    def _sum_up(self) -> None:
        if self.rows:
            more = [sums_of(column) for column in zip(*self.rows, strict=True)]
            self.sums = [a.plus(b) for a, b in zip(self.sums, more, strict=True)] if self.sums else more
            self.rows = []

    def summed(self, names: tuple[str, ...]) -> Stretch:
        """All of them."""
        self._sum_up()
        return Stretch(
            names, self.records, self.counted, self.first_step, self.max_step, self.last_step, self.last_ns, self.row,
            self.ascending, self.sums, self.end,
        )  # fmt: skip
