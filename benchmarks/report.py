"""A figure, its bound, and its reference."""

from __future__ import annotations

from typing import NamedTuple


class Figure(NamedTuple):
    """`value` in `unit`; at most `bound` is promised; `reference` was measured in the same run."""

    name: str
    value: float
    unit: str
    bound: float | None = None
    reference_name: str = ""
    reference: float | None = None

    @property
    def holds(self) -> bool:
        return self.bound is None or self.value <= self.bound

    def line(self) -> str:
        bound = "" if self.bound is None else f"≤ {self.bound:g} {'yes' if self.holds else 'NO'}"
        ratio = f"{self.value / self.reference:.1f} times {self.reference_name}" if self.reference else ""
        return f"{self.name:<56} {self.value:>9.2f} {self.unit:<12} {bound:<12} {ratio}".rstrip()
