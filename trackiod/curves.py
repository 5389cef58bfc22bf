"""What a user asks about a run's points: a metric's curve, its buckets. Knows numpy."""

from __future__ import annotations

from typing import NamedTuple

from trackiod.answers import RunView
from trackiod.errors import NotFound
from trackiod.store import points
from trackiod.views.attempts import Stream
from trackiod.views.buckets import Blocks, blocks_of, buckets
from trackiod.views.column import Column, concatenate
from trackiod.views.reduction import Curve, Part, as_stored, reduce_ranks, sift


class Series(NamedTuple):
    """A metric as asked for: its points, how ranks were reduced (None: not at all), how many are hidden."""

    curve: Curve
    reduce: str | None
    ranks: int
    hidden: int


class Choice(NamedTuple):
    """Which points are asked for: of one rank or reduced over all, of one attempt, or all that are stored."""

    rank: int | None = None
    attempt: int | None = None
    all_points: bool = False


ALL_RANKS = Choice()


def series(view: RunView, metric: str, choice: Choice = ALL_RANKS) -> Series:
    """The metric over all ranks, or as chosen. Raises NotFound."""
    _check_metric(view, metric)
    return _series_of(view, metric, _parts(view, frozenset({metric}), choice)[metric], choice)


def snapshot(view: RunView, choice: Choice = ALL_RANKS) -> dict[str, Curve]:
    """All metrics at once, each as `series` shows it. Raises NotFound."""
    found = _parts(view, frozenset(view.metric_names), choice)
    return {name: _series_of(view, name, found[name], choice).curve for name in view.metric_names}


def bucketed(view: RunView, metric: str, most: int, choice: Choice = ALL_RANKS) -> Blocks:
    """The metric in at most so many stretches, each with its least, greatest and mean value. Raises NotFound."""
    _check_metric(view, metric)
    streams = _streams(view, choice)
    rows = [row for row in view.series_of.get(metric, []) if row.stream in {s.id for s in streams}]
    is_all = choice.attempt is not None or len(view.first_steps(metric)) == 1
    if len(rows) == 1 and is_all and not choice.all_points:  # one stream's: what the store has summed up may do
        blocks = points.blocks(view.reader, rows[0].stream, metric)
        if blocks is not None and len(blocks.counts) >= most // 2:
            return buckets(blocks, most)
    curve = series(view, metric, choice).curve
    return buckets(blocks_of(curve.steps, curve.times_ns, curve.values, max(1, -(-curve.size // most))), most)


def _check_metric(view: RunView, metric: str) -> None:
    if metric not in view.metric_names:
        where = f" in run '{view.name}' of project '{view.reader.project}'"
        raise NotFound("Metric", metric, where, view.metric_names)


def _series_of(view: RunView, metric: str, parts: list[Part], choice: Choice) -> Series:
    ranks = len({part.rank for part in parts if part.points.size})
    if choice.all_points:
        return Series(as_stored(parts), None, ranks, 0)
    visible, hidden = sift(parts, view.first_steps(metric) if choice.attempt is None else None)
    if choice.rank is not None:
        return Series(as_stored(visible), None, ranks, hidden)
    how = view.reduction_of(metric)
    return Series(reduce_ranks(visible, how), how, ranks, hidden)


def _parts(view: RunView, metrics: frozenset[str], choice: Choice) -> dict[str, list[Part]]:
    """The stored points of these metrics, a part for each chosen rank and attempt."""
    found: dict[str, dict[tuple[int, int], list[Column]]] = {name: {} for name in metrics}
    for stream in _streams(view, choice):
        key = (stream.rank, view.places[stream.id].attempt)
        for name, column in points.columns(view.reader, stream.id, metrics).items():
            found[name].setdefault(key, []).append(column)
    return {name: [Part(*key, concatenate(columns)) for key, columns in parts.items()] for name, parts in found.items()}


def _streams(view: RunView, choice: Choice) -> list[Stream]:
    """The chosen rank streams, twins apart. Raises NotFound."""
    chosen = [s for s in view.in_order() if s.role == "rank" and not view.places[s.id].twin]
    if choice.rank is not None:
        known = sorted({s.rank for s in chosen})
        chosen = [s for s in chosen if s.rank == choice.rank]
        if not chosen:
            raise NotFound("Rank", str(choice.rank), f" in run '{view.name}'", map(str, known))
    if choice.attempt is not None:
        if not 0 <= choice.attempt < view.attempts:
            known = list(range(view.attempts))
            raise NotFound("Attempt", str(choice.attempt), f" in run '{view.name}'", map(str, known))
        chosen = [s for s in chosen if view.places[s.id].attempt == choice.attempt]
    return chosen
