"""Moments in words, and back."""

from __future__ import annotations

from datetime import UTC, datetime

from trackiod.errors import TrackiodError


def timestamp(time_ns: int | None) -> str | None:
    """UTC, ISO 8601, microseconds: `2026-11-23T04:37:22.543615+00:00`."""
    if time_ns is None:
        return None
    seconds, nanoseconds = divmod(time_ns, 1_000_000_000)
    try:
        return (
            datetime.fromtimestamp(seconds, UTC).replace(microsecond=nanoseconds // 1000).isoformat("T", "microseconds")
        )
    except (OverflowError, ValueError, OSError):
        return None


def moment_of(text: str, option: str) -> datetime:
    """What a command's option says in ISO 8601; without a zone it is UTC. Raises TrackiodError."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise TrackiodError(f"{option} '{text}' is no ISO 8601 time.") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
