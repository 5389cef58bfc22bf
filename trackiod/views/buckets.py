"""A long series in few numbers: the least, greatest and mean of its stretches. Pure.

A block sums up a stretch of consecutive shown points; buckets are blocks joined until few are left, so each
says exactly what its points are, from its first step to its last. NaN counts apart and is in no other figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from trackiod.views.column import Column, Floats, Ints, Values, last_per_step, numbers

BLOCK_POINTS = 512


class Blocks(NamedTuple):
    """Stretches of a series in the order of steps; all arrays of one length."""

    first_steps: Ints
    last_steps: Ints
    first_ns: Ints
    last_ns: Ints
    counts: Ints
    nans: Ints
    lows: Floats
    highs: Floats
    totals: Floats

    @property
    def means(self) -> Floats:
        """The mean of each block's numbers; NaN where it has none."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(self.totals / (self.counts - self.nans))


def blocks_of(steps: Ints, times_ns: Ints, values: Values, points: int) -> Blocks:
    """Blocks of so many points each, the last one of what is left. `steps` ascend."""
    count = len(steps)
    floats = numbers(values)
    starts = np.arange(0, count, points)
    ends = np.minimum(starts + points, count) - 1
    is_nan = np.isnan(floats)
    if not count:
        nothing = np.empty(0, np.float64)
        return Blocks(starts, starts, starts, starts, starts, starts, nothing, nothing, nothing)
    with np.errstate(invalid="ignore", over="ignore"):
        return Blocks(
            steps[starts],
            steps[ends],
            times_ns[starts],
            times_ns[ends],
            ends - starts + 1,
            np.add.reduceat(is_nan.astype(np.int64), starts),
            np.fmin.reduceat(floats, starts),
            np.fmax.reduceat(floats, starts),
            np.add.reduceat(np.where(is_nan, 0.0, floats), starts),
        )


def blocks_as_logged(column: Column) -> Blocks:
    """Blocks of a series whose points stand in the order they were logged."""
    shown = last_per_step(column.steps)
    return blocks_of(column.steps[shown], column.times_ns[shown], column.values[shown], BLOCK_POINTS)


def single(*facts: float | None) -> Blocks:
    """One block, of the facts in the order of its fields; None where it has no numbers."""
    ints = [np.array([fact or 0], np.int64) for fact in facts[:6]]
    floats = [np.array([np.nan if fact is None else fact], np.float64) for fact in facts[6:]]
    return Blocks._make((*ints, *floats))


def in_order(parts: Sequence[Blocks]) -> Blocks | None:
    """All blocks in the order of steps; None if they overlap, or there is none."""
    if not parts:
        return None
    joined = Blocks._make(map(np.concatenate, zip(*parts, strict=True)))
    order = np.argsort(joined.first_steps, kind="stable")
    ordered = Blocks._make(array[order] for array in joined)
    return ordered if (ordered.last_steps[:-1] < ordered.first_steps[1:]).all() else None


def buckets(blocks: Blocks, most: int) -> Blocks:
    """At most `most` buckets of about equally many blocks."""
    count = len(blocks.counts)
    if count <= most:
        return blocks
    starts = np.unique(np.arange(most) * count // most)
    ends = np.append(starts[1:], count) - 1
    with np.errstate(invalid="ignore", over="ignore"):
        return Blocks(
            blocks.first_steps[starts],
            blocks.last_steps[ends],
            blocks.first_ns[starts],
            blocks.last_ns[ends],
            np.add.reduceat(blocks.counts, starts),
            np.add.reduceat(blocks.nans, starts),
            np.fmin.reduceat(blocks.lows, starts),
            np.fmax.reduceat(blocks.highs, starts),
            np.add.reduceat(blocks.totals, starts),
        )
