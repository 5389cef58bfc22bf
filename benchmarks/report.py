"""A figure, its bound, and its reference."""

from __future__ import annotations

from typing import NamedTuple


class Figure(NamedTuple):
    """`value` in `unit`; at most `bound` is promised, or at `least`; `reference` was measured in the same run."""

    name: str
    value: float
    unit: str
    bound: float | None = None
    reference_name: str = ""
    reference: float | None = None
    least: bool = False

    @property
    def holds(self) -> bool:
        if self.bound is None:
            return True
        return self.value >= self.bound if self.least else self.value <= self.bound

    def line(self) -> str:
        bound = (
            "" if self.bound is None else f"{'≥' if self.least else '≤'} {self.bound:g} {'yes' if self.holds else 'NO'}"
        )
        ratio = f"{self.value / self.reference:.1f} times {self.reference_name}" if self.reference else ""
        return f"{self.name:<56} {self.value:>9.2f} {self.unit:<12} {bound:<12} {ratio}".rstrip()
