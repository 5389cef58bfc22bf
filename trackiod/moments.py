"""Moments in words."""

from __future__ import annotations

from datetime import UTC, datetime


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
