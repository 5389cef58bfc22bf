"""Whose batches are dropped while they cannot be stored, and from where their senders go on. Pure.

Nothing that is dropped is acked, so its sender keeps it. It is asked to go back to what is committed once there is
room. What it had sent before it heard that is dropped, too: each batch behind a gap would be answered with a rewind.
"""

from __future__ import annotations


class Admission:
    """Knows the streams of which something was dropped."""

    def __init__(self) -> None:
        self._dropped: dict[str, None] = {}
        self._goes_on_at: dict[str, int] = {}

    @property
    def dropped(self) -> list[str]:
        """The streams whose batches are dropped, the one that waits longest first."""
        return list(self._dropped)

    def is_dropped(self, stream: str) -> bool:
        """Whether the batches of a stream are dropped now."""
        return stream in self._dropped

    def accepts(self, stream: str, start: int, oldest: int) -> bool:
        """Whether a batch from offset `start` is to be stored, if there is room; its sender holds all from `oldest`."""
        if stream in self._dropped:
            return False
        offset = self._goes_on_at.get(stream)
        if offset is not None and start > max(offset, oldest):
            return False
        self._goes_on_at.pop(stream, None)
        return True

    def drop(self, stream: str) -> None:
        """Drop the batches of a stream until it is resumed."""
        self._dropped[stream] = None
        self._goes_on_at.pop(stream, None)

    def resume(self, stream: str, offset: int) -> None:
        """Take its batches again, from `offset` on."""
        self._dropped.pop(stream, None)
        self._goes_on_at[stream] = offset

    def forget(self, stream: str) -> None:
        """The stream has ended, or introduced itself anew."""
        self._dropped.pop(stream, None)
        self._goes_on_at.pop(stream, None)
