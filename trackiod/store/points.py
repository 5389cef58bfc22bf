"""The points of a stream's series, folded or not yet, as columns or summed up. Knows numpy.

Bytes are fetched in one transaction, and decoded when it is over.
"""

from __future__ import annotations

from trackiod.store import fold
from trackiod.store.reader import ProjectReader
from trackiod.views import buckets
from trackiod.views.buckets import Blocks
from trackiod.views.column import Bools, Column, Ints, concatenate

_BLOCK_FACTS = "first_step, last_step, first_ns, last_ns, shown, blocks"


def columns(reader: ProjectReader, stream: str, metrics: frozenset[str]) -> dict[str, Column]:
    """The points of these metrics in one stream, as they were logged. Raises StoreDamaged."""
    with reader.transaction():
        names = reader.series_names(stream, metrics)
        chunks = reader.chunks("series, axis, kind, data", names)
        axes = reader.axes("count, data", stream, {chunk[1] for chunk in chunks})
        raw = reader.raw(stream)
    found: dict[str, list[Column]] = {name: [] for name in metrics}
    places: dict[int, tuple[Ints, Ints, Bools]] = {}
    for series, axis, kind, data in chunks:
        try:
            count, blob = axes[axis]
            if axis not in places:
                places[axis] = fold.read_axis(blob, count)
            found[names[series]].append(Column(*places[axis], fold.read_values(kind, data, count)))
        except (ValueError, KeyError, IndexError) as error:
            reader.problems.append(
                f"A chunk of {names[series]!r} in {reader.path} is damaged ({error}, axis {axis}); the rest is shown."
            )
    for name, column in fold.gathered(raw, metrics).items():
        found[name].append(column)
    return {name: concatenate(parts) for name, parts in found.items()}


def blocks(reader: ProjectReader, stream: str, metric: str) -> Blocks | None:
    """A series summed up in blocks, in the order of steps, without reading its points; None if that cannot be:
    points hide each other, are no numbers, or what sums them up is damaged. Raises StoreDamaged."""
    with reader.transaction():
        names = reader.series_names(stream, {metric})
        chunks = reader.chunks("axis, overlapped, nans, low, high, total, blocks", names)
        axes = reader.axes(_BLOCK_FACTS, stream, {chunk[0] for chunk in chunks})
        raw = reader.raw(stream)
    parts = []
    for axis, overlapped, nans, low, high, total, blob in chunks:
        if overlapped or nans is None or axis not in axes:
            return None
        *ends, shown, shared = axes[axis]
        try:
            if blob is None:
                parts.append(buckets.single(*ends, shown, nans, low, high, total))
            else:
                parts.append(fold.read_blocks(shared, blob, shown))
        except (ValueError, TypeError, IndexError):
            return None
    parts += [buckets.blocks_as_logged(column) for column in fold.gathered(raw, frozenset({metric})).values()]
    return buckets.in_order(parts)
