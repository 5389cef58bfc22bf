"""Where runs go, each kind of target in one file."""

from __future__ import annotations

from trackiod.errors import TrackiodError
from trackiod.sinks.interface import Sink


def open_sink(url: str, token: str | None) -> Sink:
    """The target at a URL. Raises TrackiodError for one of no known kind."""
    from trackiod.sinks import hub

    if url.startswith(hub.PREFIX):
        return hub.HubSink(url, token)
    raise TrackiodError(f"{url} is no target that is known: hf://datasets/owner/name.")
