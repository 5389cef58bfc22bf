"""Where runs go, each kind of target in one file."""

from __future__ import annotations

from trackio import targets
from trackiod.errors import TrackiodError
from trackiod.sinks.interface import Sink


def open_sink(url: str, token: str | None) -> Sink:
    """The target at a URL. Raises TrackiodError for one of no kind that is known here."""
    if url.startswith(targets.DATASETS):
        from trackiod.sinks.datasets import DatasetSink

        return DatasetSink(url, token)
    if url.startswith(targets.BUCKETS):
        from trackiod.sinks.buckets import BucketSink

        return BucketSink(url, token)
    raise TrackiodError(f"{url} is no target that is known: {targets.FORMS}.")
