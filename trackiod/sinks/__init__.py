"""Where runs go, each kind of target in one file."""

from __future__ import annotations

from trackio import targets
from trackiod.errors import TrackiodError
from trackiod.sinks.interface import Sink


def open_sink(url: str, token: str | None, endpoint: str | None = None) -> Sink:
    """The target at a URL. `token`, `endpoint`: None for those that its library finds. Raises TrackiodError for one of
    no kind that is known here."""
    if url.startswith(targets.DATASETS):
        from trackiod.sinks.datasets import DatasetSink

        return DatasetSink(url, token, endpoint)
    if url.startswith(targets.BUCKETS):
        from trackiod.sinks.buckets import BucketSink

        return BucketSink(url, token, endpoint)
    raise TrackiodError(f"{url} is no target that is known: {targets.FORMS}.")
